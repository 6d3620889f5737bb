"""Batches whose rows lie one behind the other: frames of transformers, each row as if alone, nothing for padding."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from test_recorded_encoder import HUNDREDTH, batch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fastspeech.auto import FAMILIES
from fastspeech.generation.interface import Record
from fastspeech.kernels import use_backend
from fastspeech.layers import packing
from fastspeech.layers.packing import Packed, Padded, counts_of
from fastspeech.parity.models import EXAMPLES
from tests.generation.tape import as_on_a_gpu
from tests.generation.test_graphs import NAMES, fresh, kept

WAYS = {
    "one by one": {"_SHORT": 0},
    "side by side, as on a GPU": {"_SHORT": 1 << 30},
    "in parts of one or two": {"_SHORT": 0, "_AT_ONCE": 45},
}
"""How what takes rows is called."""
HEARING = [*((name, None) for name in NAMES), ("moonshine", True)]
"""What is encoded, and with which exact_batching."""
LENGTHS = [60, 97, 23, 41]
ATTEND = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, **named: sdpa_flop_count(q, k, v)
}
"""What PyTorch does not count of itself."""
each_model = pytest.mark.parametrize(("name", "exact"), HEARING)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for setting, value in WAYS[request.param].items():
        monkeypatch.setattr(packing, setting, value)
    return request.param


def frames_by_row(output: Any) -> list[Tensor]:
    counts = output.attention_mask.sum(1).tolist()
    return [row[:count] for row, count in zip(output.last_hidden_state, counts, strict=True)]


def encoder(name: str) -> Any:
    """In float64."""
    return copy.deepcopy(kept(name).model.encoder).double()


def wide(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in inputs.items()}


@each_model
@torch.no_grad()
def test_frames_are_those_of_transformers(name: str, exact: bool | None, way: str) -> None:
    transformers = pytest.importorskip("transformers")
    family, example = FAMILIES[name], EXAMPLES[name]
    theirs = getattr(transformers, family.generator)(getattr(transformers, family.config)(**example.config)).eval()
    theirs.load_state_dict(kept(name).state_dict(), strict=False)
    main = kept(name).main_input_name
    inputs = batch(name, LENGTHS, 99, exact=exact)
    found = frames_by_row(kept(name).model.encoder(**inputs))
    inputs.pop("exact_batching", None)
    expected = list(theirs.model.encoder(**inputs).last_hidden_state)
    if exact:
        alone = [inputs[main][row : row + 1, : HUNDREDTH[name] * length] for row, length in enumerate(LENGTHS)]
        expected = [theirs.model.encoder(audio).last_hidden_state[0] for audio in alone]
    for row, wanted in zip(found, expected, strict=True):
        assert len(row) > 3
        torch.testing.assert_close(row, wanted[: len(row)], rtol=1e-4, atol=1e-4)


@each_model
@torch.no_grad()
def test_a_row_is_what_it_is_beside_others(name: str, exact: bool | None, way: str) -> None:
    """Alone, but as long as the batch, which some models hear; and beside a row that is no number."""
    inputs, ours = wide(batch(name, LENGTHS, 99, exact=exact)), encoder(name)
    main = kept(name).main_input_name
    whole = ours(**inputs)
    found = frames_by_row(whole)
    for row, frames in enumerate(found):
        own = {key: x[row : row + 1] if isinstance(x, Tensor) else x for key, x in inputs.items()}
        with torch.enable_grad():  # which is not packed
            [alone] = frames_by_row(ours(**own))
        torch.testing.assert_close(frames, alone.detach(), rtol=1e-9, atol=1e-9)
    inputs[main][1] = torch.nan
    for row, frames in enumerate(frames_by_row(ours(**inputs))):
        assert frames.isnan().all() if row == 1 else torch.equal(frames, found[row])
    assert not whole.last_hidden_state[~whole.attention_mask.bool()].any()


@each_model
@torch.no_grad()
def test_nothing_is_computed_for_padding(name: str, exact: bool | None, way: str) -> None:
    """In the layers: by every matrix each valid frame is multiplied once; one by one rows attend as they do alone."""
    ours, counted = encoder(name), []
    run = ours._run

    def count(*args: Any, **named: Any) -> Tensor:
        with FlopCounterMode(display=False, custom_mapping=ATTEND) as counter:
            out = run(*args, **named)
        counted.append(counter.get_flop_counts()["Global"])
        return out

    def flops(*rows: int) -> tuple[int, int]:
        counted.clear()
        ours(**{key: x[list(rows)] if isinstance(x, Tensor) else x for key, x in inputs.items()})
        by_weights = sum(each.get(op, 0) for each in counted for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
        return by_weights, sum(sum(each.values()) for each in counted)

    inputs = wide(batch(name, LENGTHS, 99, exact=exact))
    apart = ("relative_k_proj", "depthwise_conv", "bias_u", "bias_v")
    weights = [weight for key, weight in ours.layers.named_parameters() if not any(map(key.count, apart))]
    matrices = [weight for weight in weights if weight.dim() > 1]
    with use_backend("reference"):  # which the counter sees through
        frames = sum(map(len, frames_by_row(ours(**inputs))))
        ours._run = count
        by_weights, total = flops(*range(4))
        assert by_weights == 2 * frames * sum(map(Tensor.numel, matrices))
        alone = sum(flops(row)[1] for row in range(4))
    assert total > alone if way.startswith("side") else total == alone


@torch.no_grad()
@each_model
def test_full_rows_stay_side_by_side(name: str, exact: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = batch(name, [60, 60, 60], 60, exact=exact)
    with torch.enable_grad():
        expected = kept(name).model.encoder(**inputs).last_hidden_state.detach()
    monkeypatch.setattr(packing, "Packed", None)
    for given in (inputs, {key: x for key, x in inputs.items() if key != "attention_mask"}):
        found = kept(name).model.encoder(**given).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@each_model
@torch.no_grad()
def test_a_row_without_frames(name: str, exact: bool | None, way: str) -> None:
    inputs = batch(name, [97, 0, 41], 97, exact=exact)
    found = kept(name).model.encoder(**inputs)
    without = kept(name).model.encoder(**{key: x[::2] if isinstance(x, Tensor) else x for key, x in inputs.items()})
    torch.testing.assert_close(found.last_hidden_state[::2], without.last_hidden_state, rtol=1e-4, atol=1e-5)
    counts = found.attention_mask.sum(1).tolist()
    assert counts[1] == (counts[0] if name == "speech_to_text" else 0)
    assert found.last_hidden_state.isfinite().all() and not found.last_hidden_state[1, counts[1] :].any()


@pytest.mark.parametrize("one_by_one", [True, False])
def test_rows_that_lie_packed_do_not_meet(one_by_one: bool) -> None:
    counts = [3, 1, 5, 2]
    rows = Packed(counts, one_by_one, torch.device("cpu"))
    clips = [torch.randn(count, 2) for count in counts]

    def of_neighbours(x: Tensor, rows: Padded) -> Tensor:
        """What is before and behind a frame, and the sum over its row."""
        if rows.lengths is not None:
            x = x.masked_fill(~rows.mask()[..., None], 0)
        wider = torch.nn.functional.pad(x, (0, 0, 1, 1))
        return torch.cat((wider[:, :-2], wider[:, 2:], x.sum(1, keepdim=True).expand_as(x)), 2)

    found = rows.each(of_neighbours, torch.cat(clips)[None])
    expected = [of_neighbours(clip[None], Padded(None, len(clip)))[0] for clip in clips]
    torch.testing.assert_close(found, torch.cat(expected)[None])
    assert rows.frames == 5


def test_what_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    audio, valid = torch.empty(3, 400), torch.tensor([50, 40, 20])
    given = (valid, audio, 50, 64, Record(), False)
    assert counts_of(*given) is None  # gradients
    with torch.no_grad():
        assert counts_of(*given) == [50, 40, 20]
        assert counts_of(None, *given[1:]) == [50, 50, 50]
        assert counts_of(valid[:1], audio[:1], *given[2:]) is None  # full
        assert counts_of(valid[2:], audio[:1], *given[2:]) == [20]
        assert counts_of(*given[:4], Record(with_states=True), False) is None
        assert counts_of(*given[:4], Record(with_weights=True), False) is None
        assert counts_of(*given[:5], True) is None
        assert counts_of(valid.to("meta"), *given[1:]) is None  # which the host does not know
        # A GPU, for which so few frames are not worth it.
        there = audio.to("meta")
        assert counts_of(valid, there, *given[2:]) is None
        wide = (valid, there, 50, 1 << 13, Record(), False)
        assert counts_of(*wide) == [50, 40, 20]
        assert counts_of(torch.tensor([50, 50, 40]), *wide[1:]) is None  # of 150 frames 10 are padding
        assert counts_of(None, *wide[1:]) is None


@each_model
@torch.no_grad()
def test_a_mask_on_the_host_serves_another_device(
    name: str, exact: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By shapes, as no other device is there."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: nullcontext())  # which knows no such device
    monkeypatch.setattr(packing, "_WORTHWHILE", 0)
    lies = []
    monkeypatch.setattr(packing, "Packed", lambda *given: lies.append(given) or Packed(*given))
    inputs, ours = batch(name, LENGTHS, 99, exact=exact), copy.deepcopy(kept(name).model.encoder).to("meta")
    inputs[kept(name).main_input_name] = inputs[kept(name).main_input_name].to("meta")
    found = ours(**inputs)
    assert found.last_hidden_state.device.type == found.attention_mask.device.type == "meta" and len(lies) == 1
    assert found.last_hidden_state.shape[:2] == found.attention_mask.shape


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_encode_reads_the_mask_of_a_batch_that_is_not_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = fresh(name), batch(name, LENGTHS, 99)
    read: list[Tensor] = []
    given: list[Any] = []
    run = model.model.encoded
    monkeypatch.setattr(Tensor, "cpu", lambda mask: read.append(mask.clone()) or read[-1])
    monkeypatch.setattr(model.model, "encoded", lambda *inputs: given.append(inputs[1]) or run(*inputs))
    model.encode(inputs, with_states=True)
    with torch.enable_grad():
        model.encode(inputs)
    always = len(read) / 2  # CohereAsr cuts by it in any case
    assert len(given) == 2 and always == (name == "cohere_asr")
    model.encode(inputs)
    assert len(given) == 3 and given[2] is read[-1] and len(read) == 1 + 3 * always
    as_on_a_gpu(monkeypatch)
    model.encode(inputs)
    assert len(given) == 3 and len(read) == 1 + 4 * always
