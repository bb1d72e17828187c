"""Layers with an equalised learning rate: weights are N(0, 1) and scaled by 1/sqrt(fan-in) where they are used.

Constant factors (that scale, the sqrt(2) of the activation, the 1/sqrt(2) of a residual sum) are folded into the
weights, which saves passes over the activations. This is exact because leaky ReLU is homogeneous: gain * leaky(x + b) =
leaky(gain * x + gain * b).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from af.nn.resample import blur, blur_kernel

SLOPE = 0.2
GAIN = math.sqrt(2)  # roughly restores the second moment after a leaky ReLU with slope 0.2


class EqualLinear(nn.Module):
    """Linear layer with weight / sqrt(inputs) and an unscaled bias."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.full((outputs,), float(bias)))
        self.scale = 1 / math.sqrt(inputs)

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """x W^T / sqrt(I) + bias."""
        return F.linear(x * self.scale, self.weight, self.bias)


class EqualConv2d(nn.Module):
    """Convolution with weight / sqrt(inputs * size^2); `activate` adds a bias and a leaky ReLU times sqrt(2).

    `gain` multiplies the result and is folded into the weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        activate: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if activate else None
        self.stride, self.padding = stride, padding
        self.bias_gain = gain * (GAIN if activate else 1.0)
        self.scale = self.bias_gain / math.sqrt(inputs * size**2)

    def forward(self, x: Float[Tensor, "B I Y X"]) -> Float[Tensor, "B O Y2 X2"]:
        """The convolution, and with `activate` leaky(conv(x) + bias) * sqrt(2), times the gain."""
        bias = None if self.bias is None else self.bias * self.bias_gain
        y = F.conv2d(x, self.weight * self.scale, bias, stride=self.stride, padding=self.padding)
        return y if self.bias is None else F.leaky_relu(y, SLOPE, inplace=True)


class ResidualDown(nn.Module):
    """Residual block that halves the image: 3x3, blur + strided 3x3; skip: blur + strided 1x1; sum / sqrt(2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = EqualConv2d(inputs, inputs, 3, padding=1, activate=True)
        self.conv2 = EqualConv2d(inputs, outputs, 3, stride=2, activate=True, gain=1 / math.sqrt(2))
        self.skip = EqualConv2d(inputs, outputs, 1, stride=2, gain=1 / math.sqrt(2))
        self.register_buffer("kernel", blur_kernel(), persistent=False)

    kernel: Tensor

    def forward(self, x: Float[Tensor, "B I Y X"]) -> Float[Tensor, "B O Y2 X2"]:
        """Features at half the height and width."""
        main = self.conv2(blur(self.conv1(x), self.kernel, padding=2))
        return main + self.skip(blur(x, self.kernel, padding=1))
