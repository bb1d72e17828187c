"""The fixed [1, 3, 3, 1] resampling filter of the StyleGAN2 family: blur and upsample.

Both keep the memory layout of their input; channels-last is the fast one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

TAPS = (1.0, 3.0, 3.0, 1.0)


def blur_kernel(gain: float = 1.0) -> Float[Tensor, "1 1 4 4"]:
    """outer([1,3,3,1])/64·gain, the kernel for `blur`. Register it as a buffer so that it moves with its module."""
    taps = torch.tensor(TAPS) / sum(TAPS)
    return (torch.outer(taps, taps) * gain)[None, None]


class _Blur(torch.autograd.Function):
    """Depthwise convolution with the fixed kernel, and another blur as its gradient. Autograd would also compute a
    gradient for the constant kernel, and oneDNN's backward of depthwise convolutions is many times slower than its
    forward.
    """

    @staticmethod
    def forward(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
        return _convolved(x, kernel, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        _, kernel, ctx.padding = inputs
        ctx.save_for_backward(kernel)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        # The kernel is symmetric, so correlation equals convolution.
        return _Blur.apply(gradient, *ctx.saved_tensors, len(TAPS) - 1 - ctx.padding), None, None


def _convolved(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    kernel = kernel.to(x.dtype).expand(int(x.shape[1]), 1, len(TAPS), len(TAPS))
    return F.conv2d(x, kernel, padding=padding, groups=x.shape[1])


def blur(x: Float[Tensor, "B C Y X"], kernel: Float[Tensor, "1 1 4 4"], padding: int) -> Float[Tensor, "B C Y2 X2"]:
    """Convolve every channel with the `blur_kernel`, `padding` (0 to 3) zeros on each side."""
    if torch.onnx.is_in_onnx_export():  # which cannot look into functions with a gradient of their own
        return _convolved(x, kernel, padding)
    return _Blur.apply(x, kernel, padding)


def upsample2(x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y2 X2"]:
    """Double the size: zero insertion, padding (2, 1) and the kernel times 4, as one operation.

    The filter's weights on neighbouring pixels are (1/4, 3/4) and (3/4, 1/4): bilinear interpolation with zeros (not
    the repeated edge) outside.
    """
    padded = F.pad(x, (1, 1, 1, 1))
    return F.interpolate(padded, scale_factor=2, mode="bilinear", align_corners=False)[:, :, 2:-2, 2:-2]
