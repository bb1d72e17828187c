"""The metrics as torchmetrics classes: float64 sums over clips, exact on any number of ranks.

`update` takes clips as lists of (T_i, D) tensors or arrays. A vector of sums is the whole state, so memory does not grow
with the clips (`af.evaluation.gathered` has those that need all frames). Pass each clip once (mask the padding of
distributed validation) and call `compute` on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from af.evaluation.clips import fit_length
from af.metrics import coupling, diversity, frechet, lipsync, reaction, smoothness
from af.metrics.arrays import Clips, as_clips, as_paired, nan_mean, undefined
from af.metrics.bootstrap import finish_mean, mean_sums


class SumsMetric(Metric):
    """A metric that is a function of sums over clips: subclasses add a clip's sums and finish the total."""

    full_state_update = False
    is_differentiable = False
    sums: Tensor

    def __init__(self, size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, sums: Float[np.ndarray, " S"]) -> None:
        """Add the sums of a clip, or of several."""
        self.sums = self.sums + torch.as_tensor(np.asarray(sums, np.float64), device=self.sums.device)

    def finish(self, sums: Float[np.ndarray, " S"]) -> Any:
        """The metric's value, or a dict of values, from the total sums."""
        raise NotImplementedError

    def compute(self) -> Tensor | dict[str, Tensor]:
        """The value over all clips of all ranks, float64; NaN with a warning when it has none."""
        return as_result(type(self).__name__, self.finish(self.sums.cpu().numpy()))


def as_result(name: str, value: Any) -> Tensor | dict[str, Tensor]:
    """Float64 tensors, with a warning when a value is NaN."""
    values = value if isinstance(value, dict) else {"": value}
    missing = [k for k, v in values.items() if np.isnan(np.asarray(v, np.float64)).any()]
    if missing:
        undefined(f"{name} {', '.join(missing)}".strip(), "no clip, or a series is constant, not finite or too short")
    tensors = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in values.items()}
    return tensors if isinstance(value, dict) else tensors[""]


class RPCC(SumsMetric):
    """`rpcc` with both signed correlations: {"rpcc", "pcc/true", "pcc/generated"}; poolings as in the function."""

    def __init__(self, dims: int, pooling: coupling.Pooling = "pooled", **kwargs: Any):
        self.dims, self.pooling = dims, pooling
        super().__init__(dims * 12 + 2, **kwargs)

    def update(self, user: Clips, true: Clips, generated: Clips) -> None:
        """Add clips."""
        for x, y, g in zip(*as_paired(user=user, true=true, generated=generated), strict=True):
            pairs = [coupling.pcc_sums(x, y).ravel(), coupling.pcc_sums(x, g).ravel()]
            residual = abs(coupling.pearson(x, y) - coupling.pearson(x, g))
            self.add(np.concatenate([*pairs, mean_sums(np.array([residual]))[0]]))

    def finish(self, sums: Float[np.ndarray, " S"]) -> dict[str, float]:
        """Residual and signed correlations."""
        each = sums[:-2].reshape(2, self.dims, 6)
        by_dim, pooled = coupling.pcc_from_sums(each), coupling.pcc_from_sums(each.sum(axis=1))
        residual = {
            "pooled": abs(pooled[0] - pooled[1]),
            "dim": nan_mean(np.abs(by_dim[0] - by_dim[1])),
            "clip": finish_mean(sums[-2:]),
        }[self.pooling]
        return {"rpcc": float(residual), "pcc/true": float(pooled[0]), "pcc/generated": float(pooled[1])}


class TLCC(SumsMetric):
    """`tlcc` of one pair of series: {"peak", "lag", "curve"}."""

    def __init__(self, max_lag: int = 49, **kwargs: Any):
        self.max_lag = max_lag
        super().__init__(2 * max_lag + 2, **kwargs)

    def update(self, user: Clips, avatar: Clips) -> None:
        """Add clips; those shorter than max_lag + 3 frames or without variation do not count."""
        users, avatars = as_paired(user=user, avatar=avatar)
        self.add(coupling.curve_sums(coupling.tlcc_curves(users, avatars, self.max_lag)).sum(axis=0))

    def finish(self, sums: Float[np.ndarray, " S"]) -> dict[str, Any]:
        """Height and lag (frames) of the peak of the mean curve, and the curve."""
        return _curve_values(sums, self.max_lag)


