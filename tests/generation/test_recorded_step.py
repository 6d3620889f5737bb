"""Beams, drawn tokens and rules by recorded steps, on the CPU: the same tokens, steps that a CUDA graph can take."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastspeech.auto import FAMILIES
from fastspeech.generation import graphs, mixin
from fastspeech.generation.pages import PagedCache, PagePool
from fastspeech.generation.recorded import RecordedStep
from fastspeech.layers.seated import PAGE_SIZE, reader
from fastspeech.parity.models import EXAMPLES, with_random_weights
from tests.generation.tape import WAYS, as_on_a_device, as_on_a_gpu
from tests.generation.test_graphs import ENDS, NAMES, Linked, Watch, fresh, inputs, kept

SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 3, "max_new_tokens": 36},
    {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 18, "length_penalty": 0.5},
    {"do_sample": True, "temperature": 1.5, "max_new_tokens": 20, "num_return_sequences": 2},
    {"max_new_tokens": [5, 20, 33], "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
]
"""Over the ends of pages; of batches that shrink; of more rows than those before, and fewer."""


def found(model: Any, name: str, prompt: int = 2, rows: int = 3, **options: Any) -> list[list[int]]:
    torch.manual_seed(3)
    return model.generate(**inputs(name, prompt, rows), **{"eos_token_id": ENDS, **options}).tolist()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_sequences_are_those_of_generate_elsewhere(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [found(kept(name), name, **search) for search in SEARCHES]
    log = WAYS[way](monkeypatch)
    model = fresh(name)
    for search, sequences in zip(SEARCHES, expected, strict=True):
        assert found(model, name, **search) == sequences
    searched = model.model.decoder.searched
    assert searched.pool.in_use == searched.pool.reserved == 0
    assert sum(searched.reader.step.graphs.replays.values()) > 60 and bool(log) == (way == "graphs")
    recorded, step = len(log), searched.reader.step
    assert found(model, name, **SEARCHES[-1]) == expected[-1]
    assert searched.reader.step is step and len(log) == recorded


def test_what_changed_is_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    model = fresh("moonshine")
    searched = model.model.decoder.searched

    def written(**options: Any) -> Any:
        options = {"num_beams": 3, "max_new_tokens": 20, **options}
        sequences = found(model, "moonshine", **options)
        with pytest.MonkeyPatch.context() as plain:
            plain.setattr(mixin, "serves", lambda device: False)
            assert found(model, "moonshine", **options) == sequences
        return searched.reader.step

    first = written()
    assert written(max_new_tokens=12) is first and written(rows=1) is first
    assert written(num_beams=8) is not first
    held = written(max_new_tokens=70)
    assert written() is held
    with torch.no_grad():
        model.model.decoder.layers[0].mlp.fc1.weight.mul_(-1.5)
    changed = written()
    assert changed is not held and written() is changed
    model.to(torch.float32)
    assert searched.reader is searched.pool is None


@pytest.mark.parametrize("way", WAYS)
def test_after_warmup_nothing_is_recorded_any_more(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that searches with beams by itself, as checkpoints of Speech2Text do."""
    WAYS[way](monkeypatch)
    model = fresh("moonshine")
    model.generation_config.num_beams = 3
    model.warmup(batch_sizes=(2,), seconds=(1.0,), max_new_tokens=30)
    searched = model.model.decoder.searched
    step = searched.reader.step
    recorded = dict(step.graphs._recorded)
    assert recorded.keys() == {1, 2, 4, 8} and searched.pool.reserved == 0
    assert len(found(model, "moonshine", rows=2, max_new_tokens=28)[0]) > 4
    assert searched.reader.step is step and step.graphs._recorded == recorded
    assert model.model.decoder.seated.seats is not None


