"""Coupling of avatar and user: residual Pearson correlation and time-lagged cross-correlation.

x = user, y = true avatar, ŷ = generated avatar.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from af.clock import FPS
from af.metrics.arrays import Array, Clip, nan_max, nan_mean, safe_divide
from af.metrics.base import FACES, ClipMetric, ClipTable, Sums
from af.metrics.bootstrap import finish_mean, mean_sums
from af.metrics.records import Better, Curve, EvaluationClip

#: A variance from power sums below this share of the mean square is rounding noise: the series is constant.
CONSTANT = 1e-13


def pcc_sums(user: Clip, avatar: Clip) -> Float[np.ndarray, "D 6"]:
    """Power sums of one clip, per dimension: n, Σx, Σx², Σa, Σa², Σxa. They add up over clips and ranks."""
    n = np.full(user.shape[1], float(len(user)))
    return np.stack(
        [n, user.sum(0), (user**2).sum(0), avatar.sum(0), (avatar**2).sum(0), (user * avatar).sum(0)], axis=-1
    )


def pcc_from_sums(sums: Float[np.ndarray, "... 6"]) -> Array:
    """Pearson correlation from n, Σx, Σx², Σa, Σa², Σxa; NaN where a side is constant or n < 2."""
    n, sx, sxx, sa, saa, sxa = np.moveaxis(sums, -1, 0)
    vx, va = n * sxx - sx**2, n * saa - sa**2
    varies = (n > 1) & (vx > CONSTANT * n * sxx) & (va > CONSTANT * n * saa)
    return safe_divide(n * sxa - sx * sa, np.where(varies, np.sqrt(np.abs(vx * va)), 0.0))


def pearson(a: Array, b: Array) -> float:
    """Pearson correlation of two flattened arrays (centred first); NaN without a warning when a side is constant."""
    a, b = a.ravel(), b.ravel()
    if a.size < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _spread(series: Clip) -> Float[np.ndarray, " D"]:
    """Standard deviation per dim; infinite for (nearly) constant dims, so scaling sets them to 0."""
    deviation = series.std(0)
    return np.where(deviation > 1e-12 * np.abs(series).max(0, initial=0.0), deviation, np.inf)


def lagged_pearson(
    first: Clip, second: Clip, max_lag: int, valid: np.ndarray | None = None
) -> Float[np.ndarray, "L D"]:
    """Pearson of second[t + lag] with first[t] over overlapping frames, for every lag −max_lag … max_lag.

    `valid` (T,) selects frames t of `first` (voiced frames). NaN where a side is constant or fewer than 3 frames
    overlap. All dimensions and lags are computed at once, by running sums and FFTs.
    """
    from scipy.fft import irfft, next_fast_len, rfft

    frames = len(first)
    weight = np.ones((frames, 1)) if valid is None else np.asarray(valid, np.float64)[:, None]
    # Centring and scaling over the whole clip keeps power sums small and avoids cancellation for any offset.
    first, second = ((s - s.mean(0)) / _spread(s) for s in (first, second))
    first = first * weight
    lags = np.arange(-max_lag, max_lag + 1)
    # Frames t of `first` for which t + lag lies inside the clip.
    start, stop = np.clip(-lags, 0, frames), np.clip(frames - lags, 0, frames)

    def summed(series: Array, shift: np.ndarray | int = 0) -> Array:
        running = np.concatenate([np.zeros((1, series.shape[1])), series.cumsum(axis=0)])
        return running[np.clip(stop + shift, 0, frames)] - running[np.clip(start + shift, 0, frames)]

    size = next_fast_len(frames + max_lag, real=True)  # long enough: wrap-around is beyond max_lag

    def crossed(a: Array, b: Array) -> Array:
        return irfft(np.conj(rfft(a, size, axis=0)) * rfft(b, size, axis=0), size, axis=0)[lags]

    n, sx, sxx, sxa = summed(weight), summed(first), summed(first**2), crossed(first, second)
    if valid is None:
        sa, saa = summed(second, lags), summed(second**2, lags)
    else:
        sa, saa = crossed(weight, second), crossed(weight, second**2)
    vx, va = n * sxx - sx**2, n * saa - sa**2
    # The FFT's rounding is about 1e-15 of the clip's energy (n² after scaling): variances below 1e-12 are 0.
    varies = (n > 2) & (vx > 1e-12 * frames * n) & (va > 1e-12 * frames * n)
    return safe_divide(n * sxa - sx * sa, np.where(varies, np.sqrt(np.abs(vx * va)), 0.0))


def tlcc_curves(users: list[Clip], avatars: list[Clip], max_lag: int) -> Float[np.ndarray, "N L"]:
    """Lagged correlation of each clip, mean over varying dimensions; NaN rows for clips without a value."""
    curves = np.full((len(users), 2 * max_lag + 1), np.nan)
    for i, (x, a) in enumerate(zip(users, avatars, strict=True)):
        if len(x) < max_lag + 3 or not (np.isfinite(x).all() and np.isfinite(a).all()):
            continue
        curve = lagged_pearson(x, a, max_lag)
        kept = ~np.isnan(curve).any(axis=0)
        if kept.any():
            curves[i] = curve[:, kept].mean(axis=1)
    return curves


def curve_sums(curves: Float[np.ndarray, "N L"]) -> Float[np.ndarray, "N S"]:
    """Curves as sums over clips: the values (0 where a clip has none), then the count; S = L + 1."""
    valid = np.isfinite(curves).all(axis=1)
    return np.concatenate([np.where(valid[:, None], curves, 0.0), valid[:, None].astype(np.float64)], axis=1)


def curve_from_sums(sums: Float[np.ndarray, "... S"]) -> Float[np.ndarray, "... L"]:
    """Mean curve from `curve_sums`."""
    return safe_divide(sums[..., :-1], sums[..., -1:])


def lag_rows(
    table: ClipTable,
    tag: str,
    sums: Mapping[str, Float[np.ndarray, "N S"]],
    names: tuple[str, str],
    protocol: str,
    sign: str,
    better: Better = "true",
) -> None:
    """Add height and lag of the mean curve's peak, and the curve, from `curve_sums`; `sign` explains positive lags."""
    lags = np.arange(sums["generated"].shape[1] - 1) - (sums["generated"].shape[1] - 2) // 2

    def peak(s: np.ndarray) -> np.ndarray:
        return nan_max(curve_from_sums(s))

    def where(s: np.ndarray) -> np.ndarray:
        curve = curve_from_sums(s)
        best = lags[np.where(np.isnan(curve), -np.inf, curve).argmax(axis=-1)]
        return np.where(np.isnan(curve).all(axis=-1), np.nan, best)

    own, true, null = sums["generated"], sums["true"], sums["null"]
    table.add(f"{tag}/{names[0]}", own, peak, true=true, null=null, protocol=protocol, better=better)
    table.add(f"{tag}/{names[1]}", own, where, true=true, protocol=f"frames; {protocol}")
    table.result.curves[tag] = Curve(
        lags / FPS,
        {side: curve_from_sums(s.sum(axis=0)) for side, s in sums.items()},
        f"{tag}: correlation by lag",
        f"lag (s), positive: {sign}",
        "Pearson correlation",
    )


