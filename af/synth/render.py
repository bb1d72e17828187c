"""Rendering synthetic faces: parameters (T,13) and a person to anti-aliased RGB frames, and masks of eyes and mouth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, UInt8

from af.synth import layers
from af.synth.appearance import Appearance
from af.synth.canvas import Array
from af.synth.face import FACE_NAMES

_STACK_PIXELS = 1 << 16  # pixels drawn together: the planes should fit into the cache


def render(
    face: Float[np.ndarray, "T P"], appearance: Appearance, size: int = 64
) -> UInt8[np.ndarray, "T size size 3"]:
    """Render one frame per row of face parameters (`face.FACE_NAMES`).

    Raises ValueError for a wrong number of parameters, non-finite values, or a size under 8 pixels.
    """
    background = _background(appearance, size)
    frames = np.empty((len(face), size, size, 3), np.uint8)
    for few, pose in _poses(face, size):
        planes = _draw(pose, appearance, background)
        planes += 0.5
        frames[few] = np.clip(planes, 0, 255, out=planes).transpose(1, 2, 3, 0)
    return frames


def regions(
    face: Float[np.ndarray, "T P"], appearance: Appearance, size: int = 64
) -> Float32[np.ndarray, "T size size"]:
    """Soft masks in [0, 1], near 1 on the eyes (with brows) and the mouth."""
    masks = np.empty((len(face), size, size), np.float32)
    white = np.ones(1, np.float32)
    for few, pose in _poses(face, size):
        stack = pose.stack(np.zeros((1, size, size), np.float32))
        for side in (-1, 1):
            x, y, narrow = pose.place(side * appearance.eye_spacing, -0.10, 0.80)
            stack.glow(x, y, 0.45 * narrow, 0.42, white, 1.6)
        x, y, narrow = pose.place(0, 0.55, 0.85)
        stack.glow(x, y, 0.62 * narrow, 0.50 + 0.15 * pose.values["mouth_open"], white, 1.6)
        masks[few] = np.clip(stack.frames[0], 0, 1)
    return masks


@dataclass(frozen=True)
class EyesAndMouth:
    """Pixel weights that emphasise eyes and mouth: 1 + weight·mask, with the mask of a typical face at the frame's face
    parameters (it is soft enough for all faces).
    """

    weight: float = 4.0
    appearance: Appearance = field(default_factory=lambda: Appearance.sample(np.random.default_rng(0)))

    def __call__(self, face: Float32[np.ndarray, " P"] | None, size: int) -> Float32[np.ndarray, "Y X"] | None:
        """Pixel weights for a frame of `size` pixels; None for an unknown face."""
        if face is None:
            return None
        return 1 + self.weight * regions(face[None], self.appearance, size)[0]


def _poses(face: Array, size: int) -> Iterator[tuple[slice, layers.Pose]]:
    """Yield (slice of frames, their poses) for frames drawn together. Raises ValueError as `render`."""
    if face.ndim != 2 or face.shape[1] != len(FACE_NAMES):
        raise ValueError(f"face parameters are (T, {len(FACE_NAMES)}), got {face.shape}")
    if not np.isfinite(face).all():
        raise ValueError("face parameters must be finite")
    if size < 8:
        raise ValueError(f"a face needs at least 8 pixels, got {size}")
    step = max(1, _STACK_PIXELS // (size * size))
    for start in range(0, len(face), step):
        few = slice(start, start + step)
        yield few, layers.Pose.of(face[few])


def _background(appearance: Appearance, size: int) -> Array:
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    light = 1.05 - 0.10 * line[:, None] - 0.10 * (line[:, None] ** 2 + line[None, :] ** 2)
    colour = np.array(appearance.background, np.float32)
    return np.minimum(colour[:, None, None] * light, 255).astype(np.float32)


def _draw(pose: layers.Pose, a: Appearance, background: Array) -> Array:
    """Draw all layers from back to front; returns the planes (3,T,Y,X), 0–255."""
    stack = pose.stack(background)
    paint = layers.Palette.of(a)
    layers.hair_behind(stack, pose, a, paint)
    layers.body(stack, pose, a, paint)
    layers.ears(stack, pose, a, paint, over_head=False)
    layers.head(stack, pose, a, paint)
    layers.ears(stack, pose, a, paint, over_head=True)
    layers.nose(stack, pose, a, paint)
    layers.mouth(stack, pose, a, paint)
    for side in (-1, 1):
        layers.eye(stack, pose, a, paint, side)
    layers.hair_front(stack, pose, a, paint)
    for side in (-1, 1):
        layers.brow(stack, pose, a, paint, side)
    if a.glasses:
        layers.glasses(stack, pose, a)
    return stack.frames
