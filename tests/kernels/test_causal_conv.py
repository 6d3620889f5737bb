"""causal_conv beyond its record: PyTorch's convolution, any way of cutting a stream, what is refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastspeech.kernels import causal_conv


@pytest.mark.parametrize(("taps", "stride"), [(7, 1), (3, 1), (1, 1), (8, 4), (10, 5), (4, 4), (5, 3)])
@pytest.mark.parametrize("elu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_is_a_convolution_however_the_stream_is_cut(taps: int, stride: int, elu: bool, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, weight, shift = normal(2, 6, 12 * stride), normal(9, 6, taps), normal(9) if bias else None
    expected = F.conv1d(F.pad(F.elu(x) if elu else x, (taps - stride, 0)), weight, shift, stride)
    residual = normal(2, 12, 9)
    matrix = weight.transpose(1, 2).flatten(1)
    for cuts in ([12], [1] * 12, [5, 1, 6], [2, 10]):
        state = torch.zeros(2, taps - stride, 6, dtype=torch.float64)
        found = []
        for piece, added in zip(x.split([n * stride for n in cuts], 2), residual.split(cuts, 1), strict=True):
            y, state = causal_conv(piece.transpose(1, 2), state, matrix, shift, added, stride, elu)
            found.append(y)
        torch.testing.assert_close(torch.cat(found, 1), expected.transpose(1, 2) + residual)


def arguments(**changes: Any) -> dict[str, Any]:
    made = {
        "x": torch.zeros(2, 8, 3),
        "state": torch.zeros(2, 4, 3),
        "weight": torch.zeros(5, 24),
        "bias": torch.zeros(5),
        "residual": torch.zeros(2, 2, 5),
        "stride": 4,
    }
    return made | changes


@pytest.mark.parametrize(
    ("changes", "error", "what"),
    [
        ({"x": torch.zeros(2, 7, 3)}, ValueError, "x has 7 frames, which is no positive multiple of the stride 4"),
        ({"x": torch.zeros(2, 0, 3)}, ValueError, "x has 0 frames"),
        ({"stride": 0}, ValueError, "stride 0"),
        ({"x": torch.zeros(8, 3)}, ValueError, "x must have shape"),
        ({"state": torch.zeros(1, 4, 3)}, ValueError, "state must have shape"),
        ({"state": torch.zeros(2, 3, 3)}, ValueError, "weight must have shape"),
        ({"weight": torch.zeros(5, 8, 3)}, ValueError, "weight must have shape"),
        ({"bias": torch.zeros(4)}, ValueError, "bias must have shape"),
        ({"residual": torch.zeros(2, 8, 5)}, ValueError, "residual must have shape"),
        ({"state": torch.zeros(2, 4, 3).double()}, ValueError, "must agree"),
        ({"bias": torch.zeros(5, dtype=torch.int64)}, TypeError, "bias must be floating"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], error: type[Exception], what: str) -> None:
    causal_conv(**arguments())
    with pytest.raises(error, match=what):
        causal_conv(**arguments(**changes))
