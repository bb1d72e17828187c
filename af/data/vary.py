"""Random changes of training pairs, so that a few dozen people look like more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from af.errors import UserError
from af.specs import FaceSpec
from af.values import require_number

#: Face parameters that change sign in a mirror, of MediaPipe and of synthetic faces.
_TURNED = frozenset({"yaw", "roll", "translate_x", "gaze_x", "shift_x"})


#: What another crop changes.
_PLACE = frozenset({"roll", "translate_x", "translate_y", "translate_z"})
#: Half of the frame's height over the focal length of MediaPipe's camera, whose vertical field of view is 63 degrees.
_TAN = float(np.tan(np.radians(63 / 2)))


@dataclass(frozen=True)
class Vary:
    """The same random change of both frames of a pair.

    `colours`: of light and colours, by about this share of their range, 0 … 0.5. `mirror`: left and right exchanged in
    half of the pairs. `place`: another crop, larger or smaller, turned (radians) and moved, each with this standard
    deviation, 0 … 0.2; what lies outside the frame is its reflection. Face parameters follow; `place` knows MediaPipe's.

    Both frames change alike: the autoencoder need not explain what changed by motion. Raises ValueError for values
    outside their ranges.
    """

    colours: float = 0.1
    mirror: bool = True
    place: float = 0.0

    def __post_init__(self) -> None:
        require_number("colours", self.colours, least=0, most=0.5)
        require_number("place", self.place, least=0, most=0.2)

    def require(self, spec: FaceSpec, where: str) -> None:
        """Raise UserError for face parameters that `place` does not know; `where` names the shards."""
        if self.place and not set(spec.names) >= _PLACE:
            raise UserError(f"{where}: data.vary.place knows MediaPipe's face parameters alone; set data.vary.place=0")

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
        if self.place:
            zoom, angle, *shift = self.place * rng.normal(size=4)
            frames = np.stack([cropped(frame, np.exp(zoom), angle, shift) for frame in frames])
            faces = faces if faces is None or spec is None else moved(faces, spec, np.exp(zoom), angle, shift)
        if self.colours:
            value = np.linspace(0, 1, 256)[:, None] ** np.exp(2 * self.colours * rng.normal())
            gain, offset = 1 + self.colours * rng.normal(size=3), self.colours / 2 * rng.normal(size=3)
            table = np.rint(255 * (value * gain + offset)).clip(0, 255).astype(np.uint8)
            frames = np.stack([table[frames[..., c], c] for c in range(3)], -1)
        return frames, faces


def cropped(
    frame: UInt8[np.ndarray, "Y X 3"], zoom: float, angle: float, shift: Sequence[float]
) -> UInt8[np.ndarray, "Y X 3"]:
    """The frame enlarged by `zoom` and turned clockwise by `angle` radians about its centre, then moved by `shift`
    (right, down; shares of its size). The border is reflected.
    """
    size = frame.shape[0]
    centre = (size - 1) / 2
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    offset = centre - turn @ (centre, centre) + size * np.asarray(shift)
    return cv2.warpAffine(frame, np.c_[turn, offset], (size, size), borderMode=cv2.BORDER_REFLECT_101)  # type: ignore[return-value]


def moved(
    faces: Float32[np.ndarray, "W P"], spec: FaceSpec, zoom: float, angle: float, shift: Sequence[float]
) -> Float32[np.ndarray, "W P"]:
    """MediaPipe's parameters of faces in frames changed by `cropped`: roll and place before the camera."""
    index = {name: i for i, name in enumerate(spec.names)}
    x, y, z = (faces[:, index[f"translate_{axis}"]] for axis in "xyz")
    distance = -z / zoom  # z points to the viewer
    faces = faces.copy()
    faces[:, index["roll"]] += angle
    faces[:, index["translate_x"]] = x * np.cos(angle) + y * np.sin(angle) + 2 * shift[0] * distance * _TAN
    faces[:, index["translate_y"]] = y * np.cos(angle) - x * np.sin(angle) - 2 * shift[1] * distance * _TAN
    faces[:, index["translate_z"]] = -distance
    return faces


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
