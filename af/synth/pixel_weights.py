"""Which pixels of a synthetic face count more when an image is reconstructed: eyes and mouth."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

from af.synth.appearance import Appearance
from af.synth.render import regions


@dataclass(frozen=True)
class EyesAndMouth:
    """1 + weight·mask for a frame's face parameters, the mask that of one typical face (a soft one fits them all)."""

    weight: float = 4.0
    appearance: Appearance = field(default_factory=lambda: Appearance.sample(np.random.default_rng(0)))

    def __call__(self, face: Float32[np.ndarray, " P"] | None, size: int) -> Float32[np.ndarray, "Y X"] | None:
        """Weights of a frame of `size` pixels; None where the face is not known."""
        if face is None:
            return None
        return 1 + self.weight * regions(face[None], self.appearance, size)[0]
