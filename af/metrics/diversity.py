"""Diversity of motion: entropy of its clusters (SID) and variance, both to be compared with the true values."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from af.metrics.arrays import Array, Clip, UndefinedMetricWarning, nan_mean, safe_divide, undefined
from af.metrics.base import FACES, ClipMetric, ClipTable
from af.metrics.records import EvaluationClip, MetricRow, digest


def fit_clusters(true: Sequence[Clip], clusters: int, name: str = "sid") -> Float[np.ndarray, "K D"] | None:
    """k-means centres on the pooled true frames, in clip order (scikit-learn, random_state 0, n_init "auto").

    None, with a warning, if there are fewer distinct frames than clusters or frames are not finite.
    """
    from sklearn.cluster import KMeans

    frames = np.concatenate(true)
    if not np.isfinite(frames).all():
        undefined(name, "true frames are not finite")
        return None
    distinct = len(np.unique(frames, axis=0)) if len(frames) < 50 * clusters else len(frames)
    if distinct < clusters:
        undefined(name, f"{distinct} distinct true frames for {clusters} clusters")
        return None
    return KMeans(clusters, random_state=0, n_init="auto").fit(frames).cluster_centers_


def cluster_counts(clip: Clip, centres: Float[np.ndarray, "K D"]) -> Int[np.ndarray, " K"]:
    """Number of frames of a clip nearest to each centre. Summed over clips, they are SID's histogram."""
    distance = (centres**2).sum(1) - 2 * clip @ centres.T  # + |clip|², the same for every centre
    return np.bincount(distance.argmin(1), minlength=len(centres))


def entropy_bits(counts: Float[np.ndarray, "... K"]) -> Float[np.ndarray, ...]:
    """Shannon entropy of histograms, in bits; NaN for an empty one."""
    p = safe_divide(counts, np.asarray(counts).sum(axis=-1, keepdims=True))
    return -np.sum(np.where(p > 0, p * np.log2(np.where(p > 0, p, 1.0)), p * 0.0), axis=-1) + 0.0  # no −0


def clip_variance(clip: Clip) -> Float[np.ndarray, " D"]:
    """Variance over time (ddof 0) of each feature; NaN below 2 frames."""
    return clip.var(axis=0) if len(clip) > 1 else np.full(clip.shape[1], np.nan)


def variance_ratio(own: Float[np.ndarray, "... D"], true: Float[np.ndarray, "... D"]) -> Array:
    """Ratio of variances (or of their sums); NaN for parameters without true variance beyond rounding."""
    varies = true > 1e-18
    return safe_divide(np.where(varies, own, 0.0), np.where(varies, true, 0.0))


#: Expressions that vary less, relative to the one that varies most in the truth, do not count and have no rows.
STILL = 0.01


def that_vary(variances: Float[np.ndarray, "N D"], expression: int) -> Bool[np.ndarray, " D"]:
    """Whether each parameter, of which the first `expression` are scores of expressions, varies enough for a row of its
    own, given its true variance over time in each clip. Poses always do. Trackers of real faces have many scores that say
    nothing (`STILL`), such as MediaPipe's `_neutral`.
    """
    mean = np.nan_to_num(variances).mean(0)
    least = np.zeros(len(mean))
    least[:expression] = STILL * mean[:expression].max(initial=0.0)
    return mean >= least


