"""Linear maps, several at a time or without ceremony."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fastspeech.kernels.onednn import linear, through_onednn
from fastspeech.layers.derived import Kept


class PackedLinear(Kept):
    """Several linear maps of one input, as one matrix product.

    Packing moves the parameters of the maps into one matrix and makes each a view of its rows: no memory is held twice,
    a write to a parameter is a write to the matrix, and `state_dict` stays as it is. What tears them apart again
    (`Module.to`, assigning a parameter) is seen by `function`, which then packs anew.
    """

    follows_writes = True

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None

    def function(self, maps: Sequence[nn.Linear]) -> Callable[[Tensor], Tensor]:
        """The function from x (..., in) to the outputs of `maps`, concatenated over the last axis.

        The maps all have a bias, or none has. With gradients, in a graph that is traced, or where something else has
        taken the place of one, they run one by one.
        """
        apart = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if apart or any(type(linear) is not nn.Linear for linear in maps):
            return lambda x: torch.cat([linear(x) for linear in maps], dim=-1)
        self._weight = weight = _pack(self._weight, [linear.weight for linear in maps])
        biases = [linear.bias for linear in maps if linear.bias is not None]
        self._bias = _pack(self._bias, biases) if biases else None
        return _product(weight, self._bias)


def _pack(packed: Tensor | None, parts: Sequence[Tensor]) -> Tensor:
    if packed is not None and packed.dtype == parts[0].dtype:
        start = packed.data_ptr()
        for part in parts:
            if part.data_ptr() != start:
                break
            start += part.numel() * part.element_size()
        else:
            return packed
    with torch.inference_mode(False), torch.no_grad():
        packed = torch.cat([part.detach() for part in parts])
        for part, rows in zip(parts, packed.split([part.shape[0] for part in parts]), strict=True):
            part.data = rows
    return packed


def direct(linear: nn.Module) -> Callable[[Tensor], Tensor]:
    """`linear` as a function of its present parameters, without the cost of calling a module, which a decoding step
    feels. With gradients, or where something else has taken the linear map's place, the module itself."""
    if torch.is_grad_enabled() or type(linear) is not nn.Linear:
        return linear
    return _product(linear.weight, linear.bias)


def rectified(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """max(0, .) of `module`, a linear map, as a function of its present parameters: one pass where oneDNN serves it."""
    if torch.is_grad_enabled() or type(module) is not nn.Linear or not through_onednn(module.weight):
        return lambda x: nn.functional.relu(module(x))
    return partial(linear, weight=module.weight, bias=module.bias, relu=True)


def pointwise(conv: nn.Conv1d) -> Callable[[Tensor], Tensor]:
    """A convolution of one tap as a function of x (..., channels) and of its present parameters."""
    weight, bias = conv.weight[..., 0], conv.bias
    if torch.is_grad_enabled():
        return partial(nn.functional.linear, weight=weight, bias=bias)
    return _product(weight, bias)


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    function = linear if through_onednn(weight) else nn.functional.linear
    return partial(function, weight=weight, bias=bias)
