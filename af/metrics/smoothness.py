"""Jumps at block borders, jerk, and drift over long roll-outs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from af.clock import FPS, seconds_to_frames
from af.metrics.arrays import Clip, UndefinedMetricWarning, as_array, safe_divide
from af.metrics.base import FACES, ClipMetric, ClipTable
from af.metrics.bootstrap import finish_mean
from af.metrics.diversity import clip_variance, that_vary
from af.metrics.frechet import frechet_distance, gaussian
from af.metrics.records import EvaluationClip


def border_sums(clip: Clip, block: int, first: int | None = None) -> Float[np.ndarray, " 4"]:
    """Σ|second difference| and count at borders, then the same elsewhere. Borders: first, first + block, …"""
    bend = np.abs(np.diff(clip, n=2, axis=0))
    centre = np.arange(1, len(clip) - 1)
    start = block if first is None else first
    # A second difference touches frames t-1, t, t+1: it crosses border s (frames s-1 | s) for t = s-1 and t = s.
    crosses = (((centre - start) % block == 0) & (centre >= start)) | (
        ((centre + 1 - start) % block == 0) & (centre + 1 >= start)
    )
    at, off = bend[crosses], bend[~crosses]
    return np.array([at.sum(), at.size, off.sum(), off.size], np.float64)


def border_from_sums(sums: Float[np.ndarray, "... 4"]) -> Float[np.ndarray, ...]:
    """Mean at borders over mean elsewhere, from `border_sums`; 1 is seamless."""
    at, off = safe_divide(sums[..., 0], sums[..., 1]), safe_divide(sums[..., 2], sums[..., 3])
    return safe_divide(at, off)


def jerk_sums(clip: Clip) -> Float[np.ndarray, " 2"]:
    """Sum of the norms of third differences in units/s³, and their number."""
    norms = np.linalg.norm(np.diff(clip, n=3, axis=0), axis=1) * FPS**3 if len(clip) > 3 else np.zeros(0)
    return np.array([norms.sum(), norms.size], np.float64)


def median_speed(clip: Clip) -> Float[np.ndarray, " D"]:
    """Median |first difference| of each column, per frame: near 0 for what rests between its movements. NaN below 2
    frames.
    """
    return np.median(np.abs(np.diff(clip, axis=0)), axis=0) if len(clip) > 1 else np.full(clip.shape[1], np.nan)


@dataclass(frozen=True)
class Drift:
    """Drift over a long roll-out, per window of 20 s."""

    seconds: Float[np.ndarray, " W"]
    distance: Float[np.ndarray, " W"]
    sharpness: Float[np.ndarray, " W"] | None


def sharpness(frames: UInt8[np.ndarray, "T Y X 3"]) -> Float[np.ndarray, " T"]:
    """Variance of the Laplacian of each frame's grey image (0–255 scale); decreases with blur."""
    import cv2

    return np.array([cv2.Laplacian(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var() for f in frames])


def drift(
    coefficients: Float[np.ndarray, "T K"],
    training_mean: Float[np.ndarray, " K"],
    training_covariance: Float[np.ndarray, "K K"],
    frame_sharpness: Float[np.ndarray, " T"] | None = None,
    window_s: float = 20.0,
) -> Drift:
    """Fréchet distances of each window's motion coefficients to the training set, and relative sharpness.

    Meant for roll-outs of at least 4 minutes (shorter ones warn). Sharpness is relative to the first window; a
    remainder shorter than a window is left out. Raises ValueError below one window.
    """
    coefficients = as_array(coefficients)
    size = seconds_to_frames(window_s)
    windows = len(coefficients) // size
    if windows == 0:
        raise ValueError(f"drift needs at least one window of {window_s} s ({size} frames), got {len(coefficients)}")
    if len(coefficients) < seconds_to_frames(240):
        warnings.warn("drift: the roll-out is shorter than 4 min: slow drift is not visible", UndefinedMetricWarning)
    parts = coefficients[: windows * size].reshape(windows, size, -1)
    distance = np.array([frechet_distance(*gaussian(p), training_mean, training_covariance) for p in parts])
    relative = None
    if frame_sharpness is not None:
        means = as_array(frame_sharpness)[: windows * size].reshape(windows, size).mean(axis=1)
        relative = safe_divide(means, means[0])
    return Drift(np.arange(windows) * window_s, distance, relative)


class Smoothness(ClipMetric):
    """`border_ratio`, if the block size is known, `jerk`, the mean norm (over dims) of the third difference, and
    `speed_ratio` by parameter that varies: the median speed, generated over true (mean over clips); above 1 where the true face
    rests between movements and the generated one does not.
    """

    needs: ClassVar = {
        "border_ratio": f"{FACES} or videos, and the generator's block size",
        "jerk": FACES,
        "speed_ratio": FACES,
    }
    headline = ("border_ratio/pose",)

    def __init__(self, block: int | None = None, first_border: int | None = None, **draws: int) -> None:
        super().__init__(**draws)
        self.block, self.first_border = block, first_border

    def measure(self, clip: EvaluationClip) -> dict[str, Any]:
        """Sums of both sides, by part."""
        kept: dict[str, Any] = {f"speed/{side}": median_speed(clip.side(side)) for side in ("true", "generated")}
        kept["variance"] = clip_variance(clip.side("true"))
        for name, part in clip.parts.items():
            for side in ("true", "generated"):
                series = clip.side(side, part)
                kept[f"jerk/{side}/{name}"] = jerk_sums(series)
                if self.block is not None:
                    kept[f"border/{side}/{name}"] = border_sums(series, self.block, self.first_border)
        return kept

    def tabulate(self, table: ClipTable) -> None:
        """`border_ratio/{exp,pose}`, `jerk/{exp,pose}`, `speed_ratio/PARAMETER`."""
        for name in table.parts:
            if self.block is not None:
                true, own = (table.sums(f"border/{side}/{name}") for side in ("true", "generated"))
                text = f"blocks of {self.block} frames"
                table.add(f"border_ratio/{name}", own, border_from_sums, true=true, protocol=text)
            true, own = (table.sums(f"jerk/{side}/{name}") for side in ("true", "generated"))
            table.add(f"jerk/{name}", own, true=true, protocol="units/s³")
        own, true = (table.sums(f"speed/{side}") for side in ("generated", "true"))
        for d in np.flatnonzero(that_vary(table.sums("variance"), table.face.expression)):
            both, text = np.nan_to_num(np.stack([own[:, d], true[:, d]], axis=1)), "median |first difference|"
            tag = f"speed_ratio/{table.face.names[d]}"
            table.add(tag, both, finish_mean, true=1.0, protocol=text, per_clip=False)
