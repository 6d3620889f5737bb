"""page_append: new keys and values, the keys rotated by their positions, written into the pages of a cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op
from fastspeech.kernels.page_append.reference import page_append as _reference


def _limits(keys: Tensor, *rest: Any) -> str | None:
    return "float64 is served by the reference" if keys.element_size() > 4 else None


_op = Op(
    _reference,
    lambda *args: None,
    (
        Implementation("triton", "fastspeech.kernels.page_append.triton", _limits),
        Implementation("cuda", "fastspeech.kernels.page_append.cuda", _limits, on_cpu=True),
    ),
    mutates=("key_pages", "value_pages"),
)


def page_append(
    keys: Tensor,
    values: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor | None,
    positions: Tensor,
    counts: Tensor | None = None,
    inv_freq: Tensor | None = None,
    interleaved: bool = False,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> None:
    """Write new keys and values into the pages of their rows, the keys rotated by their positions (Su et al. 2021).

    The token at position p of a row goes to slot p % page_size of page table[row, p // page_size % columns]: with
    fewer columns than pages that the row has filled, the table is a ring, and the new token replaces an old one.
    Pair m of a key, at dims (2m, 2m + 1) where interleaved and (m, pairs + m) where not, is turned by the angle
    position * inv_freq[m]; the dims behind 2 * pairs stay as they are. Angles, cosines and sines are float32.

    Pages may be float8_e4m3fn: what is stored is the nearest such number to the value over its head's scale, of two
    equally near the even one, and of what is beyond 448 that of 448 (Micikevicius et al. 2022).

    Args:
        keys, values: (rows, tokens, kv_heads, head_dim), any strides.
        key_pages, value_pages: (pages, kv_heads, page_size, head_dim), any strides, in the dtype of keys or
            float8_e4m3fn; written into.
        table: (rows, columns) int32, the pages of each row; entries that no new token falls into may hold anything.
            None where row r owns page r alone.
        positions: (rows,) int64, the position of each row's first new token; of a row where it is negative nothing
            is written.
        counts: (rows,) int32 or int64, how many of the tokens each row really has; None for all.
        inv_freq: (pairs,), float32 or the dtype of keys, 2 * pairs <= head_dim; None where the keys are not rotated
            here.
        interleaved: which dims make a pair.
        key_scales, value_scales: (kv_heads,), float32 or the dtype of keys, positive; what a head's keys or values are
            divided by. None for 1.

    No two new tokens may fall into the same slot of the same page, nor a new token into a page that is not there.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit; more tokens than a row has slots.
        RuntimeError: a gradient is to be recorded, of which this op has none.
    """
    checks.rank("keys", keys, 4, "(rows, tokens, kv_heads, head_dim)")
    rows, tokens, kv_heads, head_dim = keys.shape
    checks.shape("values", values, tuple(keys.shape), "keys' shape")
    checks.pages(key_pages, value_pages)
    pages, _, page_size, _ = key_pages.shape
    checks.shape(
        "key_pages", key_pages, (pages, kv_heads, page_size, head_dim), "(pages, kv_heads, page_size, head_dim)"
    )
    checks.floating(keys=keys, values=values)
    checks.stored(key_pages, keys, key_scales=key_scales, value_scales=value_scales)
    checks.rows_of_pages(table, positions, rows, key_pages)
    checks.lengths(counts, rows, keys.device)
    checks.rotation(inv_freq, keys)
    slots = page_size * (1 if table is None else table.shape[1])
    if tokens > slots:
        raise ValueError(f"{tokens} new tokens do not fit the {slots} slots of a row")
    return _op(
        keys,
        values,
        key_pages,
        value_pages,
        table,
        positions,
        counts,
        inv_freq,
        interleaved,
        key_scales,
        value_scales,
    )
