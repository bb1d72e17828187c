"""Rows that come from pictures: distances on extractor features, likeness, identity, lip-sync distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from af.evaluation.rows import MetricRow
from af.metrics import frechet, smoothness
from af.metrics.arrays import Array
from af.metrics.bootstrap import bootstrap, finish_mean, mean_sums

#: Up to this many dims a Fréchet distance gets a bootstrap interval (each resample costs three eigen decompositions).
INTERVAL_DIMS = 256
FRECHET_RESAMPLES = 200


def feature_rows(
    tag: str,
    kind: Literal["picture", "video"],
    true: Sequence[Float[np.ndarray, "N F"]],
    generated: Sequence[Float[np.ndarray, "N F"]],
    *,
    metric: str | None = None,
    resamples: int = FRECHET_RESAMPLES,
    seed: int = 0,
) -> list[MetricRow]:
    """Fréchet and kernel distance of all true against all generated vectors, a list entry a clip.

    `tag` is the extractor's name and version; `metric` the name only the real networks have (fid_inception, fvd_i3d).
    The null of the Fréchet distance is the truth against itself, odd against even clips: what sampling alone gives.
    """
    short = "img" if kind == "picture" else "vid"
    sides = [[np.asarray(c, np.float64) for c in clips if len(c)] for clips in (true, generated)]
    count = sum(map(len, sides[1]))
    protocol = f"{tag}, {count} {'frames' if kind == 'picture' else 'windows'} of {len(sides[1])} clips, 25 fps"
    fd_tag = (metric or f"fd_{short}/{tag}") + (f"/n{count}" if kind == "video" else "")
    if min(sum(map(len, side)) for side in sides) < 2:
        return [MetricRow(fd_tag, np.nan, protocol=protocol, note="fewer than 2 vectors on a side", better="lower")]
    dims = sides[0][0].shape[1]
    interval = null = None
    if len(sides[0]) == len(sides[1]) > 1:
        if dims <= INTERVAL_DIMS:
            sums = np.stack(
                [
                    np.concatenate([frechet.gaussian_sums(a), frechet.gaussian_sums(b)])
                    for a, b in zip(*sides, strict=True)
                ]
            )
            interval = bootstrap(sums, lambda s: frechet.distance_from_sums(s, dims), None, resamples, seed)
        halves = [np.concatenate(sides[0][i::2]) for i in (0, 1)]
        null = frechet.frechet_distance(*frechet.gaussian(halves[0]), *frechet.gaussian(halves[1]))
    first, second = (np.concatenate(side) for side in sides)
    value = frechet.frechet_distance(*frechet.gaussian(first), *frechet.gaussian(second))
    note = "" if count > dims else f"{count} vectors for {dims} dims: the covariance is singular, the value too large"
    text = f"{protocol}; null: odd against even true clips"
    rows = [MetricRow(fd_tag, value, interval, len(sides[1]), 0.0, null, text, "lower", note=note)]
    kernel, spread = frechet.kernel_distance(first, second, seed=seed)
    text = f"{protocol}; cubic kernel, subsets of 1000, seed {seed}"
    name = f"kd_{short}/{tag}"
    rows.append(MetricRow(name, kernel, None, len(sides[1]), 0.0, None, text, "lower", standard_error=spread or None))
    return rows


def border_rows(
    tag: str, true: Sequence[Array], generated: Sequence[Array], block: int, first: int | None
) -> list[MetricRow]:
    """`border_ratio` of the pictures' own features over time: jitter at block borders without any tracker."""
    own, truth = (np.stack([smoothness.border_sums(c, block, first) for c in side]) for side in (generated, true))
    value = float(smoothness.border_from_sums(own.sum(0)))
    return [
        MetricRow(
            f"border_ratio/{tag}",
            value,
            bootstrap(own, smoothness.border_from_sums),
            len(own),
            float(smoothness.border_from_sums(truth.sum(0))),
            protocol=f"{tag}, blocks of {block} frames, 25 fps",
            note="" if np.isfinite(value) else "no border inside a clip, or nothing moves",
        )
    ]


#: Per-clip numbers: name -> (which way is good, value of a perfect copy, protocol).
_VALUE_ROWS: Mapping[str, tuple[Literal["lower", "higher", "true"], float | None, str]] = {
    "psnr": ("higher", None, "dB, frame by frame against the true video, at most 128 px"),
    "ssim": ("higher", 1.0, "frame by frame against the true video, at most 128 px"),
    "l1": ("lower", 0.0, "range 0–1, frame by frame against the true video, at most 128 px"),
    "sharpness": ("true", None, "variance of the Laplacian, grey 0–255, at most 512 px"),
    "csim": ("higher", None, "cosine to the source portrait, else to the first true frame"),
    "lse_d": ("lower", None, "SyncNet, 25 fps, 16 kHz, 224 px, offsets ±15; null: audio half a clip off"),
    "lse_c": ("higher", None, "SyncNet, 25 fps, 16 kHz, 224 px, offsets ±15; null: audio half a clip off"),
    "lse_offset": ("true", None, "SyncNet's best offset, frames, as its own program prints it"),
}


def value_rows(values: Sequence[Mapping[str, float]], names: Mapping[str, str] | None = None) -> list[MetricRow]:
    """Rows of numbers that clips have one by one ("psnr", "lse_d/generated", "lse_d/true", "lse_d/null", …).

    `names` gives the tag where it is not the plain name (csim -> csim/<embedder>/vs_source).
    """

    def column(key: str) -> Array:
        return np.array([v.get(key, np.nan) for v in values], np.float64)

    rows = []
    for name, (better, perfect, protocol) in _VALUE_ROWS.items():
        own = column(name) if any(name in v for v in values) else column(f"{name}/generated")
        if not np.isfinite(own).any():
            continue
        true, null = (finish_mean(mean_sums(column(f"{name}/{side}")).sum(0)) for side in ("true", "null"))
        sums = mean_sums(own[np.isfinite(own)])
        rows.append(
            MetricRow(
                (names or {}).get(name, name),
                float(finish_mean(sums.sum(0))),
                bootstrap(sums, finish_mean),
                len(sums),
                float(true) if np.isfinite(true) else perfect,
                float(null) if np.isfinite(null) else None,
                f"{protocol}; mean over clips",
                better,
            )
        )
    return rows