@pytest.mark.parametrize("way", WAYS)
def test_searches_go_on_beside_one_another(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One within a rule of another, in a pool that grows meanwhile, and one that fails."""
    many = {"num_beams": 5, "max_new_tokens": 40}
    expected = [found(kept("moonshine"), "moonshine", rows=2, num_beams=2, max_new_tokens=30), None]
    expected[1] = found(kept("moonshine"), "moonshine", prompt=1, rows=5, **many)
    WAYS[way](monkeypatch)
    model, inside, pages = fresh("moonshine"), [], []

    def ask_beside(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] == 12:
            pages.append(model.model.decoder.searched.pool.pages)
            inside.append(found(model, "moonshine", prompt=1, rows=5, **many))
            pages.append(model.model.decoder.searched.pool.pages)
        return scores

    def fail(ids: Tensor, scores: Tensor) -> Tensor:
        assert ids.shape[1] < 9
        return scores

    with pytest.raises(AssertionError):
        found(model, "moonshine", num_beams=2, logits_processor=[fail], max_new_tokens=30)
    pool = model.model.decoder.searched.pool
    assert pool.in_use == pool.reserved == 0
    # The rule lets no row leave, which changes nothing.
    two = found(model, "moonshine", rows=2, num_beams=2, max_new_tokens=30, logits_processor=[ask_beside])
    assert [two, inside[0]] == expected and pages[1] > pages[0]


def test_inference_mode_or_not_is_all_one(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"num_beams": 3, "max_new_tokens": 20}
    expected = found(kept("moonshine"), "moonshine", **options)
    as_on_a_device(monkeypatch)
    for first in (True, False):
        model = fresh("moonshine")
        for inference in (first, not first, first):
            with torch.inference_mode(inference):
                assert found(model, "moonshine", **options) == expected


def test_what_a_rule_keeps_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    scores: list[list[Tensor]] = [[], []]
    for way, model in enumerate((kept("moonshine"), fresh("moonshine"))):
        if way:
            as_on_a_gpu(monkeypatch)
        keep = scores[way].append
        found(
            model,
            "moonshine",
            logits_processor=[lambda ids, given, keep=keep: (keep(given), given)[1]],
            max_new_tokens=9,
        )
    assert len(scores[0]) == len(scores[1]) > 5
    for one, other in zip(*scores, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options", [{"return_dict_in_generate": True, "num_beams": 2}, {"assistant_model": kept("moonshine")}]
)
def test_what_is_read_over_memory_of_its_own(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_device(monkeypatch)
    model = fresh("moonshine")
    model.generate(**inputs("moonshine", rows=1), **options, max_new_tokens=5)
    assert model.model.decoder.searched.reader is None


def test_positions_go_on_beyond_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    family, example = FAMILIES["speech_to_text"], EXAMPLES["speech_to_text"]
    config = family.get(family.config)(**{**example.config, "max_target_positions": 8})
    texts = []
    for way in ("elsewhere", "recorded"):
        if way == "recorded":
            as_on_a_gpu(monkeypatch)
        model = with_random_weights(family.get(family.generator)(config), 0).float()
        texts.append(found(model, "speech_to_text", rows=1, num_beams=2, max_new_tokens=20, eos_token_id=[]))
    assert texts[0] == texts[1] and len(texts[0][0]) == 23


def stepping(name: str, device: str = "cpu") -> tuple[RecordedStep, PagePool, list[PagedCache]]:
    """A step with room for eight rows, and caches of three and two rows that have read 20 and 5 tokens, at random."""
    model = fresh(name).to(device)
    decoder = model.model.decoder
    with torch.no_grad():
        steps, head = model.functions()
    pool = PagePool(len(steps), decoder.kv_heads, decoder.head_dim, 40, page_size=PAGE_SIZE, device=device)
    for pages in (pool.keys, pool.values):
        pages.normal_()
    caches = []
    for rows, tokens, frames in ((3, 20, 18), (2, 5, 3)):
        caches.append(PagedCache(pool, rows, 44, frames))
        caches[-1].prepare(tokens)
        caches[-1].advance(tokens)
    return RecordedStep(reader(decoder, steps, head, pool), pool, 8, 3, 2), pool, caches


def ids_of(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(4, 50, (rows, 1), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_nothing_of_a_step_is_on_the_host_nor_of_other_shapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_device(monkeypatch)
    step, _, caches = stepping(name)
    static = {key: value for key, value in vars(step).items() if isinstance(value, Tensor)}
    addresses = {key: value.data_ptr() for key, value in static.items()}
    noted = []
    run = step.step

    def watched(rows: int) -> None:
        with Watch() as watch:
            run(rows)
        noted.append(watch.noted)

    monkeypatch.setattr(step, "step", watched)
    for at in range(18):
        assert step.read(ids_of(5, at), caches).shape[0] == 5
        caches[0].follow([at % 3, 1, at % 2])
    assert len(noted[0]) > 50 and all(each == noted[0] for each in noted)
    assert {key: vars(step)[key].data_ptr() for key in static} == addresses and len(static) == 4


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_cuda_tensors_needs_nothing_of_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
        monkeypatch.setattr(RecordedStep, "_tell", lambda *told: None)
        step = RecordedStep(reader(decoder, steps, head, pool), pool, 8, 3, 2)
        with Watch("cuda") as watch:
            step.step(4)
    assert len(watch.noted) > 50


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_a_step_changes_the_pages_of_its_rows_alone(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind steps of more rows, where a page is forked, and where one is recorded."""
    WAYS[way](monkeypatch)
    step, pool, caches = stepping("moonshine")
    step.read(ids_of(5), caches)
    caches[0].follow([0, 0, 2])
    before = pool.keys.clone()
    table = [list(pages) for pages in caches[0].tables]
    step.read(ids_of(3), caches[:1])
    changed = (pool.keys != before).any(0).flatten(1).any(1).nonzero().flatten().tolist()
    own = [pages[1] for pages in caches[0].tables]
    assert len(set(own)) == 3 and sorted(own) == changed
    (parted,) = set(own) - {pages[1] for pages in table}
    # What was read before the rows parted is in both pages.
    assert pool.keys[:, parted, :, :5].equal(before[:, table[0][1], :, :5])
    assert step.graphs.replays == {8: 1, 4: 1}


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_a_row_is_read_as_it_is_alone(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    WAYS[way](monkeypatch)
    step, pool, caches = stepping("moonshine")
    held = pool.keys.clone(), pool.values.clone()
    alone = []
    for cache, ids in zip(caches, ids_of(5).split([3, 2]), strict=True):
        alone.append(step.read(ids, [cache]))
        cache.length -= 1
    pool.keys.copy_(held[0])
    pool.values.copy_(held[1])
    torch.testing.assert_close(step.read(ids_of(5), caches), torch.cat(alone), atol=1e-5, rtol=0)


def test_copies_are_told_until_the_tokens_were_read() -> None:
    """A step that failed is taken again, and is to find what it was to copy."""
    _, _, (cache, _) = stepping("moonshine")
    cache.follow([0, 0, 0])
    copies = list(cache.prepare(1))
    assert len(copies) == 2 and cache.prepare(1) == copies
    cache.advance(1)
    assert cache.prepare(1) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnAGPU:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_graphs_find_what_their_steps_find(
        self, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = fresh(name).to("cuda", dtype)
        audio = {
            key: value.to("cuda", dtype if value.is_floating_point() else None)
            for key, value in inputs(name, 2).items()
        }
        searched = model.model.decoder.searched
        for search in SEARCHES:
            texts = []
            for captures, serves in ((True, True), (False, True), (False, False)):
                if not serves and (dtype != torch.float32 or "do_sample" in search):
                    continue
                with monkeypatch.context() as patch:
                    patch.setattr(graphs, "captures", lambda device, captures=captures: captures)
                    patch.setattr(mixin, "serves", lambda device, serves=serves: serves)
                    torch.manual_seed(3)
                    texts.append(model.generate(**audio, eos_token_id=ENDS, **search).tolist())
                    searched.drop()
            assert all(text == texts[0] for text in texts)

    @pytest.mark.parametrize("name", NAMES)
    @torch.no_grad()
    def test_a_step_waits_for_nothing(self, name: str) -> None:
        step, _, caches = stepping(name, "cuda")
        ids = ids_of(5).cuda()
        step.read(ids, caches)
        caches[0].follow([0, 0, 2])
        torch.cuda.set_sync_debug_mode("error")
        try:
            step.read(ids, caches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert step.graphs.replays == {8: 2}
