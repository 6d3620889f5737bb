"""A small op with a stand-in for a kernel in plain PyTorch, and the bugs that the checks must find in it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op
from fastspeech.kernels.spec import Case, Cost, OpSpec


def seeded_smooth(x: Tensor, weight: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Three taps along time over the valid samples of each row: x (batch, time), weight (3,), lengths (batch,)."""
    valid = torch.arange(x.shape[1]) < lengths[:, None]
    return scale * F.conv1d(x.masked_fill(~valid, 0)[:, None], weight[None, None], padding=1)[:, 0]


class _Anywhere(Implementation):
    def refusal(self, args: tuple[Any, ...]) -> str | None:
        return self.limits(*args)


_op = Op(
    seeded_smooth,
    lambda x, weight, lengths, scale: x.new_empty(x.shape),
    (_Anywhere("cuda", "kernel_seeds", lambda *args: None),),
)

SPEC = OpSpec(
    name="seeded_smooth",
    summary="three taps along time",
    call=lambda x, weight, lengths, scale: _op(x, weight, lengths, scale),
    inputs=lambda dtype, generator, batch, time: {
        "x": torch.randn(batch, time, generator=generator, dtype=torch.float64).to(dtype),
        "weight": torch.rand(3, generator=generator, dtype=torch.float64).to(dtype),
        "lengths": torch.arange(batch) + time - batch,
        "scale": 0.7,
    },
    cases=(Case("only", "ordinary", {"batch": 3, "time": 13}),),
    cost=lambda itemsize, batch, time: Cost(2 * itemsize * batch * time, 6 * batch * time),
    padding=lambda x, lengths, **rest: {"x": torch.arange(x.shape[1]) >= lengths[:, None]},
    batched=("x", "lengths"),
)


def _padded(x: Tensor, lengths: Tensor) -> Tensor:
    return F.pad(x.masked_fill(torch.arange(x.shape[1]) >= lengths[:, None], 0), (1, 1))


def right(x: Tensor, weight: Tensor, lengths: Tensor, scale: float) -> Tensor:
    out = x.new_empty(x.shape)
    padded = _padded(x, lengths)
    time = x.shape[1]
    return torch.mul(sum(weight[k] * padded[:, k : k + time] for k in range(3)), scale, out=out)


launch = right


def wrong_scale(x, weight, lengths, scale):
    return right(x, weight, lengths, scale * 1.001)


def short_halo(x, weight, lengths, scale):
    return right(x, weight * torch.tensor([1, 1, 0]), lengths, scale)


def no_mask(x, weight, lengths, scale):
    return right(x, weight, torch.full_like(lengths, x.shape[1]), scale)


def mask_by_product(x, weight, lengths, scale):
    return right(x * (torch.arange(x.shape[1]) < lengths[:, None]), weight, torch.full_like(lengths, 99), scale)


def strides_ignored(x, weight, lengths, scale):
    dense = x.as_strided(x.shape, (x.shape[1], 1)) if x.stride(-1) != 1 else x
    return right(dense, weight, lengths, scale)


def offset_ignored(x, weight, lengths, scale):
    return right(x, weight.as_strided((3,), weight.stride(), 0), lengths, scale)


def rows_leak(x, weight, lengths, scale):
    out = right(x, weight, lengths, scale)
    out[1:, 0] += 0 * out[:-1, 0]
    return out


def operand_ignored(x, weight, lengths, scale):
    return right(x, weight, lengths, 0.7)


def input_changed(x, weight, lengths, scale):
    out = right(x, weight, lengths, scale)
    x.mul_(1.5)
    return out


def output_is_input(x, weight, lengths, scale):
    return x.copy_(right(x, weight, lengths, scale))


def output_not_dense(x, weight, lengths, scale):
    return right(x, weight, lengths, scale).T.contiguous().T


def not_repeatable(x, weight, lengths, scale):
    return right(x, weight, lengths, scale) * (1 + 1e-7 * torch.rand(x.shape))


def end_not_written(x, weight, lengths, scale):
    out = x.new_empty(x.shape)
    out[:, :-1] = right(x, weight, lengths, scale)[:, :-1]
    return out


def _behind(tensor: Tensor) -> Tensor | None:
    """The element behind a tensor's last, where its memory goes on."""
    index = tensor.storage_offset() + tensor.numel()
    room = index < tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided((1,), (1,), index) if room else None


def write_behind(x, weight, lengths, scale):
    out = right(x, weight, lengths, scale)
    if (behind := _behind(out)) is not None:
        behind.fill_(1)
    return out


def read_behind(x, weight, lengths, scale):
    out = right(x, weight, lengths, scale)
    if (behind := _behind(weight)) is not None:
        out += 0 * behind
    return out


BUGS = {
    wrong_scale: ("parity", "errs by"),
    short_halo: ("parity", "errs by"),
    no_mask: ("parity", "errs by"),
    mask_by_product: ("padding", "depends on the padding"),
    strides_ignored: ("layouts", "strided x"),
    offset_ignored: ("layouts", "strided weight"),
    rows_leak: ("rows", "row 1 depends on another row"),
    operand_ignored: ("operands", "scale has no effect"),
    input_changed: ("repeats", "x was changed"),
    output_is_input: ("parity", "shares memory"),
    output_not_dense: ("parity", "not contiguous"),
    not_repeatable: ("repeats", "from one call to the next"),
    end_not_written: ("bounds", "not all written"),
    write_behind: ("bounds", "written around allocation 0"),
    read_behind: ("bounds", "lies around the inputs"),
}
"""Each bug, the check that is there for it, and what that says."""
