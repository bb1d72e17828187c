"""How to ingest: the settings of one output folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from af.errors import UserError

#: How to choose among several faces. "talking": the one that moves with the voice, else the largest that moves at all.
FACES: Final = ("talking", "largest", "left", "right")
#: Seconds that one person's recording may begin before the other's.
LONGEST_OFFSET_S: Final = 3600


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest; the same for everything in one output folder.

    `size` pixels of the square crops; `margin` times the face is the crop's side; a face is looked for in every
    `detect_every`-th frame; clips last `min_s` to `max_s` seconds; faces may be missing for `bridged_gap_s`;
    the two people's files may differ by `length_tolerance_s`. `face` says which of several faces is the person
    (`FACES`); the second person's recording begins `offset_s` after the first one's; what is heard or seen to be
    apart by more than `offset_limit_s` beyond that is refused.
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
    detector: str = "haar"
    detector_model: str | None = None
    crf: int = 12
    dataset: str = "own"
    licence: str = "unknown"

    def __post_init__(self) -> None:
        if self.max_s < self.min_s:
            raise UserError(f"--max-seconds {self.max_s:g} is less than --min-seconds {self.min_s:g}")