def _curve_values(sums: Float[np.ndarray, " S"], max_lag: int) -> dict[str, Any]:
    curve = coupling.LagCurve(np.arange(-max_lag, max_lag + 1), coupling.curve_from_sums(sums))
    return {"peak": curve.peak, "lag": curve.lag, "curve": curve.correlation}


class FD(SumsMetric):
    """`fd`: Fréchet distance of parameter frames per clip, then mean."""

    def __init__(self, **kwargs: Any):
        super().__init__(2, **kwargs)

    def update(self, true: Clips, generated: Clips) -> None:
        """Add clips; those of fewer than 2 frames do not count."""
        pairs = zip(as_clips(true, "true"), as_clips(generated, "generated"), strict=True)
        self.add(mean_sums(np.array([frechet.clip_frechet(t, g) for t, g in pairs])).sum(axis=0))

    def finish(self, sums: Float[np.ndarray, " 2"]) -> float:
        """Mean over clips."""
        return float(finish_mean(sums))


class PFD(FD):
    """`pfd`: Fréchet distance between [x, y] and [x, ŷ] per clip, then mean."""

    def update(self, user: Clips, true: Clips, generated: Clips) -> None:  # type: ignore[override]
        """Add clips."""
        users, trues, generateds = as_paired(user=user, true=true, generated=generated)
        joined = [[np.concatenate([x, a], 1) for x, a in zip(users, side, strict=True)] for side in (trues, generateds)]
        super().update(*joined)


class Variance(SumsMetric):
    """`variance` of clips, "clip" or "pooled"."""

    def __init__(self, pooling: str = "clip", **kwargs: Any):
        if pooling not in ("clip", "pooled"):
            raise ValueError(f"pooling must be 'clip' or 'pooled', got {pooling!r}")
        self.pooling = pooling
        super().__init__(5, **kwargs)

    def update(self, clips: Clips) -> None:
        """Add clips."""
        arrays = as_clips(clips)
        means = mean_sums(diversity.clip_variances(arrays).mean(axis=1)).sum(axis=0)
        flat = np.array([[c.size, c.sum(), np.square(c).sum()] for c in arrays]).sum(axis=0)
        self.add(np.concatenate([means, flat]))

    def finish(self, sums: Float[np.ndarray, " 5"]) -> float:
        """Mean of the clips' variances, or the variance of everything."""
        if self.pooling == "clip":
            return float(finish_mean(sums[:2]))
        return float(sums[4] / sums[2] - (sums[3] / sums[2]) ** 2) if sums[1] else float("nan")


class VarRatio(SumsMetric):
    """`var_ratio`: generated over true variance for each parameter (D,)."""

    def __init__(self, dims: int, **kwargs: Any):
        self.dims = dims
        super().__init__(2 * dims, **kwargs)

    def update(self, true: Clips, generated: Clips) -> None:
        """Add clips; those of fewer than 2 frames do not count."""
        sides = (diversity.clip_variances(as_clips(c, n)) for c, n in ((generated, "generated"), (true, "true")))
        self.add(np.concatenate([np.nan_to_num(v).sum(axis=0) for v in sides]))

    def finish(self, sums: Float[np.ndarray, " S"]) -> Float[np.ndarray, " D"]:
        """Ratio of the means over clips."""
        own, true = sums[: self.dims], sums[self.dims :]
        return diversity.variance_ratio(own, true)


