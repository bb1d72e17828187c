"""The user's face from a live camera: frame by frame, framed as the crops that the models were trained on."""

from __future__ import annotations

import math

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from af.clock import FPS
from af.errors import UserError
from af.ingest.detect import Detector, make_detector
from af.ingest.look import LOOK_SIDE
from af.ingest.options import IngestOptions
from af.ingest.track import as_squares, crop, follow, framed, is_near

_LOOKS = 4  # so many in a row must see a face elsewhere before it is taken for the person
_FAR = 0.15  # face sizes: further off than nods are, the crop follows sooner
_SMALLEST = 32  # pixels


class FaceCropper:
    """Call it with every frame of a camera; it gives the face crop of `size` pixels, or None where there is no face.

    The crop's side is `margin` times the face's, as in `af ingest`, whose smoothing needs the frames to come: here the
    crop follows with a time constant of about `smoothing_s` where the face nods, and sooner where it has moved away.
    A face that is lost is held where it was for `hold_s`, then the answer is None until one is found. Faces are looked
    for in every `detect_every`-th frame of `fps` a second (in every one while none is there). Several faces: the most
    prominent one, and that one again. Raises UserError for what is not a frame.
    """

    def __init__(
        self,
        size: int,
        *,
        detector: Detector | None = None,
        fps: float = FPS,
        margin: float = IngestOptions.margin,
        detect_every: int = IngestOptions.detect_every,
        smoothing_s: float = IngestOptions.smoothing_s,
        hold_s: float = IngestOptions.bridged_gap_s,
    ) -> None:
        for name, value, least in (("size", size, 1), ("fps", fps, 1), ("detect_every", detect_every, 1)):
            if not (math.isfinite(value) and value >= least):
                raise UserError(f"{name}: {value}; it must be at least {least}")
        for name, value in (("margin", margin), ("smoothing_s", smoothing_s)):
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{name}: {value}; it must be positive")
        if not hold_s >= 0:
            raise UserError(f"hold_s: {hold_s}; it must not be negative")
        self.size, self._margin, self._every, self._fps = size, margin, detect_every, fps
        self._smoothing_s, self._hold_s = smoothing_s, hold_s
        self._detector = detector or make_detector("haar")
        self.reset()

    def reset(self) -> None:
        """Forget the face: another camera, another person."""
        self._target: Float64[np.ndarray, " 3"] | None = None  # centre x, y, side of the face seen last
        self._face: Float64[np.ndarray, " 3"] | None = None  # centre x, y, log side, smoothed
        self._elsewhere: list[Float64[np.ndarray, " 3"]] = []  # what the last looks saw instead of it
        self._shape: tuple[int, ...] = ()
        self._frames = self._since_look = self._since_face = 0

    def __call__(self, frame: UInt8[np.ndarray, "Y X 3"]) -> UInt8[np.ndarray, "size size 3"] | None:
        """The crop of this frame, or None."""
        frame = _checked(frame)
        if frame.shape != self._shape:
            self.reset()
            self._shape = frame.shape
        self._since_look, self._since_face = self._since_look + 1, self._since_face + 1
        if self._target is None or self._since_look >= self._every:
            self._look(frame)
        if self._target is None:
            return None
        if self._since_face > max(self._hold_s * self._fps, self._every):
            self.reset()
            return None
        x, y, side = self._follow(self._target)
        return crop(frame, framed(np.array([[x, y, np.exp(side)]]), frame.shape[:2], self._margin)[0], self.size)

    def _look(self, frame: UInt8[np.ndarray, "Y X 3"]) -> None:
        self._since_look = 0
        shrink = min(1.0, LOOK_SIDE / max(frame.shape[:2]))
        small = cv2.resize(frame, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) if shrink < 1 else frame
        found = np.asarray(self._detector(small), np.float64).reshape(-1, 5)
        found *= np.array([1 / shrink] * 4 + [1.0])
        if len(found) == 0:
            return
        prominent = follow([found], [0])[0]
        faces = as_squares(found)[:, :3]
        if self._target is not None:
            near = faces[is_near(faces, self._target)]
            if len(near):
                prominent = near[np.hypot(*(near[:, :2] - self._target[:2]).T).argmin()]
            else:
                last = self._elsewhere[-1:]
                same = bool(last) and bool(is_near(prominent[None], last[0])[0])
                self._elsewhere = [*(self._elsewhere if same else []), prominent]
                if len(self._elsewhere) < _LOOKS:
                    return
        self._target, self._elsewhere, self._since_face = prominent, [], 0

    def _follow(self, target: Float64[np.ndarray, " 3"]) -> Float64[np.ndarray, " 3"]:
        """The smoothed face a frame later."""
        goal = np.array([target[0], target[1], np.log(target[2])])
        if self._face is None:
            self._face, self._frames = goal, 0
        away = goal - self._face
        off = max(np.hypot(*away[:2]) / np.exp(self._face[2]), abs(away[2])) / _FAR
        # sooner at the start, too: the first box is one look's
        constant_s = min(self._smoothing_s, 0.2 + self._frames / self._fps) / max(1.0, off**2)
        self._face = self._face + (1 - np.exp(-1 / (self._fps * constant_s * np.array([1.0, 1.0, 2.0])))) * away
        self._frames += 1
        return self._face


def _checked(frame: UInt8[np.ndarray, "Y X 3"]) -> UInt8[np.ndarray, "Y X 3"]:
    shape, kind = np.shape(frame), getattr(frame, "dtype", type(frame).__name__)
    if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or min(shape[:2]) < _SMALLEST:
        raise UserError(
            f"frame: expected RGB of uint8 (rows, columns, 3), at least {_SMALLEST} pixels a side, got {shape} of {kind}"
        )
    return np.ascontiguousarray(frame)
