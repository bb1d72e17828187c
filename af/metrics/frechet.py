"""Fréchet and kernel distances between sets of vectors, and FD / P-FD of face parameters."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from af.metrics.arrays import Array, Clip, as_array, safe_divide, undefined
from af.metrics.base import FACES, ClipMetric, ClipTable
from af.metrics.records import EvaluationClip


def _root(covariance: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D R"]:
    """L with L Lᵀ = covariance, over directions with variance (singular covariances are common: T < D)."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    keep = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors[:, keep] * np.sqrt(values[keep])


def frechet_distance(
    mean1: Float[np.ndarray, " D"],
    cov1: Float[np.ndarray, "D D"],
    mean2: Float[np.ndarray, " D"],
    cov2: Float[np.ndarray, "D D"],
) -> float:
    """|μ1 − μ2|² + tr(Σ1 + Σ2 − 2(Σ1Σ2)^½) of two Gaussians, in squared units.

    The trace of the root is the sum of the roots of the eigenvalues of L1ᵀ Σ2 L1, with Σ1 = L1 L1ᵀ (computed as
    singular values of L1ᵀ L2). It is real even for singular covariances, for which a matrix square root becomes
    complex. NaN with a warning for non-finite values. Raises ValueError naming an argument of the wrong shape.
    """
    mean1, mean2 = (np.atleast_1d(as_array(mean)) for mean in (mean1, mean2))
    cov1, cov2 = (np.atleast_2d(as_array(cov)) for cov in (cov1, cov2))
    dims = mean1.size
    for name, array, shape in (
        ("mean1", mean1, (dims,)), ("cov1", cov1, (dims, dims)), ("mean2", mean2, (dims,)), ("cov2", cov2, (dims, dims))
    ):  # fmt: skip
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape} where {shape} belongs to {dims} dims of mean1")
        if not np.isfinite(array).all():
            return undefined("frechet distance", f"{name} is not finite")
    root1, root2 = _root(cov1), _root(cov2)
    cross = np.linalg.svd(root1.T @ root2, compute_uv=False).sum() if root1.size and root2.size else 0.0
    distance = float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * cross)
    return max(distance, 0.0)  # only rounding can make it negative


def gaussian(frames: Float[np.ndarray, "N D"]) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D D"]]:
    """Mean and covariance (ddof 1) of rows; needs 2 rows."""
    return frames.mean(0), np.atleast_2d(np.cov(frames, rowvar=False))


def gaussian_sums(rows: Float[np.ndarray, "N D"]) -> Float[np.ndarray, " S"]:
    """n, Σ, ΣΣᵀ of rows, S = 1 + D + D²; these add up over clips and ranks."""
    return np.concatenate([[len(rows)], rows.sum(axis=0), (rows.T @ rows).ravel()])


def gaussian_from_sums(
    sums: Float[np.ndarray, " S"], dims: int
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D D"]]:
    """Mean and covariance (ddof 1) from `gaussian_sums`; NaN below 2 rows."""
    n, total, squares = sums[0], sums[1 : 1 + dims], sums[1 + dims :].reshape(dims, dims)
    mean = safe_divide(total, np.full(dims, n))
    return mean, safe_divide(squares - n * np.outer(mean, mean), np.full((dims, dims), max(n - 1, 0.0)))


def distance_from_sums(sums: Float[np.ndarray, "... E"], dims: int) -> Array:
    """Fréchet distance from the concatenated `gaussian_sums` of two sides; NaN (no warning) below 2 rows on a side."""
    flat = np.asarray(sums).reshape(-1, 2, sums.shape[-1] // 2)
    values = [
        frechet_distance(*gaussian_from_sums(a, dims), *gaussian_from_sums(b, dims)) if min(a[0], b[0]) > 1 else np.nan
        for a, b in flat
    ]
    return np.asarray(values).reshape(sums.shape[:-1])


def clip_frechet(first: Clip, second: Clip) -> float:
    """Fréchet distance between the frames of two clips; NaN (no warning) with fewer than 2 frames."""
    if min(len(first), len(second)) < 2 or not (np.isfinite(first).all() and np.isfinite(second).all()):
        return float("nan")
    return frechet_distance(*gaussian(first), *gaussian(second))


def kernel_distance(
    first: Float[np.ndarray, "N D"],
    second: Float[np.ndarray, "M D"],
    subset: int = 1000,
    subsets: int = 100,
    seed: int = 0,
) -> tuple[float, float]:
    """Unbiased squared MMD with the cubic kernel (a·b/D + 1)³: mean and deviation over random subsets.

    With at most `subset` rows on both sides, one exact estimate (deviation 0). NaN below 2 rows. Source: Bińkowski et
    al. 2018 (KID); called KID only on InceptionV3 features.
    """
    first, second = as_array(first), as_array(second)
    size = min(subset, len(first), len(second))
    if size < 2:
        return undefined("kernel distance", "fewer than 2 vectors on a side"), float("nan")
    rng = np.random.default_rng(seed)
    exact = len(first) <= subset and len(second) <= subset

    def estimate(a: np.ndarray, b: np.ndarray) -> float:
        kaa, kbb, kab = ((u @ v.T / a.shape[1] + 1) ** 3 for u, v in ((a, a), (b, b), (a, b)))
        n, m = len(a), len(b)
        return float(
            (kaa.sum() - np.trace(kaa)) / (n * (n - 1)) + (kbb.sum() - np.trace(kbb)) / (m * (m - 1)) - 2 * kab.mean()
        )

    if exact:
        return estimate(first, second), 0.0
    values = [
        estimate(first[rng.choice(len(first), size, False)], second[rng.choice(len(second), size, False)])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


class FaceDistances(ClipMetric):
    """`fd` and `pfd`: Fréchet distances between a clip's true and generated frames, and between [x, y] and [x, ŷ].

    Per clip, then mean; 0 is best. P-FD compares the avatar's covariance with the user (at lag 0) with the true one;
    its null shifts the user by half the clip, which breaks the coupling. Source: DIM.
    """

    needs: ClassVar = {"fd": FACES, "pfd": FACES}
    on_card = ("fd/exp", "fd/pose")

    def measure(self, clip: EvaluationClip) -> dict[str, float]:
        """Both distances of the clip, by part."""
        kept = {}
        for name, part in clip.parts.items():
            x, y, g = (clip.side(side, part) for side in ("user", "true", "generated"))
            kept[f"fd/{name}"] = clip_frechet(y, g)
            for key, u in (("pfd", x), ("null", np.roll(x, len(x) // 2, axis=0))):
                kept[f"{key}/{name}"] = clip_frechet(np.concatenate([x, y], 1), np.concatenate([u, g], 1))
        return kept

    def tabulate(self, table: ClipTable) -> None:
        """`fd/{exp,pose}`, `pfd/{exp,pose}`."""
        for name in table.parts:
            fd, pfd, null = (table.sums(f"{key}/{name}") for key in ("fd", "pfd", "null"))
            text = "per clip, ddof 1"
            table.mean(f"fd/{name}", fd, true=0.0, protocol=text, better="lower")
            text += "; null: user shifted by half the clip"
            table.mean(f"pfd/{name}", pfd, true=0.0, null=null, protocol=text, better="lower")
