"""Settings of an ingestion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from af.data.selection import Keep
from af.errors import UserError

#: How to choose among several faces. "talking": the one that moves with the voice, else the largest that moves.
FACES: Final = ("talking", "largest", "left", "right")
#: What finds faces. "auto": mediapipe if package and model are there, else haar.
DETECTORS: Final = ("auto", "mediapipe", "haar")
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

    size: int = 512
    margin: float = 2.0
    smoothing_s: float = 1.0
    detect_every: int = 5
    min_s: float = 2.0
    max_s: float = 20.0
    bridged_gap_s: float = 1.0
    length_tolerance_s: float = 1.0
    face: str = "talking"
    offset_s: float = 0.0
    offset_limit_s: float = 0.5
    detector: str = "auto"
    detector_model: str | None = None
    keep: str | None = None
    crf: int = 12
    dataset: str = "own"
    licence: str = "unknown"

    def __post_init__(self) -> None:
        if self.max_s < self.min_s:
            raise UserError(f"--max-seconds {self.max_s:g} is less than --min-seconds {self.min_s:g}")
        if self.keep is not None:
            Keep(self.keep, "--keep")
