"""Settings of an ingestion."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Final, Literal, get_args

from af.data.schema import UNKNOWN
from af.data.selection import Keep
from af.errors import UserError
from af.values import require_number

#: How to choose among several faces. "talking": the one that moves with the voice, else the largest that moves.
Face = Literal["talking", "largest", "left", "right"]
FACES: Final = get_args(Face)
#: What finds faces. "auto": mediapipe if package and model are there, else haar.
Detector = Literal["auto", "mediapipe", "haar"]
DETECTORS: Final = get_args(Detector)
#: Largest offset, in seconds, between the starts of two recordings.
LONGEST_OFFSET_S: Final = 3600


@dataclass(frozen=True)
class IngestOptions:
    """Settings shared by everything in one output folder.

    Crops are squares of `size` pixels, `margin` times as large as the face, which is detected in every
    `detect_every`-th frame. Clips last `min_s` to `max_s` seconds; faces may be missing for `bridged_gap_s`; the
    lengths of two people's files may differ by `length_tolerance_s`. `face` chooses among several faces (`FACES`). The
    second person's recording begins `offset_s` after the first one's; estimated offsets beyond `offset_limit_s` from
    that are refused. Of the clips only those are kept whose people all meet the condition `keep` (`Keep`; None: all).
    """

    size: Annotated[int, "pixels of the square crops"] = 512
    margin: Annotated[float, "side of the crop in face sizes"] = 2.0
    smoothing_s: float = 1.0
    detect_every: Annotated[int, "look for faces in every n-th frame"] = 5
    min_s: Annotated[float, "--min-seconds", "shortest clip"] = 2.0
    max_s: Annotated[float, "--max-seconds", "longest clip; longer ones are divided"] = 20.0
    bridged_gap_s: float = 1.0
    length_tolerance_s: Annotated[float, "--length-tolerance", "seconds by which files may differ"] = 1.0
    face: Annotated[Face, "of several faces: the one that moves with the voice, the largest, the left, the right"] = (
        "talking"
    )
    offset_s: Annotated[
        float,
        "--offset",
        "seconds by which the avatar's recording begins after the user's; also a column of the manifest",
    ] = 0.0
    offset_limit_s: Annotated[
        float,
        "--offset-limit",
        "seconds: drop conversations whose sides, or audio and lips, are certainly further apart",
    ] = 0.5
    detector: Annotated[
        Detector,
        "mediapipe finds turned and small faces and writes face.npy; haar needs no download; auto: mediapipe if it is there",
    ] = "auto"
    detector_model: Annotated[str | None, os.path.abspath, "model file of mediapipe; by default that of af fetch"] = (
        None
    )
    keep: Annotated[
        str | None, "drop clips unless everybody in them meets a condition, such as 'face_px >= 160 and sharpness > 40'"
    ] = None
    crf: Annotated[int, "H.264 quality, less is better; 12: 4 GB/h at 512 pixels"] = 12
    dataset: Annotated[str, "name recorded in the shards"] = "own"
    licence: Annotated[str, "licence recorded in the shards"] = UNKNOWN
    consent: Annotated[str, "what those shown agreed to, recorded in the shards"] = UNKNOWN

    def __post_init__(self) -> None:
        require_number("size", self.size, least=16, most=4096, whole=True)
        require_number("detect_every", self.detect_every, least=1, whole=True)
        require_number("crf", self.crf, least=0, most=40, whole=True)
        require_number("offset_s", self.offset_s, least=-LONGEST_OFFSET_S, most=LONGEST_OFFSET_S)
        for name in ("margin", "min_s", "max_s", "length_tolerance_s", "offset_limit_s"):
            require_number(name, getattr(self, name), above=0)
        if self.max_s < self.min_s:
            raise UserError(f"max_s {self.max_s:g} is less than min_s {self.min_s:g}")
        if self.keep is not None:
            Keep(self.keep, "--keep")
