"""Pixel weights for reconstructing face crops without landmarks of eyes and mouth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32


@dataclass(frozen=True)
class FaceCentre:
    """Weights 1 + weight·mask, with a Gaussian mask on the middle of the face, from the eyes to below the mouth.

    `y`, `x` is its centre and `radius` its standard deviation, all in crop sides. It suits crops of `af ingest`, which
    have the face in the middle; a head that moves far within its crop needs landmarks instead.
    """

    weight: float = 4.0
    y: float = 0.55
    x: float = 0.5
    radius: float = 0.13

    def __call__(self, face: Float32[np.ndarray, " P"] | None, size: int) -> Float32[np.ndarray, "Y X"]:
        """Pixel weights for a frame of `size` pixels; face parameters are ignored."""
        place = (np.arange(size, dtype=np.float32) + 0.5) / size
        distance = np.square(place[:, None] - self.y) + np.square(place[None] - self.x)
        return (1 + self.weight * np.exp(-distance / (2 * self.radius**2))).astype(np.float32)
