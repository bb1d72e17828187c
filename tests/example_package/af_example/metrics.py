from __future__ import annotations

from typing import ClassVar

import numpy as np

from af.metrics.base import ClipMetric, ClipTable
from af.metrics.records import EvaluationClip


class Nods(ClipMetric):
    """How often the head tips down past a level."""

    needs: ClassVar = {"nods": "face parameters"}
    headline = ("nods/count",)
    on_card = headline

    def __init__(self, level: float = 0.5, **draws: int) -> None:
        super().__init__(**draws)
        self.level = level

    def measure(self, clip: EvaluationClip) -> dict[str, float]:
        pitch = clip.face.names.index("pitch")
        low = {side: (clip.side(side, pitch) > self.level).astype(int) for side in ("true", "generated")}
        return {side: float(np.sum(np.diff(values) == 1)) for side, values in low.items()}

    def tabulate(self, table: ClipTable) -> None:
        true, own = table.sums("true"), table.sums("generated")
        null = None if table.partner is None else true[table.partner]  # nods of another conversation's true avatar
        table.mean("nods/count", own, true=true, null=null, protocol=f"pitch above {self.level}")
