from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from af.types import FaceSpec


class Brightness:
    """Reads two parameters: how bright the upper and the lower half of an image are."""

    face_spec = FaceSpec(("smile", "pitch"), 1, "af_example/1")

    def track(self, frames: UInt8[np.ndarray, "T Y X 3"]) -> Float[np.ndarray, "T 2"]:
        middle = frames.shape[1] // 2
        return np.stack([half.mean((1, 2, 3)) / 255 for half in (frames[:, :middle], frames[:, middle:])], axis=1)