class BorderRatio(SumsMetric):
    """`border_ratio` for blocks of `block` frames (first border at `first`, default `block`)."""

    def __init__(self, block: int, first: int | None = None, **kwargs: Any):
        self.block, self.first = block, first
        super().__init__(4, **kwargs)

    def update(self, clips: Clips) -> None:
        """Add clips."""
        self.add(np.sum([smoothness.border_sums(c, self.block, self.first) for c in as_clips(clips)], axis=0))

    def finish(self, sums: Float[np.ndarray, " 4"]) -> float:
        """Mean at borders over mean elsewhere."""
        return float(smoothness.border_from_sums(sums))


class Jerk(SumsMetric):
    """`jerk`, units/s³."""

    def __init__(self, **kwargs: Any):
        super().__init__(2, **kwargs)

    def update(self, clips: Clips) -> None:
        """Add clips."""
        self.add(np.sum([smoothness.jerk_sums(c) for c in as_clips(clips)], axis=0))

    def finish(self, sums: Float[np.ndarray, " 2"]) -> float:
        """Mean norm."""
        return float(finish_mean(sums))


class LipSync(SumsMetric):
    """`lip/corr` and `lip/lag`, and `control`: the peak with the sound shifted by half the clip."""

    def __init__(self, max_lag: int = 10, **kwargs: Any):
        self.max_lag = max_lag
        super().__init__(2 * (2 * max_lag + 2), **kwargs)

    def update(self, mouth: Sequence[Tensor | np.ndarray], audio: Sequence[Tensor | np.ndarray]) -> None:
        """Add clips: mouth opening (T_i,) and 16 kHz audio (S_i,)."""
        for opening, sound in zip(mouth, audio, strict=True):
            curves = [lipsync.lip_curve(opening, s, self.max_lag) for s in (sound, lipsync.shifted(sound))]
            self.add(np.concatenate([coupling.curve_sums(c[None])[0] for c in curves]))

    def finish(self, sums: Float[np.ndarray, " S"]) -> dict[str, float]:
        """Peak of the mean curve, its lag in frames, and the control's peak."""
        own, control = (_curve_values(s, self.max_lag) for s in np.split(sums, 2))
        return {"corr": own["peak"], "lag": own["lag"], "control": control["peak"]}


class MouthCorr(SumsMetric):
    """Generated against true mouth opening: {"peak", "lag", "curve"}, lags ± `max_lag` frames."""

    def __init__(self, max_lag: int = 5, **kwargs: Any):
        self.max_lag = max_lag
        super().__init__(2 * max_lag + 2, **kwargs)

    def update(self, true: Sequence[Tensor | np.ndarray], generated: Sequence[Tensor | np.ndarray]) -> None:
        """Add clips of mouth opening (T_i,)."""
        for t, g in zip(true, generated, strict=True):
            self.add(coupling.curve_sums(lipsync.mouth_corr(t, g, self.max_lag).correlation[None])[0])

    def finish(self, sums: Float[np.ndarray, " S"]) -> dict[str, Any]:
        """Peak of the mean curve, its lag, the curve."""
        return _curve_values(sums, self.max_lag)


class React(SumsMetric):
    """`react/*`: mean and standard error over sessions of a per-session value, of generated, true and null.

    The null needs another session's user, which the caller passes as `other` (cut or repeated to the clip's length).
    """

    def __init__(self, reaction_name: str, lag_frames: int = 11, **kwargs: Any):
        if reaction_name not in ("smile", "tilt", "nod"):
            raise ValueError(f"reaction must be 'smile', 'tilt' or 'nod', got {reaction_name!r}")
        self.reaction_name, self.lag_frames = reaction_name, lag_frames
        super().__init__(9, **kwargs)

    def update(self, user: Sequence, true: Sequence, generated: Sequence, other: Sequence) -> None:
        """Add sessions: one parameter (T_i,) each; for nods `user` and `other` are phrase ends in frames."""
        if self.reaction_name == "nod":
            sides = [reaction.react_nod(c, e) for c, e in ((generated, user), (true, user), (generated, other))]
        else:
            fitted = [fit_length(np.asarray(o), len(g)) for o, g in zip(other, generated, strict=True)]
            pairs = ((user, generated), (user, true), (fitted, generated))
            sides = [reaction.react_correlation(u, a, self.lag_frames) for u, a in pairs]
        parts = []
        for side in sides:
            kept = side.values[np.isfinite(side.values)]
            parts.append([len(kept), kept.sum(), np.square(kept).sum()])
        self.add(np.concatenate(parts))

    def finish(self, sums: Float[np.ndarray, " 9"]) -> dict[str, float]:
        """Means and standard errors."""
        result = {}
        for name, (n, total, squares) in zip(("", "/true", "/null"), sums.reshape(3, 3), strict=True):
            mean = total / n if n else float("nan")
            spread = np.sqrt(max(squares / n - mean**2, 0.0) / (n - 1)) if n > 1 else float("nan")
            result[f"react/{self.reaction_name}{name}"] = float(mean)
            result[f"react/{self.reaction_name}{name}/se"] = float(spread)
        return result


