"""Activation functions by the names that configurations use."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

Activation = Callable[[torch.Tensor], torch.Tensor]

_BY_NAME: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


def activation(name: str | Activation) -> Activation:
    """The function called `name` in a config.json; a function, which no file can hold, is itself.

    Raises:
        ValueError: an unknown name.
    """
    if callable(name):
        return name
    if name not in _BY_NAME:
        raise ValueError(f"unknown activation {name!r}; known are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
