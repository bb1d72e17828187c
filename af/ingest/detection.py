"""The choice of a face detector, and the first pass through a video: faces every few frames, scene cuts, damaged
frames, movement.

A detector is any callable from an RGB frame to boxes: OpenCV's cascade, or `landmarks.FaceLandmarker`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from af.clock import FPS
from af.data.container import MediaError, Notes
from af.data.video import iter_video
from af.errors import UserError
from af.ingest.landmarks import FaceLandmarker, landmarker_is_there
from af.ingest.options import DETECTORS

#: RGB frame -> boxes (x, y, width, height, score) in its pixels; score > 0, larger is surer.
Detector = Callable[[UInt8[np.ndarray, "Y X 3"]], Float64[np.ndarray, "N 5"]]

#: Progress callback: (current work, frames so far).
Watch = Callable[[str, int], None]

LOOK_SIDE: Final = 360  # frames are scaled down to this for detection, unless the detector has a `look_side`
_CUT_SIDE: Final = 128
_CELL: Final = 8  # pixels (of the scaled frames): side of the cells in which change is averaged
STEPS_A_LEVEL: Final = 8  # change is stored in eighths of a grey level, up to 255 / 8 levels


class HaarDetector:
    """OpenCV's bundled frontal-face cascade (Viola & Jones 2001; the "alt2" one of Lienhart et al.): no download.

    Finds faces within about 30 degrees of frontal that cover at least an eighth of the frame's shorter side.
    """

    def __init__(self) -> None:
        self._cascade: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_cascade": None}  # OpenCV objects cannot be pickled, so they are loaded where used

    def __call__(self, frame: UInt8[np.ndarray, "Y X 3"]) -> Float64[np.ndarray, "N 5"]:
        """Faces in an RGB frame; if none is found, a second attempt with stretched contrast."""
        if self._cascade is None:
            self._cascade = _load_cascade()
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        smallest = max(24, min(grey.shape) // 8)
        for image in (grey, cv2.equalizeHist(grey)):
            boxes, _, weights = self._cascade.detectMultiScale3(
                image, scaleFactor=1.1, minNeighbors=4, minSize=(smallest, smallest), outputRejectLevels=True
            )
            if len(boxes):
                scores = np.maximum(np.asarray(weights, np.float64).reshape(-1, 1), 1e-3)
                return np.concatenate([np.asarray(boxes, np.float64), scores], 1)
        return np.zeros((0, 5))


def _load_cascade() -> Any:
    file = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_alt2.xml"
    if not hasattr(cv2, "CascadeClassifier") or not file.is_file():
        raise UserError(
            f"OpenCV {cv2.__version__} has no Haar cascades (another package may have replaced it); "
            "pip install --force-reinstall 'opencv-python-headless<5', or use --detector mediapipe"
        )
    return cv2.CascadeClassifier(str(file))


def make_detector(name: str = "auto", model: Path | str | None = None) -> Detector:
    """The detector called `name`: "haar", "mediapipe" (with its `model` file, by default the one of `af fetch`), or
    "auto": mediapipe if it is there (see `detector_here`). Raises `UserError`.
    """
    name = detector_here(name, model)
    if name == "mediapipe":
        return FaceLandmarker(model)
    _load_cascade()  # fail before any work
    return HaarDetector()


def detector_here(name: str, model: Path | str | None = None) -> str:
    """The detector that `name` means here; "auto" is mediapipe if package and model are there, else haar."""
    if name not in DETECTORS:
        raise UserError(f"--detector {name}: unknown; allowed: {', '.join(DETECTORS)}")
    if name != "auto":
        return name
    return "mediapipe" if landmarker_is_there(model) else "haar"


def faces_in_frame(
    frame: UInt8[np.ndarray, "Y X 3"], detector: Detector, scale: tuple[float, float] = (1.0, 1.0)
) -> Float64[np.ndarray, "N 5"]:
    """The detector's boxes, scaled by `scale` (horizontal, vertical) to pixels of the original image."""
    found = np.asarray(detector(np.ascontiguousarray(frame)), np.float64).reshape(-1, 5)
    return found * np.array([*scale, *scale, 1.0])


def look_side(detector: Detector) -> int:
    """Longer side of the frames that a detector is to be called with."""
    return getattr(detector, "look_side", LOOK_SIDE)


def shrunk(frame: UInt8[np.ndarray, "Y X 3"], side: int) -> UInt8[np.ndarray, "Y2 X2 3"]:
    """The frame, made smaller if its longer side is above `side`."""
    shrink = side / max(frame.shape[:2])
    return cv2.resize(frame, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) if shrink < 1 else frame


