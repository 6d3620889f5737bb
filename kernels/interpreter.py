"""Triton's interpreter, made to treat bfloat16 and masked loads as a GPU does.

As it comes, it truncates float32 to bfloat16 where hardware rounds to nearest even, multiplies bfloat16 matrices as
the integers it stores them in, and gives 0 for the lanes that a load without `other` masks out, which are undefined.
Here such a lane of floats is NaN, so that a kernel which uses it fails.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def _bfloat16(values: np.ndarray) -> np.ndarray:
    rounded = torch.from_numpy(np.array(values, np.float32)).to(torch.bfloat16)
    return rounded.view(torch.uint16).numpy()


def _float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _widened(handle: Any) -> Any:
    return interpreter.TensorHandle(_float32(handle.data), tl.float32) if handle.dtype.scalar == tl.bfloat16 else handle


@cache
def correct() -> None:
    """Put the corrections in place, once in a process."""
    builder = interpreter.InterpreterBuilder
    convert, dot, load = interpreter._convert_float, builder.create_dot, builder.create_masked_load

    def convert_rounding(values: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if source == tl.float32 and target == tl.bfloat16:
            return _bfloat16(values)
        return convert(values, source, target, rounding)

    def dot_in_float32(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, _widened(a), _widened(b), *rest)

    def load_undefined(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        kind = pointers.get_element_ty()
        if other is None and kind.is_floating():
            nan = np.full(pointers.data.shape, np.nan, np.float32)
            stored = _bfloat16(nan) if kind == tl.bfloat16 else nan.astype(interpreter._get_np_dtype(kind))
            other = interpreter.TensorHandle(stored, kind)
        return load(self, pointers, mask, other, *rest)

    interpreter._convert_float = convert_rounding
    builder.create_dot = dot_in_float32
    builder.create_masked_load = load_undefined
