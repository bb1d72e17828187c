"""The reactions of synthetic dyads, whose causes are known: smiles, tilts and nods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from af.clock import FPS
from af.metrics.arrays import Clips, as_paired, undefined
from af.metrics.base import ClipMetric, ClipTable
from af.metrics.bootstrap import Interval, finish_mean, mean_sums
from af.metrics.coupling import pearson
from af.metrics.records import EvaluationClip, MetricRow


@dataclass(frozen=True)
class React:
    """Per-session values of one known reaction; NaN for sessions where it has no value."""

    values: Float[np.ndarray, " N"]

    @property
    def mean(self) -> float:
        """Mean over sessions with a value."""
        return float(np.nanmean(self.values)) if np.isfinite(self.values).any() else float("nan")

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over sessions."""
        kept = self.values[np.isfinite(self.values)]
        return float(kept.std(ddof=1) / np.sqrt(len(kept))) if len(kept) > 1 else float("nan")


def react_correlation(user: Clips, avatar: Clips, lag_frames: int) -> React:
    """`react/smile`, `react/tilt`: per session, Pearson of avatar[t + lag] with user[t] of one parameter each."""
    users, avatars = as_paired(user=user, avatar=avatar)
    values = [
        pearson(x[: len(x) - lag_frames], a[lag_frames:]) if len(x) > lag_frames + 2 else np.nan
        for x, a in zip(users, avatars, strict=True)
    ]
    if np.isnan(values).all():
        undefined("react", f"a parameter is constant or clips are shorter than {lag_frames + 3} frames")
    return React(np.asarray(values))


def react_nod(
    pitch: Clips, phrase_ends: Sequence[Sequence[int] | np.ndarray], after_s: float = 1.0, sign: float = 1.0
) -> React:
    """`react/nod`: mean of sign·pitch in the second after the partner's phrase ends, minus the mean elsewhere.

    `phrase_ends`: frame numbers per session; `sign` is the pitch direction of a nod. In the unit of `pitch`.
    NaN for sessions without a phrase end inside the clip, or with no frame elsewhere.
    """
    values = []
    for clip, ends in zip(as_paired(pitch=pitch)[0], phrase_ends, strict=True):
        after = np.zeros(len(clip), bool)
        for end in ends:
            after[max(int(end) + 1, 0) : max(int(end) + 1 + round(after_s * FPS), 0)] = True
        defined = after.any() and not after.all()
        values.append(float(sign * (clip[after].mean() - clip[~after].mean())) if defined else np.nan)
    if np.isnan(values).all():
        undefined("react/nod", "no phrase of the partner ends inside a clip")
    return React(np.asarray(values))


class KnownReactions(ClipMetric):
    """`react/*`: mean ± standard error over sessions; null: another conversation's user."""

    needs: ClassVar = {"react": "phrase_ends, which only synthetic dyads have"}
    headline = ("react/smile", "react/tilt", "react/nod")
    on_card = headline

    def __init__(self, smile_lag: int = 11, tilt_lag: int = 12, **draws: int) -> None:
        super().__init__(**draws)
        #: {tag: (parameter, lag in frames)} of the reactions that follow one parameter of the user's.
        self.followed = {"react/smile": ("smile", smile_lag), "react/tilt": ("roll", tilt_lag)}

    def measure(self, clip: EvaluationClip) -> dict[str, Any]:
        """The parameters that react, and the phrase ends."""
        assert clip.face is not None
        kept: dict[str, Any] = {"known": clip.phrase_ends is not None, "ends": np.array(clip.phrase_ends or (), int)}
        for d, name in enumerate(clip.face.names):
            if name in ("smile", "roll", "pitch"):
                kept |= {f"{side}/{name}": clip.side(side, d) for side in ("user", "true", "generated")}
        return kept

    def tabulate(self, table: ClipTable) -> None:
        """`react/smile`, `react/tilt`, `react/nod`, those whose parameter there is."""
        if not any(table["known"]):
            return
        for tag, (parameter, lag) in self.followed.items():
            if f"user/{parameter}" in table:
                x, y, g = (table[f"{side}/{parameter}"] for side in ("user", "true", "generated"))
                values = [react_correlation(u, a, lag) for u, a in ((x, g), (x, y), (table.of_partners(x), g))]
                self._row(table, tag, values, f"correlation at lag {lag} frames; {table.null_is}")
        if "user/pitch" in table:
            ends, (y, g) = table["ends"], (table[f"{side}/pitch"] for side in ("true", "generated"))
            if table.partner is not None:
                other = [ends[j][ends[j] < len(c)] for j, c in zip(table.partner, g, strict=True)]
            else:
                other = [(e + len(c) // 2) % len(c) for e, c in zip(ends, g, strict=True)]
            values = [react_nod(c, e) for c, e in ((g, ends), (y, ends), (g, other))]
            text = f"pitch in the 1 s after the user's phrase ends − elsewhere; {table.null_is}"
            self._row(table, "react/nod", values, text)

    def _row(self, table: ClipTable, tag: str, values: Sequence[React], protocol: str) -> None:
        own, true, null = values
        error = own.standard_error
        table.clip_values(tag, own.values)
        table.interval(tag, mean_sums(own.values), finish_mean)  # for its draws
        table.row(
            MetricRow(
                tag,
                own.mean,
                Interval(own.mean - 1.96 * error, own.mean + 1.96 * error, error) if np.isfinite(error) else None,
                int(np.isfinite(own.values).sum()),
                true.mean,
                null.mean,
                f"{protocol}; ± standard error over sessions; {table.face.tracker}, 25 fps",
                "true",
                error,
                true.standard_error,
                null.standard_error,
                note="" if np.isfinite(own.mean) else "undefined: nothing varies or no phrase ends inside a clip",
            )
        )