@dataclass(frozen=True)
class Look:
    """Faces and movement in one person's video. Boxes are in full-size pixels (of the person's half), one array per
    look.

    `looks` are the frames searched for faces, `cuts` the first frames of scenes, `bad` damaged frames that could not be
    restored, `size` is (height, width). `change` is the mean change in brightness from the frame before, per cell, in
    eighths of a grey level. `facts`: what the source is (`iter_video`).
    """

    boxes: list[np.ndarray]
    looks: list[int]
    cuts: list[int]
    frames: int
    size: tuple[int, int]
    bad: frozenset[int]
    change: UInt8[np.ndarray, "T rows columns"]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scenes(self) -> list[int]:
        """The scene number of each look."""
        return np.searchsorted(np.asarray(sorted(self.cuts)), self.looks, side="right").tolist()

    def up_to(self, frames: int) -> Look:
        """The part within the first `frames` frames."""
        kept = [n for n in self.looks if n < frames]
        cuts = [c for c in self.cuts if 0 < c < frames]
        bad = frozenset(n for n in self.bad if n < frames)
        return Look(self.boxes[: len(kept)], kept, cuts, frames, self.size, bad, self.change[:frames], self.facts)

    def change_in(self, left: float, top: float, right: float, bottom: float) -> UInt8[np.ndarray, "T rows columns"]:
        """Change in the cells of a rectangle (full-resolution pixels), at least one cell."""
        rows, columns = self.change.shape[1:]
        height, width = self.size
        x, y = (int(np.clip(v, 0, 1 - 1e-9) * n) for v, n in ((left / width, columns), (top / height, rows)))
        x2, y2 = (int(np.ceil(np.clip(v, 0, 1) * n)) for v, n in ((right / width, columns), (bottom / height, rows)))
        return self.change[:, y : max(y2, y + 1), x : max(x2, x + 1)]


def half_of(frame: UInt8[np.ndarray, "Y X 3"], half: str) -> UInt8[np.ndarray, "Y X2 3"]:
    """The "left" or "right" half of a frame, or with "" the whole frame."""
    middle = frame.shape[1] // 2
    return frame[:, :middle] if half == "left" else frame[:, middle:] if half else frame


def frames_from(path: str, first: int = 0, **how: Any) -> Iterator[np.ndarray]:
    """`iter_video` from frame `first` on. Raises `MediaError` when the video ends before."""
    frames = iter_video(path, **how)
    with contextlib.closing(frames):  # type: ignore[type-var]
        for n in range(first):
            if next(frames, None) is None:
                raise MediaError(path, "offset", f"ends after {n / FPS:.2f} s, before the other begins")
        yield from frames


def look_through(
    path: str,
    detector: Detector,
    every: int,
    watch: Watch | None = None,
    *,
    half: str = "",
    first: int = 0,
    notes: Notes | None = None,
) -> Look:
    """One pass over a video, or a `half` of it, from frame `first` on, without keeping frames; looks for faces in every
    `every`-th frame. Raises `MediaError`.
    """
    from scenedetect import AdaptiveDetector, FrameTimecode

    with contextlib.closing(iter_video(path)) as whole:  # type: ignore[type-var]
        size = half_of(next(whole), half).shape[:2]
    cutter = AdaptiveDetector(min_scene_len=1)
    boxes: list[np.ndarray] = []
    looks: list[int] = []
    cuts: list[int] = []
    change: list[np.ndarray] = []
    bad: set[int] = set()
    facts: dict[str, Any] = {}
    before: np.ndarray | None = None
    n = 0
    side = look_side(detector)
    how: Any = {"max_side": side * (2 if half else 1), "notes": notes, "bad": bad, "facts": facts}
    for n, full in enumerate(frames_from(path, first, **how), 1):
        large = half_of(full, half)
        frame = large if side == LOOK_SIDE else shrunk(large, LOOK_SIDE)
        small = shrunk(frame, _CUT_SIDE)
        cuts += [c.frame_num for c in cutter.process_frame(FrameTimecode(n - 1, float(FPS)), small[..., ::-1])]
        grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
        change.append(_change(before, grey))
        before = grey
        if watch is not None and n % FPS == 0:
            watch(f"looking for faces: {Path(path).name}", n)
        if (n - 1) % every == 0:
            boxes.append(faces_in_frame(large, detector, (size[1] / large.shape[1], size[0] / large.shape[0])))
            looks.append(n - 1)
    return Look(boxes, looks, cuts, n, size, frozenset(b - first for b in bad if b >= first), np.stack(change), facts)


def _change(before: np.ndarray | None, grey: UInt8[np.ndarray, "Y X"]) -> UInt8[np.ndarray, "rows columns"]:
    rows, columns = (max(1, n // _CELL) for n in grey.shape)
    if before is None:
        return np.zeros((rows, columns), np.uint8)
    means = cv2.resize(cv2.absdiff(grey, before).astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    return np.minimum(np.rint(means * STEPS_A_LEVEL), 255).astype(np.uint8)
