"""Face crops as in training: an avatar's portrait, a user's video, or a live camera."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from af.clock import FPS
from af.data.container import MediaError, Notes
from af.data.images import read_image
from af.data.video import iter_video
from af.errors import UserError
from af.ingest.detection import Detector, faces_in_frame, look_side, look_through, make_detector, shrunk
from af.ingest.measures import look_at_face
from af.ingest.options import IngestOptions
from af.ingest.quality import voice_changes
from af.ingest.tracks import as_squares, choose_face, crop, follow, framed, is_near, steady_crops
from af.values import require_number

_SMALLEST = 32  # pixels of the shorter side; smaller images show no usable face
#: Other faces are noted if they are at least this large, relative to the largest.
_BESIDE = 0.5
# of portraits: parts of the face's side, factors, and limits of `look_at_face`
_CUT_OFF, _ENLARGED, _COLOURLESS, _BLURRED = 0.15, 1.5, 12, 30
_LOOKS = 4  # looks in a row that must see a face elsewhere before the crop moves to it
_FAR = 0.15  # in face sizes; beyond this, further than a nod, the crop follows faster


def read_portrait(
    path: str | Path,
    size: int,
    *,
    find_face: bool = True,
    detector: Detector | None = None,
    notes: Notes | None = None,
) -> UInt8[np.ndarray, "Y X 3"]:
    """Read an image (or a video's first frame) as a square of `size` pixels around its largest face.

    Without `find_face` the square is the middle of the image. Grey and 16-bit images become 8-bit RGB, transparent
    areas white; `notes` collects remarks, such as other faces. Raises `MediaError` when the file cannot be read, is
    tiny, or shows no face.
    """
    path, notes = Path(path), Notes() if notes is None else notes
    frame = read_image(path, notes)
    if frame is None:
        try:
            with contextlib.closing(iter_video(path, notes=notes)) as frames:  # type: ignore[type-var]
                frame = next(frames)
        except MediaError as error:
            if error.reason not in ("still", "no_frames"):
                raise
            text = "not an image or video that can be read: save it as PNG or JPEG"
            raise MediaError(path, "unreadable", text) from None
    return portrait_of(frame, path, size, find_face=find_face, detector=detector, notes=notes)


def portrait_of(
    frame: UInt8[np.ndarray, "Y X 3"],
    path: Path,
    size: int,
    *,
    find_face: bool = True,
    detector: Detector | None = None,
    notes: Notes | None = None,
) -> UInt8[np.ndarray, "size size 3"]:
    """`read_portrait` of an image that is already decoded, called `path` in messages."""
    notes = Notes() if notes is None else notes
    if min(frame.shape[:2]) < _SMALLEST:
        height, width = frame.shape[:2]
        raise MediaError(path, "too_small", f"{width} x {height} pixels; a portrait needs at least {_SMALLEST}")
    if not find_face:
        return _middle(frame, size)
    boxes = faces_in_frame(frame, detector or make_detector())
    if len(boxes) == 0:
        raise MediaError(path, "no_face", "no face found; give a clearer portrait, or a face crop with --no-crop")
    faces = as_squares(boxes)
    sides = faces[:, 2]
    if (beside := int((sides >= _BESIDE * sides.max()).sum()) - 1) > 0:
        notes.add("faces", f"{path}: {1 + beside} faces: using the largest; for another one, give a crop of it")
    largest = faces[[sides.argmax()], :3]
    box = framed(largest, frame.shape[:2], IngestOptions.margin)[0]
    for remark in _doubts(frame, largest[0], box, size):
        notes.add("portrait", f"{path}: {remark}")
    return crop(frame, box, size)


def _doubts(
    frame: UInt8[np.ndarray, "Y X 3"], face: Float64[np.ndarray, " 3"], box: Float64[np.ndarray, " 3"], size: int
) -> Iterator[str]:
    """What may spoil a portrait with this face (centre x, y, side) and crop. Photographs of people stay clear of the
    limits; a painting or a coloured statue cannot be told from them.
    """
    x, y, side = face
    height, width = frame.shape[:2]
    if max(side / 2 - x, side / 2 - y, x + side / 2 - width, y + side / 2 - height) > _CUT_OFF * side:
        yield "the face is cut off by the edge of the image"
    if side * IngestOptions.margin < size / _ENLARGED:
        yield f"the face is only {side:.0f} pixels wide: enlarged to {size}, the avatar will look blurred"
    look = look_at_face(frame, box)
    if look["colour"] < _COLOURLESS:
        yield "the face has no colour: a statue, a drawing or a black-and-white image"
    if look["sharpness"] < _BLURRED:
        yield "the face is blurred"


def face_frames(
    path: Path,
    size: int,
    *,
    find_face: bool = True,
    detector: Detector | None = None,
    notes: Notes | None = None,
    voice: Float32[np.ndarray, " S"] | None = None,
) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    """Frames at 25 fps, cropped around the tracked face, in two passes over the file with bounded memory.

    Of several faces it takes the one that moves with `voice` (16 kHz), else the largest that moves. `notes` collects
    remarks. Raises `MediaError` when the file cannot be read or shows no face.
    """
    if not find_face:
        yield from (_middle(frame, size) for frame in iter_video(path, notes=notes))
        return
    options, notes = IngestOptions(), Notes() if notes is None else notes
    look = look_through(str(path), detector or make_detector(options.detector), options.detect_every)
    heard = None if voice is None else voice_changes(voice, look.frames)
    path_of_face = choose_face(look, heard, options.face, str(path), notes, "for another one crop the video")
    track = steady_crops(path_of_face, look.looks, look.frames, look.cuts, look.size)
    if not track.present.any():
        raise MediaError(path, "no_face", "no face found; give face crops with --no-crop")
    seen = np.flatnonzero(track.present)
    for n, frame in enumerate(iter_video(path, notes=notes)):
        # while the face is lost, the crop stays at the nearest place where it was seen
        nearest = seen[np.abs(seen - n).argmin()]
        yield crop(frame, track.boxes[nearest], size)


def _middle(frame: UInt8[np.ndarray, "Y X 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    height, width = frame.shape[:2]
    side = min(height, width)
    return crop(frame, np.array([(width - side) / 2, (height - side) / 2, side]), size)


class FaceCropper:
    """Crops the face from the frames of a live camera: `size` pixels, or None without a face.

    The crop's side is `margin` times the face's, as in `af ingest`. Smoothing uses past frames only: the crop follows
    nods with a time constant of about `smoothing_s`, and larger moves faster. The crop of a lost face is held for
    `hold_s`, then None is returned until a face is found. Faces are detected in every `detect_every`-th frame of `fps`
    per second, and in every frame while there is none. Of several faces, the most prominent is taken and kept. Raises
    UserError for settings out of range and for anything that is not a frame.
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
        try:
            for name, value in (("size", size), ("fps", fps), ("detect_every", detect_every)):
                require_number(name, value, least=1)
            for name, value in (("margin", margin), ("smoothing_s", smoothing_s)):
                require_number(name, value, above=0)
        except ValueError as error:
            raise UserError(str(error)) from None
        if not hold_s >= 0:
            raise UserError(f"hold_s: {hold_s}; it must not be negative")
        self.size, self._margin, self._every, self._fps = size, margin, detect_every, fps
        self._smoothing_s, self._hold_s = smoothing_s, hold_s
        self._detector = detector or make_detector()
        self.reset()

    def reset(self) -> None:
        """Forget the face, for another camera or person."""
        self._target: Float64[np.ndarray, " 3"] | None = None  # centre x, y, side of the last face seen
        self._face: Float64[np.ndarray, " 3"] | None = None  # smoothed centre x, y and log side
        self._elsewhere: list[Float64[np.ndarray, " 3"]] = []  # other faces seen by the last looks
        self._shape: tuple[int, ...] = ()
        self._frames = self._since_look = self._since_face = 0

    def __call__(self, frame: UInt8[np.ndarray, "Y X 3"]) -> UInt8[np.ndarray, "size size 3"] | None:
        """The crop of this frame, or None."""
        shape, kind = np.shape(frame), getattr(frame, "dtype", type(frame).__name__)
        if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or min(shape[:2]) < _SMALLEST:
            expected = f"RGB of uint8 (rows, columns, 3), at least {_SMALLEST} pixels a side"
            raise UserError(f"frame: expected {expected}, got {shape} of {kind}")
        frame = np.ascontiguousarray(frame)
        if shape != self._shape:
            self.reset()
            self._shape = shape
        self._since_look, self._since_face = self._since_look + 1, self._since_face + 1
        if self._target is None or self._since_look >= self._every:
            self._look(frame)
        if self._target is None:
            return None
        if self._since_face > max(self._hold_s * self._fps, self._every):
            self.reset()
            return None
        x, y, side = self._follow(self._target)
        return crop(frame, framed(np.array([[x, y, np.exp(side)]]), shape[:2], self._margin)[0], self.size)

    def _look(self, frame: UInt8[np.ndarray, "Y X 3"]) -> None:
        self._since_look = 0
        small = shrunk(frame, look_side(self._detector))
        shrink = len(small) / len(frame), small.shape[1] / frame.shape[1]
        found = faces_in_frame(small, self._detector, (1 / shrink[1], 1 / shrink[0]))
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
        """Move the smoothed face towards `target` by one frame."""
        goal = np.array([target[0], target[1], np.log(target[2])])
        if self._face is None:
            self._face, self._frames = goal, 0
        away = goal - self._face
        off = max(np.hypot(*away[:2]) / np.exp(self._face[2]), abs(away[2])) / _FAR
        # faster at the start, too: the first box is a single detection
        constant_s = min(self._smoothing_s, 0.2 + self._frames / self._fps) / max(1.0, off**2)
        self._face = self._face + (1 - np.exp(-1 / (self._fps * constant_s * np.array([1.0, 1.0, 2.0])))) * away
        self._frames += 1
        return self._face
