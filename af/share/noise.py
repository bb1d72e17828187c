"""The noise of torch's CPU generator without torch: a seed gives the same motion in both."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32


class Noise:
    """`torch.randn` of `torch.Generator().manual_seed(seed)`, up to rounding, for 16 numbers or more at a time."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(seed & 0xFFFFFFFF)

    def __call__(self, *shape: int) -> Float32[np.ndarray, "*shape"]:
        """Standard normal numbers."""
        count = math.prod(shape)
        if count < 16:
            raise ValueError(f"{count} numbers; torch draws fewer than 16 in another way")
        values = self._uniform(count)
        whole = count - count % 16
        values[:whole] = _normal(values[:whole])
        if whole < count:  # torch draws the last 16 again
            values[-16:] = _normal(self._uniform(16))
        return values.reshape(shape)

    def _uniform(self, count: int) -> np.ndarray:
        drawn = np.frombuffer(self._bits.bytes(4 * count), "<u4") & 0xFFFFFF
        return drawn.astype(np.float32) / np.float32(1 << 24)


def _normal(uniform: np.ndarray) -> np.ndarray:
    """Box and Muller's transform of 8 pairs at a time."""
    first, second = uniform.reshape(-1, 2, 8).transpose(1, 0, 2)
    radius, angle = np.sqrt(-2 * np.log(1 - first)), np.float32(2 * math.pi) * second
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), 1).ravel()