class Diversity(ClipMetric):
    """`sid` for every number of clusters, `var` in both poolings, and `var_ratio` by parameter.

    SID is the entropy (bits, at most log2 K) of the generated frames over k-means clusters of the true frames; higher
    is more diverse. Variance is over time per feature, mean over features, then clips (the paper, DualTalk), or of
    everything flattened (DIM), in squared units of the parameters. Values should be close to the truth, not large:
    var_ratio is generated over true variance, 1 is right and 0 motionless. Expressions that hardly vary (`STILL`), of
    which trackers of real faces have many, have no row and do not count in the mean: their ratios are noise. Source: DIM
    (40 clusters for expression, 20 for pose); the paper states 15 and 9.
    """

    needs: ClassVar = {"sid": FACES, "var": FACES}
    headline = ("sid/exp", "sid/pose", "var/exp", "var/pose")
    on_card = ("var_ratio/exp", "var_ratio/pose")

    def __init__(self, clusters: Sequence[tuple[int, int]] = ((40, 20), (15, 9)), **draws: int) -> None:
        super().__init__(**draws)
        self.clusters = clusters
        self._centres: dict[str, tuple[str, Float[np.ndarray, "K D"] | None, str]] = {}

    def measure(self, clip: EvaluationClip) -> dict[str, Any]:
        """The series for clustering, and sums of their variances."""
        kept: dict[str, Any] = {side: getattr(clip, side) for side in ("true", "generated")}
        for name, part in clip.parts.items():
            for side in ("true", "generated"):
                series = clip.side(side, part)
                kept[f"variance/{side}/{name}"] = clip_variance(series)
                kept[f"flat/{side}/{name}"] = [series.size, series.sum(), np.square(series).sum()]
        return kept

    def tabulate(self, table: ClipTable) -> None:
        """`sid/{exp,pose}` (and `…/kN`), `var/…`, `var/…/pooled`, `var_ratio/…`."""
        for name, part in table.parts.items():
            self._clusters(table, name, part)
            self._variances(table, name, part)

    def _clusters(self, table: ClipTable, name: str, part: slice) -> None:
        true, generated = ([np.asarray(c, np.float64)[:, part] for c in table[side]] for side in ("true", "generated"))
        for i, pair in enumerate(self.clusters):
            clusters = pair[0 if name == "exp" else 1]
            tag = f"sid/{name}" if i == 0 else f"sid/{name}/k{clusters}"
            text = f"K = {clusters}, bound {np.log2(clusters):.3f} bits, k-means on true frames"
            centres, why = self._fitted(tag, true, clusters)
            if centres is None:
                table.row(MetricRow(tag, float("nan"), protocol=text, note=why))
                continue
            counts = [np.stack([cluster_counts(c, centres) for c in side]).astype(float) for side in (generated, true)]
            table.add(tag, counts[0], entropy_bits, true=counts[1], protocol=text)

    def _fitted(self, tag: str, true: list[Clip], clusters: int) -> tuple[Float[np.ndarray, "K D"] | None, str]:
        """Cluster centres, or why there are none; the same true clips are fitted only once."""
        content = digest(np.concatenate(true))
        known = self._centres.get(tag)
        if known is None or known[0] != content:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UndefinedMetricWarning)
                centres = fit_clusters(true, clusters, tag)
            known = self._centres[tag] = content, centres, str(caught[-1].message) if caught else "no clusters"
        return known[1:]

    def _variances(self, table: ClipTable, name: str, part: slice) -> None:
        own, true = (table.sums(f"variance/{side}/{name}") for side in ("generated", "true"))
        text = "over time, mean of features, then clips"
        table.mean(f"var/{name}", own.mean(axis=1), true=true.mean(axis=1), protocol=text)
        flat = [table.sums(f"flat/{side}/{name}") for side in ("generated", "true")]
        text = "of everything flattened"
        table.add(f"var/{name}/pooled", flat[0], pooled_variance, true=flat[1], protocol=text)
        both = np.stack([np.nan_to_num(own), np.nan_to_num(true)], axis=-1)  # clips, parameters, sides
        least = STILL if name == "exp" else 0.0
        text = "mean over parameters" + (f" with {least:.0%} of the largest true variance or more" if least else "")
        finish = partial(_mean_ratio, least=least)
        table.add(f"var_ratio/{name}", both.reshape(len(both), -1), finish, true=1.0, protocol=text)
        text = "generated / true variance over time"
        for d in np.flatnonzero(that_vary(true, true.shape[1] if name == "exp" else 0)):
            tag = f"var_ratio/{table.face.names[part][d]}"
            table.add(tag, both[:, d], _mean_ratio, true=1.0, protocol=text, per_clip=False)


def pooled_variance(sums: Float[np.ndarray, "... 3"]) -> Array:
    """Variance (ddof 0) from n, Σx, Σx²."""
    return sums[..., 2] / sums[..., 0] - np.square(sums[..., 1] / sums[..., 0])


def _mean_ratio(sums: Float[np.ndarray, "... S"], least: float = 0.0) -> Array:
    own, true = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 2), -1, 0)
    counted = true >= least * true.max(axis=-1, keepdims=True)
    return nan_mean(variance_ratio(own, np.where(counted, true, 0.0)))
