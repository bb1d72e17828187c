"""One person's face from one file, cropped as in training: the portrait of an avatar, the video of its user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from af.data.ingest.detect import Detector, make_detector
from af.data.ingest.look import look_through
from af.data.ingest.options import IngestOptions
from af.data.ingest.track import crop, follow, steady_crops
from af.data.media import MediaError, iter_video

_STILLS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_SMALLEST = 32  # pixels of the shorter side: below that there is no face to be seen


def read_portrait(
    path: Path, size: int, *, find_face: bool = True, detector: Detector | None = None
) -> UInt8[np.ndarray, "Y X 3"]:
    """A picture (or the first frame of a video) as a square of `size` pixels around the face.

    With `find_face` False the middle square of the picture is taken. Grey and 16-bit pictures become RGB of 8 bits,
    transparent places white. Raises `MediaError` when the file cannot be read, is tiny, or no face is found in it.
    """
    frame = _read_still(path) if path.suffix.lower() in _STILLS else next(iter(iter_video(path)))
    if min(frame.shape[:2]) < _SMALLEST:
        height, width = frame.shape[:2]
        raise MediaError(path, "too_small", f"{width} x {height} pixels; a portrait needs at least {_SMALLEST}")
    if not find_face:
        return _middle(frame, size)
    boxes = np.asarray((detector or make_detector("haar"))(frame), np.float64).reshape(-1, 5)
    if len(boxes) == 0:
        raise MediaError(path, "no_face", "no face found; give a clearer portrait, or a face crop with --no-crop")
    track = steady_crops(follow([boxes], [0]), [0], 1, [], frame.shape[:2], margin=IngestOptions.margin)
    return crop(frame, track.boxes[0], size)


def _read_still(path: Path) -> UInt8[np.ndarray, "Y X 3"]:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)  # turned upright, 8 bits, three channels
    if picture is None:
        reason = "absent" if not path.exists() else "unreadable"
        raise MediaError(path, reason, "no such file" if reason == "absent" else "not a picture that can be read")
    with contextlib.suppress(OSError), Image.open(path) as whole:  # what Pillow does not know has no transparency
        if whole.has_transparency_data:  # what is hidden under it is of any colour, often black
            opaque = np.asarray(ImageOps.exif_transpose(whole).convert("RGBA"), np.float32)[..., 3:] / 255
            picture = np.rint(picture * opaque + 255 * (1 - opaque)).astype(np.uint8)
    return np.ascontiguousarray(picture[..., ::-1])


def face_frames(
    path: Path, size: int, *, find_face: bool = True, detector: Detector | None = None
) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    """Frames at 25 fps, cropped around the tracked face; two passes over the file, bounded memory.

    Raises `MediaError` when the file cannot be read or shows no face.
    """
    if not find_face:
        yield from (_middle(frame, size) for frame in iter_video(path))
        return
    options = IngestOptions()
    look = look_through(str(path), "a", False, detector or make_detector(options.detector), options.detect_every)
    path_of_face = follow(look.boxes, look.scenes)
    track = steady_crops(path_of_face, look.looks, look.frames, look.cuts, look.size, margin=options.margin)
    if not track.present.any():
        raise MediaError(path, "no_face", "no face found; give face crops with --no-crop")
    seen = np.flatnonzero(track.present)
    for n, frame in enumerate(iter_video(path)):
        # where the face is lost, the crop stays at the nearest place it was seen
        nearest = seen[np.abs(seen - n).argmin()]
        yield crop(frame, track.boxes[nearest], size)


def _middle(frame: UInt8[np.ndarray, "Y X 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    height, width = frame.shape[:2]
    side = min(height, width)
    return crop(frame, np.array([(width - side) / 2, (height - side) / 2, side]), size)
