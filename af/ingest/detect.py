"""Finding faces in a frame. A detector is any callable from an RGB frame to boxes; two are here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from af.errors import UserError

#: RGB frame -> boxes (x, y, width, height, score) in its pixels; score > 0, larger is surer.
Detector = Callable[[UInt8[np.ndarray, "Y X 3"]], Float64[np.ndarray, "N 5"]]

MEDIAPIPE_MODEL: Final = (
    "https://storage.googleapis.com/mediapipe-models/face_detector/blaze_face_short_range/float16/1/"
    "blaze_face_short_range.tflite"
)


class HaarDetector:
    """OpenCV's bundled frontal-face cascade (Viola & Jones 2001; the "alt2" one of Lienhart et al.): no download.

    Sees faces within about 30 degrees of frontal, at least an eighth of the frame's shorter side.
    """

    def __init__(self) -> None:
        self._cascade: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_cascade": None}  # OpenCV objects cannot be pickled; loaded again where used

    def __call__(self, frame: UInt8[np.ndarray, "Y X 3"]) -> Float64[np.ndarray, "N 5"]:
        """Faces in an RGB frame; where none is seen, a second look with the contrast spread."""
        if self._cascade is None:
            self._cascade = _load_cascade()
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        smallest = max(24, min(grey.shape) // 8)
        for picture in (grey, cv2.equalizeHist(grey)):
            boxes, _, weights = self._cascade.detectMultiScale3(
                picture, scaleFactor=1.1, minNeighbors=4, minSize=(smallest, smallest), outputRejectLevels=True
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


class MediaPipeDetector:
    """MediaPipe's BlazeFace (extra "mediapipe", model file by path): also sees turned and partly hidden faces.

    Raises `UserError` when the package or the model file is missing, saying where to get them.
    """

    def __init__(self, model: Path | str | None) -> None:
        self.model, self._detector = model, None
        if model is None:
            raise UserError(f"--detector mediapipe needs --detector-model FILE; get it from {MEDIAPIPE_MODEL}")
        if not Path(model).is_file():
            raise UserError(f"{model}: no such file; the MediaPipe face model is at {MEDIAPIPE_MODEL}")
        self._load()

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "_detector": None}

    def _load(self) -> Any:
        if self._detector is None:
            try:
                from mediapipe.tasks.python import BaseOptions, vision
            except ImportError as error:
                raise UserError(
                    f"--detector mediapipe needs an extra: pip install 'avatar-forcing[mediapipe]' ({error})"
                ) from None
            options = vision.FaceDetectorOptions(
                base_options=BaseOptions(model_asset_path=str(self.model)), min_detection_confidence=0.5
            )
            try:
                self._detector = vision.FaceDetector.create_from_options(options)
            except (RuntimeError, ValueError, OSError) as error:
                raise UserError(f"{self.model}: MediaPipe cannot load this model ({error})") from None
        return self._detector

    def __call__(self, frame: UInt8[np.ndarray, "Y X 3"]) -> Float64[np.ndarray, "N 5"]:
        """Faces in an RGB frame."""
        import mediapipe

        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
        found = [
            (
                d.bounding_box.origin_x,
                d.bounding_box.origin_y,
                d.bounding_box.width,
                d.bounding_box.height,
                max(d.categories[0].score, 1e-3),
            )
            for d in self._load().detect(image).detections
        ]
        return np.asarray(found, np.float64).reshape(-1, 5)


def make_detector(name: str, model: Path | str | None = None) -> Detector:
    """The detector called `name`: "haar" or "mediapipe" (with its `model` file). Raises `UserError`."""
    if name == "haar":
        _load_cascade()  # fails before any work
        return HaarDetector()
    if name == "mediapipe":
        return MediaPipeDetector(model)
    raise UserError(f"--detector {name}: unknown; allowed: haar, mediapipe")
