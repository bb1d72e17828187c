"""Style-modulated convolutions, computed on activations.

Scaling a convolution's weights per sample (StyleGAN2) equals scaling its input channels by the style and its output
channels by the demodulation factor. One dense convolution then serves the whole batch, without a copy of the weights
per sample. The two factors depend only on the style code: `modulation` computes them once for all frames.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from af.nn.equalized import GAIN, SLOPE, EqualLinear
from af.nn.precision import without_autocast
from af.nn.resample import blur, blur_kernel


class Modulation(NamedTuple):
    """Factors on the input channels (including the equalising scale) and on the output channels."""

    inputs: Float[Tensor, "B I"]
    outputs: Float[Tensor, "B O"]

    def at(self, index: slice | Tensor) -> Modulation:
        """The factors of the samples `index`."""
        return Modulation(self.inputs[index], self.outputs[index])


class StyledConv(nn.Module):
    """Modulated and demodulated 3x3 convolution + bias + leaky ReLU * sqrt(2); `up` doubles the size.

    `up` is a transposed convolution with stride 2 (to 2Y + 1), then the blur times 4 (to 2Y). Its weight has the layout
    of transposed convolutions, (inputs, outputs, 3, 3).
    """

    def __init__(self, inputs: int, outputs: int, style_dim: int, *, up: bool = False, eps: float = 1e-8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn((inputs, outputs, 3, 3) if up else (outputs, inputs, 3, 3)))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.style = EqualLinear(style_dim, inputs, bias=1.0)
        self.up, self.eps = up, eps
        self.scale = 1 / math.sqrt(inputs * 9)
        if up:
            self.register_buffer("kernel", blur_kernel(4.0), persistent=False)

    kernel: Tensor

    def modulation(self, code: Float[Tensor, "B D"]) -> Modulation:
        """Factors for style codes; the demodulated output has unit variance for unit-variance input."""
        inputs = self.style(code) * self.scale
        power = self.weight.square().sum((2, 3))  # (O, I), or (I, O) for `up`
        outputs = torch.rsqrt(inputs.square() @ (power if self.up else power.T) + self.eps)
        return Modulation(inputs, outputs)

    def forward(self, x: Float[Tensor, "B I Y X"], modulation: Modulation) -> Float[Tensor, "B O Y2 X2"]:
        """leaky(outputs * conv(inputs * x) + bias) * sqrt(2)."""
        x = x * modulation.inputs[:, :, None, None].to(x.dtype)
        if self.up:
            y = blur(F.conv_transpose2d(x, self.weight, stride=2), self.kernel, padding=1)
        else:
            y = F.conv2d(x, self.weight, padding=1)
        bias = (self.bias * GAIN)[None, :, None, None].to(y.dtype)
        factor = (modulation.outputs * GAIN)[:, :, None, None].to(y.dtype)
        return F.leaky_relu(torch.addcmul(bias, y, factor), SLOPE, inplace=True)


class ModulatedProjection(nn.Module):
    """Modulated 1x1 convolution to a few channels, not demodulated, + bias.

    With so few outputs the per-sample weights are tiny, so the factors of the input channels are folded into them and
    the convolution is a batched matrix product over the pixels. Weights start at zero: a flow that starts as noise
    takes long to become smooth.
    """

    def __init__(self, inputs: int, outputs: int, style_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.style = EqualLinear(style_dim, inputs, bias=1.0)
        self.scale = 1 / math.sqrt(inputs)

    def modulation(self, code: Float[Tensor, "B D"]) -> Float[Tensor, "B I"]:
        """Factors on the input channels, including the equalising scale."""
        return self.style(code) * self.scale

    def forward(self, x: Float[Tensor, "B I Y X"], factors: Float[Tensor, "B I"]) -> Float[Tensor, "B O Y X"]:
        """The projection of every pixel, in the weights' precision (flows and colours are summed over scales)."""
        batch, channels, height, width = x.shape
        weight = (self.weight * factors[:, None]).transpose(1, 2)  # (B, I, O)
        pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        # bfloat16 would round a flow by a quarter of a pixel at 512 px
        with without_autocast(x.device):
            y = torch.bmm(pixels.to(weight.dtype), weight) + self.bias
        return y.view(batch, height, width, -1).permute(0, 3, 1, 2)
