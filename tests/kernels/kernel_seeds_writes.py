"""A small op that writes into its argument, and the bugs that the checks must find in it."""

import torch
from torch import Tensor

from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op
from fastspeech.kernels.spec import Case, Cost, OpSpec
from fastspeech.kernels.tolerance import EXACT


def seeded_put(x: Tensor, store: Tensor, at: Tensor) -> None:
    """Row x[i] into slot at[i] of the store, unless that is negative: x (rows, width), store (slots, width)."""
    store[at[at >= 0]] = x[at >= 0]


# Dispatch runs an implementation of this name on any device.
_op = Op(
    seeded_put,
    lambda *args: None,
    (Implementation("cuda", "kernel_seeds_writes", lambda *args: None),),
    mutates=("store",),
)

SPEC = OpSpec(
    name="seeded_put",
    summary="rows into slots",
    call=lambda x, store, at: _op(x, store, at),
    inputs=lambda dtype, generator, rows, width: {
        "x": torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype),
        "store": torch.randn(2 * rows, width, generator=generator, dtype=torch.float64).to(dtype),
        "at": torch.arange(rows) * 2 - 1,
    },
    cases=(Case("only", "ordinary", {"rows": 3, "width": 5}),),
    cost=lambda itemsize, rows, width: Cost(2 * itemsize * rows * width, 0),
    padding=lambda x, at, **rest: {"x": (at < 0)[:, None]},
    tolerance=EXACT,
)


def right(x: Tensor, store: Tensor, at: Tensor) -> None:
    for row, slot in zip(x, at.tolist(), strict=True):
        if slot >= 0:
            store[slot].copy_(row)


launch = right


def nothing_written(x, store, at):
    pass


def copy_written(x, store, at):
    right(x, store.clone(), at)


def rounded(x, store, at):
    right(x.bfloat16().to(x), store, at)


def neighbour_written(x, store, at):
    right(x, store, at)
    store[2] *= 1.001


def idle_written(x, store, at):
    right(x, store, at.clamp(min=0).sort(descending=True).values)


def idle_read(x, store, at):
    right(x, store, at)
    store += 0 * x[0]


def strides_ignored(x, store, at):
    right(x, store.as_strided(store.shape, (store.shape[1], 1)) if store.stride(1) == 2 else store, at)


def holes_written(x, store, at):
    right(x, store, at)
    if store.stride(1) == 2:
        store.as_strided((1,), (1,), store.storage_offset() + 1).fill_(0)


def write_behind(x, store, at):
    right(x, store, at)
    index = store.storage_offset() + store.numel()
    if index < store.untyped_storage().nbytes() // store.element_size():
        store.as_strided((1,), (1,), index).fill_(0)


def input_changed(x, store, at):
    right(x, store, at)
    x.mul_(1.5)


def not_repeatable(x, store, at):
    right(x * (1 + 1e-6 * torch.rand(x.shape)), store, at)


def operand_ignored(x, store, at):
    right(x, store, torch.arange(len(x)) * 2 - 1)


BUGS = {
    nothing_written: ("parity", "errs by"),
    copy_written: ("parity", "errs by"),
    rounded: ("parity", "errs by"),
    neighbour_written: ("parity", "store is changed where it is to be left"),
    idle_written: ("parity", "store is changed where it is to be left"),
    idle_read: ("padding", "depends on the padding"),
    strides_ignored: ("layouts", "strided store"),
    holes_written: ("layouts", "written around store"),
    write_behind: ("bounds", "written around store"),
    input_changed: ("repeats", "x was changed"),
    not_repeatable: ("repeats", "from one call to the next"),
    operand_ignored: ("operands", "at has no effect"),
}
"""Each bug, the check that is there for it, and what that says."""
