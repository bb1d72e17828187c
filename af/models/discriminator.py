"""Two-scale image discriminator: the encoder's residual blocks, at full and half size."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from af.nn.equalized import EqualConv2d, EqualLinear, ResidualDown


class ScaleDiscriminator(nn.Module):
    """One logit for an image of `image_size` pixels (StyleGAN2's residual discriminator, without batch statistics)."""

    def __init__(self, image_size: int, channel_base: int, max_channels: int) -> None:
        super().__init__()
        sizes = [4 * 2**i for i in reversed(range(image_size.bit_length() - 2))]
        channels = [min(channel_base // size, max_channels) for size in sizes]
        self.from_rgb = EqualConv2d(3, channels[0], 1, activate=True)
        self.blocks = nn.Sequential(*(ResidualDown(a, b) for a, b in pairwise(channels)))
        self.last = EqualConv2d(channels[-1], channels[-1], 3, padding=1, activate=True)
        self.hidden = EqualLinear(channels[-1] * 16, channels[-1])
        self.logit = EqualLinear(channels[-1], 1)

    def forward(self, image: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, " B"]:
        """Logits: positive means real, negative generated."""
        x = self.last(self.blocks(self.from_rgb(image)))
        return self.logit(F.leaky_relu(self.hidden(x.flatten(1)), 0.2))[:, 0]


class Discriminator(nn.Module):
    """Logits at `scales` image sizes, each half the one before; sizes are powers of two of at least 8.

    Raises ValueError for a size that cannot be halved that often.
    """

    def __init__(
        self, image_size: int = 512, channel_base: int = 16384, max_channels: int = 512, scales: int = 2
    ) -> None:
        super().__init__()
        if image_size & (image_size - 1) or image_size >> (scales - 1) < 8:
            raise ValueError(f"{scales} scales need a power of two of at least {8 << (scales - 1)} px: {image_size}")
        self.scales = nn.ModuleList(
            ScaleDiscriminator(image_size >> i, channel_base, max_channels) for i in range(scales)
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Float[Tensor, "B 3 Y X"]) -> list[Float[Tensor, " B"]]:
        """One logit per image and scale."""
        x = image.contiguous(memory_format=torch.channels_last)
        logits = []
        for i, scale in enumerate(self.scales):
            x = F.avg_pool2d(x, 2) if i else x
            logits.append(scale(x))
        return logits
