"""Reactions of synthetic dyads with known causes: smiles, tilts and nods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from af.clock import FPS
from af.metrics.base import ClipMetric, ClipTable
from af.metrics.bootstrap import Interval, finish_mean, mean_sums
from af.metrics.coupling import pearson
from af.metrics.records import EvaluationClip, MetricRow


def correlation_at_lag(user: Float[np.ndarray, " T"], avatar: Float[np.ndarray, " T"], lag_frames: int) -> float:
    """Pearson of avatar[t + lag] with user[t], for one parameter; NaN for short or constant sessions."""
    long_enough = len(user) > lag_frames + 2
    return pearson(user[: len(user) - lag_frames], avatar[lag_frames:]) if long_enough else float("nan")


def nod_response(
    pitch: Float[np.ndarray, " T"], phrase_ends: Sequence[int] | np.ndarray, after_s: float = 1.0
) -> float:
    """Mean pitch in the second after the partner's phrase ends (`phrase_ends`, frames), minus the mean elsewhere.

    NaN for sessions without a phrase end inside the clip, or without other frames.
    """
    after = np.zeros(len(pitch), bool)
    for end in phrase_ends:
        after[max(int(end) + 1, 0) : max(int(end) + 1 + round(after_s * FPS), 0)] = True
    defined = after.any() and not after.all()
    return float(pitch[after].mean() - pitch[~after].mean()) if defined else float("nan")


def mean_and_error(values: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """Mean and standard error over sessions with a value; NaN if there are too few."""
    kept = values[np.isfinite(values)]
    error = float(kept.std(ddof=1) / np.sqrt(len(kept))) if len(kept) > 1 else float("nan")
    return float(np.nanmean(values)) if len(kept) else float("nan"), error


class KnownReactions(ClipMetric):
    """`react/*`: mean ± standard error over sessions; null: another conversation's user."""

    needs: ClassVar = {"react": "phrase_ends, which only synthetic dyads have"}
    headline = ("react/smile", "react/tilt", "react/nod")
    on_card = headline

    def __init__(self, smile_lag: int = 11, tilt_lag: int = 12, **draws: int) -> None:
        super().__init__(**draws)
        #: {tag: (parameter, lag in frames)} of reactions that follow one parameter of the user.
        self.followed = {"react/smile": ("smile", smile_lag), "react/tilt": ("roll", tilt_lag)}

    def measure(self, clip: EvaluationClip) -> dict[str, Any]:
        """The reacting parameters, and the phrase ends."""
        assert clip.face is not None
        kept: dict[str, Any] = {"known": clip.phrase_ends is not None, "ends": np.array(clip.phrase_ends or (), int)}
        for d, name in enumerate(clip.face.names):
            if name in ("smile", "roll", "pitch"):
                kept |= {f"{side}/{name}": clip.side(side, d) for side in ("user", "true", "generated")}
        return kept

    def tabulate(self, table: ClipTable) -> None:
        """`react/smile`, `react/tilt` and `react/nod`, for the parameters that exist."""
        if not any(table["known"]):
            return
        for tag, (parameter, lag) in self.followed.items():
            if f"user/{parameter}" in table:
                x, y, g = (table[f"{side}/{parameter}"] for side in ("user", "true", "generated"))
                pairs = (x, g), (x, y), (table.of_partners(x), g)
                values = [[correlation_at_lag(u, a, lag) for u, a in zip(*pair, strict=True)] for pair in pairs]
                self._row(table, tag, values, f"correlation at lag {lag} frames; {table.null_is}")
        if "user/pitch" in table:
            ends, (y, g) = table["ends"], (table[f"{side}/pitch"] for side in ("true", "generated"))
            if table.partner is not None:
                other = [ends[j][ends[j] < len(c)] for j, c in zip(table.partner, g, strict=True)]
            else:
                other = [(e + len(c) // 2) % len(c) for e, c in zip(ends, g, strict=True)]
            pairs = (g, ends), (y, ends), (g, other)
            values = [[nod_response(c, e) for c, e in zip(*pair, strict=True)] for pair in pairs]
            text = f"pitch in the 1 s after the user's phrase ends − elsewhere; {table.null_is}"
            self._row(table, "react/nod", values, text)

    def _row(self, table: ClipTable, tag: str, values: Sequence[Sequence[float]], protocol: str) -> None:
        own, true, null = map(np.array, values)
        table.clip_values(tag, own)
        table.interval(tag, mean_sums(own), finish_mean)  # for its draws
        (value, error), truth, broken = map(mean_and_error, (own, true, null))
        table.row(
            MetricRow(
                tag,
                value,
                Interval(value - 1.96 * error, value + 1.96 * error, error) if np.isfinite(error) else None,
                int(np.isfinite(own).sum()),
                truth[0],
                broken[0],
                f"{protocol}; ± standard error over sessions; {table.face.tracker}, 25 fps",
                "true",
                error,
                truth[1],
                broken[1],
                note="" if np.isfinite(value) else "undefined: nothing varies or no phrase ends inside a clip",
            )
        )
