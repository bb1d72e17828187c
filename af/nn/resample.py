"""The fixed [1, 3, 3, 1] resampling filter of the StyleGAN2 family: blur, halve, double.

All three are depthwise convolutions with one kernel for every channel, so they keep the memory layout they are given
(channels-last is the fast one) and cost one pass over the activations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

TAPS = (1.0, 3.0, 3.0, 1.0)


def _kernel(x: Tensor, gain: float) -> Tensor:
    taps = torch.tensor(TAPS, dtype=x.dtype, device=x.device)
    taps = taps / taps.sum()
    channels = x.shape[1]
    return (torch.outer(taps, taps) * gain).expand(channels, 1, len(TAPS), len(TAPS))


def blur(x: Float[Tensor, "B C Y X"], padding: int, stride: int = 1, gain: float = 1.0) -> Float[Tensor, "B C Y2 X2"]:
    """Convolve every channel with outer([1,3,3,1])/64·gain, `padding` zeros on each side, then keep every `stride`-th.

    Keeping every second value inside the convolution is the same as blurring everything and dropping three quarters of
    it (a 1x1 convolution with stride 2 that follows only reads those), at a quarter of the work.
    """
    return F.conv2d(x, _kernel(x, gain), padding=padding, stride=stride, groups=x.shape[1])


def upsample2(x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y2 X2"]:
    """Twice the size: zero insertion, padding (2, 1) and the kernel times 4, as one operation.

    That filter has the weights (1/4, 3/4) and (3/4, 1/4) on neighbouring pixels, which is bilinear interpolation with
    zeros (not the repeated edge) outside.
    """
    padded = F.pad(x, (1, 1, 1, 1))
    return F.interpolate(padded, scale_factor=2, mode="bilinear", align_corners=False)[:, :, 2:-2, 2:-2]
