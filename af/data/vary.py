"""Random changes of training pairs, so that a few dozen people look like more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from af.specs import FaceSpec
from af.values import require_number

#: Face parameters that change sign in a mirror, of MediaPipe and of synthetic faces.
_TURNED = frozenset({"yaw", "roll", "translate_x", "gaze_x", "shift_x"})


@dataclass(frozen=True)
class Vary:
    """The same random change of both frames of a pair: of light and colours, by about `colours` of their range, and,
    with `mirror`, left and right exchanged in half of the pairs, in the face parameters too.

    Both frames change alike: the autoencoder need not explain what changed by motion. Raises ValueError for `colours`
    outside 0 … 0.5.
    """

    colours: float = 0.1
    mirror: bool = True

    def __post_init__(self) -> None:
        require_number("colours", self.colours, least=0, most=0.5)

    def __call__(
        self,
        frames: UInt8[np.ndarray, "T Y X 3"],
        faces: Float32[np.ndarray, "W P"] | None,
        spec: FaceSpec | None,
        rng: np.random.Generator,
    ) -> tuple[UInt8[np.ndarray, "T Y X 3"], Float32[np.ndarray, "W P"] | None]:
        """The changed frames and face parameters."""
        if self.mirror and rng.random() < 0.5:
            frames = frames[:, :, ::-1]
            faces = faces if faces is None or spec is None else mirrored(faces, spec)
        if self.colours:
            value = np.linspace(0, 1, 256)[:, None] ** np.exp(2 * self.colours * rng.normal())
            gain, offset = 1 + self.colours * rng.normal(size=3), self.colours / 2 * rng.normal(size=3)
            table = np.rint(255 * (value * gain + offset)).clip(0, 255).astype(np.uint8)
            frames = np.stack([table[frames[..., c], c] for c in range(3)], -1)
        return frames, faces


def mirrored(faces: Float32[np.ndarray, "W P"], spec: FaceSpec) -> Float32[np.ndarray, "W P"]:
    """Face parameters of mirrored frames: names that end in Left and Right exchange their values, turns their sign."""
    place = {name: i for i, name in enumerate(spec.names)}
    order = [place.get(_other_side(name), i) for i, name in enumerate(spec.names)]
    signs = np.array([-1.0 if name in _TURNED else 1.0 for name in spec.names], np.float32)
    return faces[:, order] * signs


def _other_side(name: str) -> str:
    for side, other in (("Left", "Right"), ("Right", "Left")):
        if name.endswith(side):
            return name.removesuffix(side) + other
    return name
