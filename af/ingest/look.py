"""The first look through a video: faces every few frames, scene cuts, damaged frames, and what moves where."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from af.clock import FPS
from af.data.media import MediaError, iter_video
from af.data.notes import Notes
from af.ingest.detect import Detector

#: Told while a file is worked on: (what is done, frames so far).
Watch = Callable[[str, int], None]

LOOK_SIDE = 360  # faces are looked for in frames scaled down to this
_CUT_SIDE = 128
_CELL = 8  # pixels (of the frames looked at) of a square in which change is averaged
STEPS_A_LEVEL = 8  # steps of a grey level in which change is kept: up to 255 / 8 levels


@dataclass(frozen=True)
class Look:
    """What one person's video shows. Boxes are in pixels of the full frame (of the person's half), one array a look.

    `looks` are the frames in which faces were looked for, `cuts` the frames that begin a scene, `bad` those that could
    not be restored, `size` (height, width). `change` is the mean difference in brightness to the frame before, by cell,
    in eighths of a grey level.
    """

    boxes: list[np.ndarray]
    looks: list[int]
    cuts: list[int]
    frames: int
    size: tuple[int, int]
    bad: frozenset[int]
    change: UInt8[np.ndarray, "T rows columns"]

    @property
    def scenes(self) -> list[int]:
        """The number of the scene of each look."""
        return np.searchsorted(np.asarray(sorted(self.cuts)), self.looks, side="right").tolist()

    def up_to(self, frames: int) -> Look:
        """The first `frames` frames alone."""
        kept = [n for n in self.looks if n < frames]
        cuts = [c for c in self.cuts if 0 < c < frames]
        bad = frozenset(n for n in self.bad if n < frames)
        return Look(self.boxes[: len(kept)], kept, cuts, frames, self.size, bad, self.change[:frames])

    def change_in(self, left: float, top: float, right: float, bottom: float) -> UInt8[np.ndarray, "T rows columns"]:
        """The cells of a rectangle in pixels of the full frame, at least one."""
        rows, columns = self.change.shape[1:]
        height, width = self.size
        x, y = (int(np.clip(v, 0, 1 - 1e-9) * n) for v, n in ((left / width, columns), (top / height, rows)))
        x2, y2 = (int(np.ceil(np.clip(v, 0, 1) * n)) for v, n in ((right / width, columns), (bottom / height, rows)))
        return self.change[:, y : max(y2, y + 1), x : max(x2, x + 1)]


def half(frame: UInt8[np.ndarray, "Y X 3"], role: str, side_by_side: bool) -> UInt8[np.ndarray, "Y X2 3"]:
    """The part of a frame that shows the person: all of it, or the left (a) or right (b) half."""
    if not side_by_side:
        return frame
    middle = frame.shape[1] // 2
    return frame[:, :middle] if role == "a" else frame[:, middle:]


def frames_from(
    path: str, first: int = 0, *, max_side: int | None = None, notes: Notes | None = None, bad: set[int] | None = None
) -> Iterator[np.ndarray]:
    """`iter_video` without its first frames. Raises `MediaError` when there are not so many."""
    frames = iter_video(path, max_side=max_side, notes=notes, bad=bad)
    with contextlib.closing(frames):  # type: ignore[type-var]
        for n in range(first):
            if next(frames, None) is None:
                raise MediaError(path, "offset", f"ends after {n / FPS:.2f} s, before the other begins")
        yield from frames


def look_through(
    path: str,
    role: str,
    side_by_side: bool,
    detector: Detector,
    every: int,
    watch: Watch | None = None,
    *,
    first: int = 0,
    notes: Notes | None = None,
) -> Look:
    """One pass over a video from frame `first` on, keeping no frame. Raises `MediaError`."""
    from scenedetect import AdaptiveDetector, FrameTimecode

    with contextlib.closing(iter_video(path)) as whole:  # type: ignore[type-var]
        size = half(next(whole), role, side_by_side).shape[:2]
    cutter = AdaptiveDetector(min_scene_len=1)
    boxes: list[np.ndarray] = []
    looks: list[int] = []
    cuts: list[int] = []
    change: list[np.ndarray] = []
    bad: set[int] = set()
    before: np.ndarray | None = None
    n = 0
    side = LOOK_SIDE * (2 if side_by_side else 1)
    for n, full in enumerate(frames_from(path, first, max_side=side, notes=notes, bad=bad), 1):
        frame = half(full, role, side_by_side)
        shrink = min(1.0, _CUT_SIDE / max(frame.shape[:2]))
        small = cv2.resize(frame, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        cuts += [c.frame_num for c in cutter.process_frame(FrameTimecode(n - 1, float(FPS)), small[..., ::-1])]
        grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
        change.append(_change(before, grey))
        before = grey
        if watch is not None and n % FPS == 0:
            watch(f"looking for faces: {Path(path).name}", n)
        if (n - 1) % every == 0:
            found = np.asarray(detector(np.ascontiguousarray(frame)), np.float64).reshape(-1, 5)
            boxes.append(found * np.array([size[1] / frame.shape[1], size[0] / frame.shape[0]] * 2 + [1.0]))
            looks.append(n - 1)
    return Look(boxes, looks, cuts, n, size, frozenset(b - first for b in bad if b >= first), np.stack(change))


def _change(before: np.ndarray | None, grey: UInt8[np.ndarray, "Y X"]) -> UInt8[np.ndarray, "rows columns"]:
    rows, columns = (max(1, n // _CELL) for n in grey.shape)
    if before is None:
        return np.zeros((rows, columns), np.uint8)
    means = cv2.resize(cv2.absdiff(grey, before).astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    return np.minimum(np.rint(means * STEPS_A_LEVEL), 255).astype(np.uint8)
