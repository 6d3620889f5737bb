"""Greedy decoding on the device alone, on the CPU: the same tokens, and steps that a CUDA graph can take."""

import gc
import threading
import time
import weakref
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastspeech.auto import FAMILIES
from fastspeech.generation import graphs, mixin
from fastspeech.generation.graphs import Graphs
from fastspeech.generation.pages import PagePool
from fastspeech.generation.seats import Places, Seats, graphable
from fastspeech.layers.seated import PAGE_SIZE, reader
from fastspeech.parity.models import EXAMPLES, with_random_weights
from tests.generation.tape import WAYS, as_on_a_device, as_on_a_gpu

NAMES = ("cohere_asr", "moonshine", "speech_to_text")
ENDS = [7, 8, 9]


def fresh(name: str) -> Any:
    example, family = EXAMPLES[name], FAMILIES[name]
    return with_random_weights(family.get(family.generator)(family.get(family.config)(**example.config)), 0).float()


kept = cache(fresh)


def inputs(name: str, prompt: int = 1, rows: int = 3) -> dict[str, Any]:
    """Clips of different length; five of them are three, two twice."""
    found = EXAMPLES[name].inputs(torch.Generator().manual_seed(0))
    found = {key: value.float() if value.is_floating_point() else value for key, value in found.items()}
    found["decoder_input_ids"] = found.pop("ids")[:, :prompt]
    return {key: torch.cat((value, value))[:rows] for key, value in found.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_generate_elsewhere(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that end at different steps, by an end or a limit, before and behind the end of a page."""
    cases = [
        (inputs(name, prompt, rows), {"max_new_tokens": limits[:rows] if isinstance(limits, list) else limits})
        for prompt, rows, limits in ((1, 3, 40), (4, 5, [1, 30, 23, 12, 33]), (9, 1, 8), (1, 2, [15, 16]), (1, 5, 32))
    ]
    expected = [kept(name).generate(**audio, eos_token_id=ENDS, **limits) for audio, limits in cases]
    assert {(row == 2).any().item() for row in expected[1]} == {True, False} or name == "speech_to_text"
    log = WAYS[way](monkeypatch)
    model = fresh(name)
    for (audio, limits), sequences in zip(cases, expected, strict=True):
        assert model.generate(**audio, eos_token_id=ENDS, **limits).tolist() == sequences.tolist()
    assert model.model.decoder.seated.seats.graphs.replays.keys() == {1, 2, 4, 8}
    assert bool(log) == (way == "graphs")


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    family, example = FAMILIES[name], EXAMPLES[name]
    theirs = getattr(transformers, family.generator)(getattr(transformers, family.config)(**example.config)).eval()
    theirs.load_state_dict(kept(name).state_dict(), strict=False)
    theirs.tie_weights()
    audio = inputs(name, 2)
    as_on_a_gpu(monkeypatch)
    for limit in (12, 30):
        options = {"max_new_tokens": limit, "num_beams": 1, "do_sample": False, "eos_token_id": ENDS, "pad_token_id": 2}
        assert fresh(name).generate(**audio, **options).tolist() == theirs.generate(**audio, **options).tolist()


def test_a_step_is_recorded_once_behind_a_step_that_compiles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    log = as_on_a_gpu(monkeypatch)
    model = fresh("moonshine")
    model.generate(**inputs("moonshine", rows=4), eos_token_id=[], max_new_tokens=9)
    # The encoder, and a step.
    assert log == [
        message
        for pool in (7, 8)
        for message in (
            "side waits for main",
            "on side",
            f"record on side into pool {pool}, thread_local",
            "main waits for side",
        )
    ]
    made = model.model.decoder.seated.seats
    assert made.graphs.replays == {4: 9}
    for rows, steps in ((4, 6), (3, 9)):
        model.generate(**inputs("moonshine", rows=rows), eos_token_id=[], max_new_tokens=steps)
    assert len(log) == 8 and made.graphs.replays == {4: 24} and model.model.decoder.seated.seats is made
    model.generate(**inputs("moonshine", rows=2), eos_token_id=[], max_new_tokens=9)
    assert len(log) == 16 and made.graphs.replays == {4: 24, 2: 9}


def test_what_no_longer_fits_or_holds_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    model = fresh("moonshine")
    seated = model.model.decoder.seated

    def written(**options: Any) -> Any:
        audio = inputs("moonshine", rows=options.pop("rows", 2))
        found = model.generate(**audio, eos_token_id=ENDS, **{"max_new_tokens": 20, **options})
        with pytest.MonkeyPatch.context() as plain:
            plain.setattr(mixin, "serves", lambda device: False)
            expected = model.generate(**audio, eos_token_id=ENDS, **{"max_new_tokens": 20, **options})
        assert found.tolist() == expected.tolist()
        return seated.seats

    first = written()
    assert written(max_new_tokens=12) is first
    longer = written(max_new_tokens=33)
    assert longer is not first and written(rows=5) is not longer
    held = written()
    assert held.rows == 8 and held.length == 40
    model.eval()
    assert written() is held
    with torch.no_grad():
        model.model.decoder.layers[0].mlp.fc1.weight.mul_(-1.5)
    changed = written()
    assert changed is not held and written() is changed
    model.model.decoder.norm.weight = torch.nn.Parameter(torch.full((72,), 0.5))
    assert written() is not changed
    assert seated.seats is not None
    model.to(torch.float32)
    assert seated.seats is None


def test_a_graph_keeps_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    weight, total = torch.ones(3), torch.zeros(3)
    source = {"weight": weight}
    made = Graphs(torch.device("cpu"))
    made.record("add", lambda: total.add_(source["weight"] * 2.0).mul_(1.0))  # type: ignore[func-returns-value]
    made._recorded["add"].run = SimpleNamespace  # type: ignore[assignment]  # the tape itself holds everything
    gone = weakref.ref(weight)
    del weight, source["weight"]
    gc.collect()
    assert gone() is not None and len(made._recorded["add"]._tensors) == 2


def test_without_a_graph_it_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = kept("moonshine").generate(**inputs("moonshine"), max_new_tokens=20)
    as_on_a_gpu(monkeypatch)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    model = fresh("moonshine")
    with pytest.warns(RuntimeWarning, match="without a CUDA graph.*not permitted"):
        found = model.generate(**inputs("moonshine"), max_new_tokens=20)
    assert found.tolist() == expected.tolist()


def test_threads_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [inputs("moonshine", prompt, rows) for prompt, rows in ((1, 3), (2, 2), (3, 1), (1, 5))]
    expected = [kept("moonshine").generate(**case, max_new_tokens=30).tolist() for case in cases]
    as_on_a_device(monkeypatch)
    model, found = fresh("moonshine"), {}
    inside: list[int] = []
    write_all = Seats.write

    def noted(self: Seats, rows: int, steps: int) -> int:
        inside.append(rows)
        time.sleep(0.05)
        assert len(inside) == 1
        longest = write_all(self, rows, steps)
        inside.clear()
        return longest

    monkeypatch.setattr(Seats, "write", noted)

    def write(at: int) -> None:
        found[at] = model.generate(**cases[at], max_new_tokens=30).tolist()

    threads = [threading.Thread(target=write, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(4)] == expected


def test_inference_mode_or_not_is_all_one(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = kept("moonshine").generate(**inputs("moonshine", 2), max_new_tokens=12).tolist()
    as_on_a_device(monkeypatch)
    for first in (True, False):
        model = fresh("moonshine")
        for inference in (first, not first, first):
            with torch.inference_mode(inference):
                assert model.generate(**inputs("moonshine", 2), max_new_tokens=12).tolist() == expected


@pytest.mark.parametrize(
    ("options", "there"),
    [
        ({}, True),
        ({"max_new_tokens": [3, 4, 5]}, True),
        ({"eos_token_id": [3, 4]}, True),
        ({"num_beams": 2}, False),
        ({"do_sample": True}, False),
        ({"no_repeat_ngram_size": 2}, False),
        ({"stopping_criteria": [lambda ids, scores: False]}, False),
        ({"max_time": 9.0}, False),
        ({"return_dict_in_generate": True}, False),
        ({"streamer": SimpleNamespace(put=print, end=print)}, False),
    ],
)
def test_which_plans_are_graphed(options: dict[str, Any], there: bool) -> None:
    plan = kept("moonshine").planned(**inputs("moonshine"), **{"max_new_tokens": 5, **options})[3]
    assert graphable(plan) is there


def test_neither_in_training_nor_under_autocast_nor_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("moonshine")
    plan = model.planned(**inputs("moonshine"), max_new_tokens=5)[3]
    cpu = torch.device("cpu")
    assert not model.sits(plan, cpu) and model.sits(plan, torch.device("cuda"))
    monkeypatch.setattr(mixin, "serves", lambda device: True)
    assert model.sits(plan, cpu)
    with torch.autocast("cpu"):
        assert not model.sits(plan, cpu)
    assert not model.train().sits(plan, cpu)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        assert model.eval().to(dtype).sits(plan, cpu) is (dtype != torch.float64)


class Watch(TorchDispatchMode):
    """Notes every operation with the shapes of what it returns, and refuses what a graph cannot hold."""

    REFUSED = ("_local_scalar_dense", "is_nonzero", "nonzero", "lift_fresh", "unique", "masked_select", "item", "equal")

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.noted: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.startswith(self.REFUSED), name
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        there = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        # A number that stands beside a tensor is a tensor of the host without dimensions, which a kernel takes as a
        # parameter.
        assert all(tensor.device.type == self.device for tensor in there if tensor.dim()), name
        assert not (name in ("_to_copy", "copy_") and any(t.device.type != self.device for t in there)), name
        self.noted.append((str(func), [tuple(tensor.shape) for tensor in tensors]))
        return result


class Linked(TorchFunctionMode):
    """Indices as the operations that they stand for, and copies left out, on CUDA tensors without memory: Python's
    binding of these refuses them where torch is not linked with CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.copy_, torch.Tensor.__setitem__):
            assert args[-1].device == args[0].device
            return args[0]
        if func is not torch.Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        tensor, keys = args
        keys = keys if isinstance(keys, tuple) else (keys,)
        dim = 0
        for at, key in enumerate(keys):
            if key is None:
                tensor = tensor.unsqueeze(dim)
                dim += 1
            elif key is Ellipsis:
                dim = tensor.dim() - sum(behind is not None for behind in keys[at + 1 :])
            elif isinstance(key, int):
                tensor = tensor.select(dim, key)
            else:
                tensor = torch.ops.aten.slice(tensor, dim, key.start, key.stop, key.step or 1)
                dim += 1
        return tensor


def seated(name: str, rows: int, device: str = "cpu") -> tuple[Any, Seats]:
    """Seats of a model, three of them taken, with what their pages hold at random."""
    model = fresh(name).to(device)
    decoder = model.model.decoder
    with torch.no_grad():
        steps, head = model.functions()
    pool = PagePool(len(steps), decoder.kv_heads, decoder.head_dim, 40, page_size=PAGE_SIZE, device=device)
    pool.keys.normal_()
    pool.values.normal_()
    made = Seats(reader(decoder, steps, head, pool), torch.device(device), rows, 3, 2, 44, 3)
    made.table[:3] = torch.arange(9, dtype=torch.int32, device=device).view(3, 3)
    made.cross_table[:3] = torch.arange(9, 15, dtype=torch.int32, device=device).view(3, 2)
    prompt = torch.randint(4, 50, (3, 2), device=device)
    plan = model.planned(**inputs(name), eos_token_id=[], max_new_tokens=40)[3]
    made.sit(prompt, torch.tensor([20, 17, 3], device=device), plan)
    return model, made


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_nothing_of_a_step_is_on_the_host_nor_of_other_shapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_device(monkeypatch)
    _, made = seated(name, 4)
    made.step(4)
    static = {key: value for key, value in vars(made).items() if isinstance(value, torch.Tensor)}
    addresses = {key: value.data_ptr() for key, value in static.items()}
    noted = []
    for step in range(20):
        with Watch() as watch:
            made.step(4)
        noted.append(watch.noted)
        if step == 10:
            made.limits[1] = 0
    assert len(noted[0]) > 50 and all(step == noted[0] for step in noted)
    assert {key: vars(made)[key].data_ptr() for key in static} == addresses
    assert made.lengths.tolist()[0] == 23 and made.lengths.tolist()[1] == 14


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_cuda_tensors_needs_nothing_of_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes and devices alone, of every operation but the kernels, as on a GPU."""
    as_on_a_device(monkeypatch)
    model = fresh(name)
    with FakeTensorMode(), Linked(), torch.no_grad():
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for key, held in tensors.items():
                    if held is not None:
                        fake = torch.empty(held.shape, dtype=held.dtype, device="cuda")
                        tensors[key] = torch.nn.Parameter(fake) if tensors is module._parameters else fake
        decoder = model.model.decoder
        steps, head = model.functions()
        pool = PagePool(len(steps), decoder.kv_heads, decoder.head_dim, 40, page_size=PAGE_SIZE, device="cuda")
        made = Seats(reader(decoder, steps, head, pool), torch.device("cuda"), 4, 3, 2, 44, 3)
        made.step(4)
        with Watch("cuda") as watch:
            made.step(4)
    assert len(watch.noted) > 50


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_step_changes_nothing_at_idle_seats(name: str) -> None:
    _, made = seated(name, 4)
    made.limits[0] = made.limits[2] = 0
    assert made.limits[3] == 0
    pool_of = made._read.__closure__
    assert pool_of is not None
    (pool,) = [cell.cell_contents for cell in pool_of if isinstance(cell.cell_contents, PagePool)]
    before = {name: getattr(made, name).clone() for name in ("lengths", "limits", "written")}
    keys = pool.keys.clone()
    for _ in range(3):
        made.step(4)
    others = [0, 2, 3]
    for key, value in before.items():
        assert getattr(made, key)[others].equal(value[others]), key
    assert made.lengths[1] == before["lengths"][1] + 3
    changed = (pool.keys != keys).any(0).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed == [int(made.table[1, 0])]


@pytest.mark.parametrize("way", WAYS)
def test_to_record_a_step_changes_nothing(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    WAYS[way](monkeypatch)
    _, made = seated("moonshine", 4)
    static = {key: value for key, value in vars(made).items() if isinstance(value, torch.Tensor)}
    before = {key: value.clone() for key, value in static.items()}
    with torch.no_grad():
        made.prepare(4)
    kept = made._memory[: 4 * made.length]
    assert before.pop("_memory")[: 4 * made.length].equal(kept) and 4 in made.graphs
    assert all(static[key].equal(value) for key, value in before.items())


def test_texts_take_the_first_seats_and_no_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    _, made = seated("moonshine", 8)
    before = {name: getattr(made, name).clone() for name in ("tokens", "lengths", "starts", "table")}
    made.move([2, 0], 4)
    assert all(getattr(made, name)[:2].equal(value[[2, 0]]) for name, value in before.items())
    assert (made.lengths < made.limits).tolist() == [True, True, *[False] * 6]


@torch.no_grad()
def test_a_step_is_the_likeliest_token_until_an_end_or_the_limit() -> None:
    """Against a model of a table, in which what follows a token is known."""
    follows = torch.tensor([0, 2, 3, 4, 5, 6, 7, 8, 9, 9])

    def read(ids: torch.Tensor, places: Places) -> torch.Tensor:
        assert places.positions.shape == places.cross_positions.shape == (4,)
        return torch.nn.functional.one_hot(follows[ids[:, 0]], 10).float()

    made = Seats(read, torch.device("cpu"), 4, 1, 1, 7, 2)
    plan = SimpleNamespace(max_length=7, limits=(7, 5, 7), eos=(6, 3), pad=0)
    made.sit(torch.tensor([[1, 4], [1, 6], [9, 1]]), torch.ones(3, dtype=torch.int64), plan)  # type: ignore[arg-type]
    assert made.write(3, 5) == 5
    assert made.written[:3].tolist() == [[1, 4, 5, 6, 0, 0, 0], [1, 6, 7, 8, 9, 0, 0], [9, 1, 2, 3, 0, 0, 0]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_after_warmup_nothing_is_recorded_any_more(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = WAYS[way](monkeypatch)
    model = fresh(name)
    stored = {key: value.clone() for key, value in model.state_dict().items()}
    model.warmup(batch_sizes=(1, 3, 5), seconds=(0.6, 1.0), max_new_tokens=30)
    made = model.model.decoder.seated.seats
    assert made.graphs.replays.keys() == {1, 2, 4, 8}
    # Steps of four numbers of rows, and encoders of three numbers of rows and two lengths.
    recorded = 4 * (4 + 3 * 2) * bool(log)
    assert len(log) == recorded
    model.warmup(batch_sizes=[5], seconds=[1.0], max_new_tokens=30)
    for rows, prompt in ((5, 1), (3, 4), (1, 2)):
        found = model.generate(**inputs(name, prompt, rows), eos_token_id=ENDS, max_new_tokens=26)
        with pytest.MonkeyPatch.context() as plain:
            plain.setattr(mixin, "serves", lambda device: False)
            expected = model.generate(**inputs(name, prompt, rows), eos_token_id=ENDS, max_new_tokens=26)
        assert found.tolist() == expected.tolist()
    assert model.model.decoder.seated.seats is made and len(log) == recorded
    assert model.state_dict().keys() == stored.keys()
    assert all(value.equal(stored[key]) for key, value in model.state_dict().items())


def test_warmup_on_the_cpu_lays_out_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("moonshine")
    with pytest.raises(ValueError, match=r"must be positive, not \[8, 0\] and \[10.0\]"):
        model.warmup(batch_sizes=(0, 8))
    model.warmup(batch_sizes=(1, 3), seconds=(1.0,))
    assert model.model.decoder.seated.seats is None
    relaid = model.model.decoder._relaid
    laid_out = {key: derived._kept for key, derived in relaid._kept.items()}
    assert laid_out and None not in laid_out.values()
    model.generate(**inputs("moonshine"), max_new_tokens=4)
    assert relaid._kept.keys() == laid_out.keys()
    assert all(derived._kept is laid_out[key] for key, derived in relaid._kept.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnAGPU:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_graphs_write_what_their_steps_write(
        self, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = fresh(name).to("cuda", dtype)
        for rows, limits in ((1, 30), (3, [7, 33, 21]), (5, 40)):
            audio = {
                key: value.to("cuda", dtype if value.is_floating_point() else None)
                for key, value in inputs(name, rows=rows).items()
            }
            options = {"max_new_tokens": limits, "eos_token_id": ENDS}
            found = model.generate(**audio, **options)
            made = model.model.decoder.seated.seats
            assert made is not None and sum(made.graphs.replays.values()) >= max(limits) if rows == 3 else True
            with monkeypatch.context() as eager:
                eager.setattr(graphs, "captures", lambda device: False)
                model.model.decoder.seated.drop()
                assert model.generate(**audio, **options).tolist() == found.tolist()
                model.model.decoder.seated.drop()
            if dtype == torch.float32:
                with monkeypatch.context() as step_by_step:
                    step_by_step.setattr(mixin, "serves", lambda device: False)
                    assert model.generate(**audio, **options).tolist() == found.tolist()

    @pytest.mark.parametrize("name", NAMES)
    def test_a_second_call_records_nothing_and_waits_only_to_look(self, name: str) -> None:
        model = fresh(name).to("cuda")
        audio = {key: value.to("cuda") for key, value in inputs(name).items()}
        model.generate(**audio, eos_token_id=[], max_new_tokens=20)
        made = model.model.decoder.seated.seats
        replays = dict(made.graphs.replays)
        assert replays == {4: 20}
        model.generate(**audio, eos_token_id=[], max_new_tokens=20)
        assert model.model.decoder.seated.seats is made and made.graphs.replays == {4: 40}
        before = made.lengths[:3].tolist()
        made.limits[:3] = made.length
        torch.cuda.set_sync_debug_mode("error")
        try:
            made.run(3, 2)
            look = made.look()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert look.known()[0, :3].tolist() == [length + 2 for length in before]