class MeanPerItem(SumsMetric):
    """Mean of any per-clip or per-image value (CSIM, PSNR, SSIM, L1, LPIPS); items without a value do not count."""

    def __init__(self, function: Callable[..., Any], **kwargs: Any):
        self.function = function
        super().__init__(2, **kwargs)

    def update(self, *args: Any) -> None:
        """Add the values `function(*args)` returns, one number or an array of them."""
        values = self.function(*args)
        values = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        self.add(mean_sums(np.atleast_1d(values).astype(np.float64).ravel()).sum(axis=0))

    def finish(self, sums: Float[np.ndarray, " 2"]) -> float:
        """Mean over items."""
        return float(finish_mean(sums))


class Latency(SumsMetric):
    """`latency` of measured blocks: {"mean_ms", "worst_ms"}; see `af.metrics.latency.latency` for the arguments."""

    worst: Tensor

    def __init__(self, block: int, look_ahead: int = 0, audio_right_context: int = 0, **kwargs: Any):
        self.waiting = (block, look_ahead, audio_right_context)
        super().__init__(2, **kwargs)
        self.add_state("worst", torch.tensor(-torch.inf, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, computing_ms: Sequence[float]) -> None:
        """Add measured blocks, ms."""
        times = np.asarray(computing_ms, np.float64)
        self.add(np.array([times.sum(), times.size]))
        if times.size:
            self.worst = torch.maximum(self.worst, self.worst.new_tensor(times.max()))

    def finish(self, sums: Float[np.ndarray, " 2"]) -> dict[str, float]:
        """Waiting plus computing."""
        from af.clock import FRAME_MS
        from af.metrics.latency import waiting_frames

        mean, worst = waiting_frames(*self.waiting)
        return {
            "mean_ms": mean * FRAME_MS + float(finish_mean(sums)),
            "worst_ms": worst * FRAME_MS + float(self.worst),
        }


class RealTimeFactor(SumsMetric):
    """`speed/rtf` in all and `speed/rtf/<stage>`: compute time over media time of all clips."""

    def __init__(self, stages: Sequence[str] = ("features", "motion", "decoding"), **kwargs: Any):
        self.stages = tuple(stages)
        super().__init__(len(self.stages) + 1, **kwargs)

    def update(self, compute_s: Mapping[str, float], frames: int) -> None:
        """Add seconds of computing by stage (a stage left out took none) for `frames` frames of media."""
        if unknown := set(compute_s) - set(self.stages):
            raise ValueError(f"unknown stage {sorted(unknown)[0]!r}; this metric has {', '.join(self.stages)}")
        self.add(np.array([*(compute_s.get(stage, 0.0) for stage in self.stages), frames]))

    def finish(self, sums: Float[np.ndarray, " S"]) -> dict[str, float]:
        """Factors; NaN without a frame."""
        from af.metrics.latency import real_time_factor

        seconds = dict(zip(self.stages, sums[:-1].tolist(), strict=True))
        if not sums[-1]:
            return {"speed/rtf": float("nan")}
        return real_time_factor(seconds, int(sums[-1]))
