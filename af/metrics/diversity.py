"""How rich the motion is: entropy of its clusters (SID) and variance, always to be read beside the true values."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from af.metrics.arrays import Array, Clip, Clips, as_clips, mean_of_defined, nan_mean, safe_divide, same_dims, undefined


def fit_clusters(true: Clips, clusters: int, name: str = "sid") -> Float[np.ndarray, "K D"] | None:
    """k-means centres on the pooled true frames, in clip order (scikit-learn, random_state 0, n_init "auto").

    None, with a warning, when there are fewer distinct frames than clusters or frames are not finite.
    """
    from sklearn.cluster import KMeans

    if not (clips := as_clips(true, "true")):
        undefined(name, "no true clips")
        return None
    frames = np.concatenate(clips)
    if not np.isfinite(frames).all():
        undefined(name, "true frames are not finite")
        return None
    distinct = len(np.unique(frames, axis=0)) if len(frames) < 50 * clusters else len(frames)
    if distinct < clusters:
        undefined(name, f"{distinct} distinct true frames for {clusters} clusters")
        return None
    return KMeans(clusters, random_state=0, n_init="auto").fit(frames).cluster_centers_


def cluster_counts(clip: Clip, centres: Float[np.ndarray, "K D"]) -> Int[np.ndarray, " K"]:
    """Frames of a clip nearest to each centre. Sums over clips make SID's pooled histogram."""
    distance = (centres**2).sum(1) - 2 * clip @ centres.T  # + |clip|², the same for every centre
    return np.bincount(distance.argmin(1), minlength=len(centres))


def entropy_bits(counts: Float[np.ndarray, "... K"]) -> Float[np.ndarray, ...]:
    """Shannon entropy of histograms, in bits; NaN for an empty one."""
    p = safe_divide(counts, np.asarray(counts).sum(axis=-1, keepdims=True))
    return -np.sum(np.where(p > 0, p * np.log2(np.where(p > 0, p, 1.0)), p * 0.0), axis=-1) + 0.0  # no −0


def sid(true: Clips, generated: Clips, clusters: int) -> float:
    """Shannon index for diversity: entropy (bits) of the generated frames over k-means clusters of the true frames.

    Bound: log2(clusters). Higher is richer; compare with `sid(true, true, clusters)`. NaN with a warning when the
    clusters cannot be fitted. Source: DIM (40 clusters for expression, 20 for pose); the paper states 15 and 9.
    """
    true, generated = as_clips(true, "true"), as_clips(generated, "generated")
    same_dims(true=true, generated=generated)
    centres = fit_clusters(true, clusters)
    if centres is None:
        return float("nan")
    if not generated or not all(np.isfinite(c).all() for c in generated):
        return undefined("sid", "generated frames are missing or not finite")
    return float(entropy_bits(np.sum([cluster_counts(c, centres) for c in generated], axis=0)))


def clip_variances(clips: list[Clip]) -> Float[np.ndarray, "N D"]:
    """Variance over time (ddof 0) of each clip and feature; NaN rows for clips of fewer than 2 frames."""
    return np.array([c.var(axis=0) if len(c) > 1 else np.full(c.shape[1], np.nan) for c in clips])


def variance_ratio(own: Float[np.ndarray, "... D"], true: Float[np.ndarray, "... D"]) -> Array:
    """Quotient of variances (or of their sums); NaN for parameters whose true variance is rounding at most."""
    varies = true > 1e-18
    return safe_divide(np.where(varies, own, 0.0), np.where(varies, true, 0.0))


def variance(clips: Clips, pooling: Literal["clip", "pooled"] = "clip") -> float:
    """Variance of motion (ddof 0), in squared units of the parameters; closeness to the true value is good, not size.

    "clip": over time per feature, mean over features, then clips (paper, DualTalk). "pooled": of everything flattened
    (DIM). NaN with a warning without a clip of 2 frames.
    """
    if pooling not in ("clip", "pooled"):
        raise ValueError(f"pooling must be 'clip' or 'pooled', got {pooling!r}")
    arrays = as_clips(clips)
    if not any(len(c) > 1 for c in arrays):
        return undefined("var", "no clip has 2 frames")
    if not all(np.isfinite(c).all() for c in arrays) and pooling == "pooled":
        return undefined("var (pooled)", "values are not finite")
    if pooling == "pooled":
        return float(np.concatenate([c.ravel() for c in arrays]).var())
    values = [v.mean() if np.isfinite(v).all() else np.nan for v in clip_variances(arrays)]
    return mean_of_defined("var", np.array(values), "fewer than 2 frames, or values are not finite")


def var_ratio(true: Clips, generated: Clips) -> Float[np.ndarray, " D"]:
    """Generated over true variance (over time, mean over clips) for each parameter: 1 is right, 0 is stiff.

    NaN, with a warning, for parameters that do not vary in the true clips.
    """
    trues, generateds = as_clips(true, "true"), as_clips(generated, "generated")
    same_dims(true=trues, generated=generateds)
    ratio = variance_ratio(*(nan_mean(clip_variances(side).T) for side in (generateds, trues)))
    if np.isnan(ratio).any():
        undefined("var_ratio", f"parameters {np.flatnonzero(np.isnan(ratio)).tolist()} do not vary in the true clips")
    return ratio
