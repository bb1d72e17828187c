"""A camera that moves the puppet: face parameters of a drawn person from MediaPipe's reading of a real face."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from af.clock import FPS
from af.ingest.landmarks import MEDIAPIPE_BLENDSHAPES, Face, FaceLandmarker

_AT = {name: place for place, name in enumerate(MEDIAPIPE_BLENDSHAPES)}


class Mirror:
    """Reads one camera's frames. The pose of the first second is straight ahead, wherever the camera stands.

    Raises UserError when MediaPipe or its model are missing.
    """

    def __init__(self) -> None:
        self._reading = FaceLandmarker().reading()
        self._read = self._reading.__enter__()
        self._poses: list[np.ndarray] = []

    def __call__(self, frame: UInt8[np.ndarray, "Y X 3"]) -> Mapping[str, float] | None:
        """Parameters for `Puppet.mirror`, None without a face."""
        face = self._read(frame)
        if face is None:
            return None
        if len(self._poses) < FPS:
            self._poses.append(face.pose[:3])
        return parameters(face, np.median(self._poses, axis=0))

    def close(self) -> None:
        """Give MediaPipe's memory back."""
        self._reading.__exit__(None, None, None)


def parameters(face: Face, straight: np.ndarray) -> dict[str, float]:
    """Face parameters (`af.synth.face`) of a real face whose yaw, pitch and roll are `straight` when it looks ahead.

    Blendshape scores of plain expressions rarely reach 1, so they are scaled up.
    """

    def score(*names: str) -> float:
        return float(np.mean([face.expression[_AT[name]] for name in names]))

    def both(name: str) -> float:
        return score(name + "Left", name + "Right")

    yaw, pitch, roll = face.pose[:3] - straight
    return {
        "smile": 1.1 * both("mouthSmile") - 0.3 * both("mouthFrown"),
        "mouth_open": 1.5 * score("jawOpen"),
        "mouth_width": both("mouthStretch") - score("mouthPucker", "mouthFunnel"),
        "brow": 0.5 * (score("browInnerUp") + both("browOuterUp")) - both("browDown"),
        "blink": 1.6 * (both("eyeBlink") - 0.2),
        "gaze_x": score("eyeLookOutLeft", "eyeLookInRight") - score("eyeLookInLeft", "eyeLookOutRight"),
        "gaze_y": both("eyeLookDown") - both("eyeLookUp"),
        "yaw": float(yaw),
        "pitch": float(pitch),
        "roll": float(roll),
    }
