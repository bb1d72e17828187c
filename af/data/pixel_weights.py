"""Which pixels of a face crop count more when an image is reconstructed, where nobody has marked eyes and mouth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32


@dataclass(frozen=True)
class FaceCentre:
    """1 + weight·mask, the mask a Gaussian over the middle of the face, from the eyes to below the mouth.

    `y`, `x` is its centre and `radius` its standard deviation, all as shares of the crop's side. `af ingest` crops with
    the face in the middle; a head that moves far in its crop wants landmarks instead.
    """

    weight: float = 4.0
    y: float = 0.55
    x: float = 0.5
    radius: float = 0.13

    def __call__(self, face: Float32[np.ndarray, " P"] | None, size: int) -> Float32[np.ndarray, "Y X"]:
        """Weights of a frame of `size` pixels; face parameters are not looked at."""
        place = (np.arange(size, dtype=np.float32) + 0.5) / size
        distance = np.square(place[:, None] - self.y) + np.square(place[None] - self.x)
        return (1 + self.weight * np.exp(-distance / (2 * self.radius**2))).astype(np.float32)
