"""The parameters of a synthetic face: names, units and ranges. All zeros is the neutral face looking ahead.

Expression (7)
    ``mouth_open``   0 closed … 1 wide open
    ``mouth_width``  -1 rounded … 0 at rest … 1 spread
    ``smile``        0 none … 1 broad (slightly negative: corners down)
    ``brow``         -1 lowered … 1 raised
    ``blink``        0 open … 1 shut
    ``gaze_x``       -1 image left … 1 image right, relative to the head
    ``gaze_y``       -1 up … 1 down, relative to the head
Pose (6)
    ``yaw``          radians, positive: the face turns to the image's right
    ``pitch``        radians, positive: the face turns down (a nod goes positive)
    ``roll``         radians, positive: the head tilts clockwise as seen
    ``shift_x``, ``shift_y``  the head's offset from the middle, in image widths (right, down)
    ``scale``        natural logarithm of the head's size relative to the usual one
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from af.types import FaceSpec

#: Ranges that the renderer draws well, in parameter order: simulations stay inside, the tracker trains on all of it.
FACE_RANGES: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "mouth_open": (0.0, 1.0),
        "mouth_width": (-1.0, 1.0),
        "smile": (-0.2, 1.0),
        "brow": (-1.0, 1.0),
        "blink": (0.0, 1.0),
        "gaze_x": (-1.0, 1.0),
        "gaze_y": (-1.0, 1.0),
        "yaw": (-0.6, 0.6),
        "pitch": (-0.45, 0.45),
        "roll": (-0.45, 0.45),
        "shift_x": (-0.08, 0.08),
        "shift_y": (-0.08, 0.08),
        "scale": (-0.15, 0.15),
    }
)
FACE_NAMES: Final = tuple(FACE_RANGES)
FACE_INDEX: Final[Mapping[str, int]] = MappingProxyType({name: i for i, name in enumerate(FACE_NAMES)})
FACE_SPEC: Final = FaceSpec(names=FACE_NAMES, expression=7, tracker="synthetic-truth/1")
