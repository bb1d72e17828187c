"""Face parameters as a linear function of motion latents, for evaluation without decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from af.data.index import Index
from af.data.shards import ShardReader
from af.errors import UserError
from af.metrics.ridge import fit_ridge
from af.types import Clip, FaceSpec, MotionSpec


class LinearProbe:
    """Reads face parameters from motion latents; `r2` is its accuracy per parameter on clips left out of the fit."""

    def __init__(
        self,
        weights: Float[np.ndarray, "D P"],
        offset: Float[np.ndarray, " P"],
        face_spec: FaceSpec,
        motion_spec: MotionSpec,
        r2: Mapping[str, float],
    ) -> None:
        self.weights, self.offset, self.r2 = weights, offset, r2
        self.face_spec, self.motion_spec = face_spec, motion_spec

    @classmethod
    def fit(cls, index: Index, *, clips: int = 64) -> LinearProbe:
        """Fit on three quarters of the first `clips` conversations (both people), and test on the rest.

        Raises UserError when the shards lack motion or face parameters, or have only one clip.
        """
        reader, count = ShardReader(index), min(clips, len(index.samples))
        if count < 2:
            raise UserError(f"{index.folder}: a linear probe needs at least two conversations, found {count}")
        if missing := [m for m in ("a.motion.npy", "a.face.npy") if m not in index.samples[0].members]:
            raise UserError(
                f"{index.folder}: no {missing[0]} in its samples; a linear probe needs motion latents (af encode) and "
                "face parameters (synthetic shards have them)"
            )
        read, split = [reader.read(i, {"motion", "face"}) for i in range(count)], (3 * count) // 4
        weights, offset = fit_ridge(*_stacked(read[:split]))
        x, y = _stacked(read[split:])
        error, spread = np.square(y - x @ weights - offset).mean(0), y.var(0)
        specs: Mapping[str, Any] = index.specs
        face, motion = FaceSpec.from_json(specs["face"]), MotionSpec.from_json(specs["motion"])
        r2 = {n: float(1 - e / s) if s > 0 else float("nan") for n, e, s in zip(face.names, error, spread, strict=True)}
        name = f"linear-probe/{motion.autoencoder[:12]}"
        return cls(weights, offset, FaceSpec(face.names, face.expression, name), motion, r2)

    def __call__(self, motion: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T P"]:
        """Face parameters of motion latents."""
        return (motion @ self.weights + self.offset).astype(np.float32)


def _stacked(clips: list[Clip]) -> tuple[Float[np.ndarray, "N D"], Float[np.ndarray, "N P"]]:
    people = [person for clip in clips for person in (clip.a, clip.b)]
    motion = np.concatenate([p.motion for p in people if p.motion is not None])
    face = np.concatenate([p.face for p in people if p.face is not None])
    return motion.astype(np.float64), face.astype(np.float64)
