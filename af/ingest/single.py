"""One person's face from one file, cropped as in training: the portrait of an avatar, the video of its user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from af.data.images import read_image
from af.data.media import MediaError, iter_video
from af.data.notes import Notes
from af.ingest.detect import Detector, make_detector
from af.ingest.faces import choose_face
from af.ingest.look import look_through
from af.ingest.options import IngestOptions
from af.ingest.sync import voice_changes
from af.ingest.track import crop, follow, steady_crops

_SMALLEST = 32  # pixels of the shorter side: below that there is no face to be seen
#: Faces at least this large, as a part of the largest one's side, are worth a word.
_BESIDE = 0.5


def read_portrait(
    path: str | Path,
    size: int,
    *,
    find_face: bool = True,
    detector: Detector | None = None,
    notes: Notes | None = None,
) -> UInt8[np.ndarray, "Y X 3"]:
    """A picture (or the first frame of a video) as a square of `size` pixels around its largest face.

    With `find_face` False the middle square of the picture is taken. Grey and 16-bit pictures become RGB of 8 bits,
    transparent places white; `notes` gets what is noteworthy, such as other faces. Raises `MediaError` when the file
    cannot be read, is tiny, or no face is found in it.
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
            text = "not a picture or video that can be read: save it as PNG or JPEG"
            raise MediaError(path, "unreadable", text) from None
    if min(frame.shape[:2]) < _SMALLEST:
        height, width = frame.shape[:2]
        raise MediaError(path, "too_small", f"{width} x {height} pixels; a portrait needs at least {_SMALLEST}")
    if not find_face:
        return _middle(frame, size)
    boxes = np.asarray((detector or make_detector("haar"))(frame), np.float64).reshape(-1, 5)
    if len(boxes) == 0:
        raise MediaError(path, "no_face", "no face found; give a clearer portrait, or a face crop with --no-crop")
    sides = boxes[:, 2:4].mean(1)
    if (beside := int((sides >= _BESIDE * sides.max()).sum()) - 1) > 0:
        notes.add("faces", f"{path}: {1 + beside} faces: the largest is taken; for another one give a crop of it")
    largest = boxes[[sides.argmax()]]
    track = steady_crops(follow([largest], [0]), [0], 1, [], frame.shape[:2], margin=IngestOptions.margin)
    return crop(frame, track.boxes[0], size)


def face_frames(
    path: Path,
    size: int,
    *,
    find_face: bool = True,
    detector: Detector | None = None,
    notes: Notes | None = None,
    voice: Float32[np.ndarray, " S"] | None = None,
) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    """Frames at 25 fps, cropped around the tracked face; two passes over the file, bounded memory.

    Of several faces it is the one that moves with `voice` (16 kHz), else the largest that moves. `notes` gets what is
    noteworthy. Raises `MediaError` when the file cannot be read or shows no face.
    """
    if not find_face:
        yield from (_middle(frame, size) for frame in iter_video(path, notes=notes))
        return
    options = IngestOptions()
    notes = Notes() if notes is None else notes
    look = look_through(str(path), "a", False, detector or make_detector(options.detector), options.detect_every)
    heard = None if voice is None else voice_changes(voice, look.frames)
    path_of_face = choose_face(look, heard, options.face, str(path), notes, "for another one crop the video")
    track = steady_crops(path_of_face, look.looks, look.frames, look.cuts, look.size, margin=options.margin)
    if not track.present.any():
        raise MediaError(path, "no_face", "no face found; give face crops with --no-crop")
    seen = np.flatnonzero(track.present)
    for n, frame in enumerate(iter_video(path, notes=notes)):
        # where the face is lost, the crop stays at the nearest place it was seen
        nearest = seen[np.abs(seen - n).argmin()]
        yield crop(frame, track.boxes[nearest], size)


def _middle(frame: UInt8[np.ndarray, "Y X 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    height, width = frame.shape[:2]
    side = min(height, width)
    return crop(frame, np.array([(width - side) / 2, (height - side) / 2, side]), size)