class Coupling(ClipMetric):
    """`rpcc` in three poolings with the underlying signed correlations, and `tlcc`; null: another conversation's user.

    rPCC = |PCC(y, x) − PCC(ŷ, x)|: distance of the avatar's zero-lag correlation with the user from the true one; 0 is
    best, range [0, 2]. Pooled over all clips, frames and dims flattened; by clip; by dim (difference first, then mean).
    It does not see delayed reactions, so read it with `tlcc` and `reaction_gain`. TLCC is Pearson by lag, mean over
    dims, then over clips; at a positive lag the avatar follows the user. Source: DIM (pooled), DualTalk and R-DGG
    (clip), REACT2024 (TLCC).
    """

    needs: ClassVar = {"rpcc": FACES, "tlcc": FACES}
    headline = ("rpcc/exp", "rpcc/pose")
    on_card = ("tlcc/exp/peak", "tlcc/exp/lag", "rpcc/exp/clip")

    def __init__(self, max_lag: int = 49, **draws: int) -> None:
        super().__init__(**draws)
        self.max_lag = max_lag

    def measure(self, clip: EvaluationClip) -> dict[str, Any]:
        """Power sums and lag curves by part, and the series for the null."""
        kept: dict[str, Any] = {"user": clip.user, "generated": clip.generated}
        for name, part in clip.parts.items():
            x = clip.side("user", part)
            for side in ("true", "generated"):
                kept |= self._sums(f"{side}/{name}", x, clip.side(side, part))
        return kept

    def _sums(self, key: str, user: Clip, avatar: Clip) -> dict[str, np.ndarray]:
        curve = tlcc_curves([user], [avatar], self.max_lag)
        return {f"pcc/{key}": pcc_sums(user, avatar).ravel(), f"tlcc/{key}": curve_sums(curve)[0]}

    def tabulate(self, table: ClipTable) -> None:
        """`rpcc/{exp,pose}`, `…/clip`, `…/dim`, `pcc/…`, `tlcc/…/peak`, `tlcc/…/lag`."""
        users, avatars = ([np.asarray(c, np.float64) for c in table[side]] for side in ("user", "generated"))
        others = table.of_partners(users)
        for name, part in table.parts.items():
            nulls = [self._sums("", z[:, part], g[:, part]) for z, g in zip(others, avatars, strict=True)]
            self._rows(table, name, *(np.stack([null[f"{of}/"] for null in nulls]) for of in ("pcc", "tlcc")))

    def _rows(self, table: ClipTable, name: str, null: Sums, null_curves: Sums) -> None:
        true, generated = (table.sums(f"pcc/{side}/{name}") for side in ("true", "generated"))

        def pooled(sums: np.ndarray) -> np.ndarray:
            return pcc_from_sums(sums.reshape(*sums.shape[:-1], -1, 6).sum(axis=-2))

        def residual(sums: np.ndarray) -> np.ndarray:
            first, second = np.split(sums, 2, axis=-1)
            return np.abs(pooled(first) - pooled(second))

        def residual_dim(sums: np.ndarray) -> np.ndarray:
            each = pcc_from_sums(sums.reshape(*sums.shape[:-1], 2, -1, 6))
            return nan_mean(np.abs(each[..., 0, :] - each[..., 1, :]))

        both, broken = np.concatenate([true, generated], 1), np.concatenate([true, null], 1)
        clips, broken_clips = mean_sums(residual(both)), mean_sums(residual(broken))
        for tag, sums, finish, nothing, text in (
            (f"rpcc/{name}", both, residual, broken, f"pooled; {table.null_is}"),
            (f"rpcc/{name}/clip", clips, finish_mean, broken_clips, "mean over clips"),
            (f"rpcc/{name}/dim", both, residual_dim, broken, "mean over dims"),
        ):
            table.add(tag, sums, finish, true=0.0, null=nothing, protocol=text, better="lower")
        table.add(f"pcc/{name}", generated, pooled, true=true, null=null, protocol="signed, pooled")
        curves = {side: table.sums(f"tlcc/{side}/{name}") for side in ("true", "generated")} | {"null": null_curves}
        text = f"lags ±{self.max_lag}; {table.null_is}"
        lag_rows(table, f"tlcc/{name}", curves, ("peak", "lag"), text, "the avatar follows the user")
