"""Distances on features of any network, of images or windows of frames; FID and FVD with the standard networks."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

import numpy as np

from af.metrics.base import ClipMetric, ClipTable, Record
from af.metrics.bootstrap import bootstrap
from af.metrics.frechet import distance_from_sums, frechet_distance, gaussian, gaussian_sums, kernel_distance
from af.metrics.records import EvaluationClip, MetricRow
from af.metrics.smoothness import border_from_sums, border_sums

#: Fréchet distances up to this many dims get a bootstrap interval (three eigendecompositions per resample).
INTERVAL_DIMS = 256
FRECHET_RESAMPLES = 200


class FeatureDistances(ClipMetric):
    """Fréchet and kernel distances between all true and all generated vectors, for each extractor of the clips.

    The null of the Fréchet distance compares odd with even true clips: the effect of sampling alone. Image features
    also have a `border_ratio`, which shows jitter at block borders without a tracker.
    """

    needs: ClassVar = {"fid_inception": "videos and InceptionV3's weights", "fvd_i3d": "videos and I3D's weights"}

    of_faces = False

    def __init__(self, block: int | None = None, first_border: int | None = None, **draws: int) -> None:
        super().__init__(**draws)
        self.block, self.first_border = block, first_border

    def takes(self, clip: EvaluationClip) -> bool:
        """Whether an extractor has read the clip."""
        return bool(clip.features)

    def measure(self, clip: EvaluationClip) -> dict[str, Any]:
        """The vectors of both sides, all of which kernels need."""
        kept: dict[str, Any] = {}
        for found in clip.features:
            key = f"{found.tag}|{found.kind}|{found.metric or ''}"
            kept |= {f"{key}|true": found.true, f"{key}|generated": found.generated}
        return kept

    def tabulate(self, table: ClipTable) -> None:
        """`fd_img/…`, `fd_vid/…` (`fid_inception`, `fvd_i3d`), `kd_img/…`, `kd_vid/…`, `border_ratio/…`."""
        clips: dict[str, list[Record]] = defaultdict(list)
        for record in table.records:
            for key in dict.fromkeys(name.rpartition("|")[0] for name in record.arrays):
                clips[key].append(record)
        for key, records in clips.items():
            tag, kind, metric = key.rsplit("|", 2)
            sides = [[r.arrays[f"{key}|{side}"] for r in records] for side in ("true", "generated")]
            self._distances(table, tag, kind, metric, *([c.astype(np.float64) for c in s if len(c)] for s in sides))
            if kind == "image" and self.block is not None:
                self._borders(table, tag, *sides)

    def _distances(self, table: ClipTable, tag: str, kind: str, metric: str, *sides: list[np.ndarray]) -> None:
        short, vectors = ("img", "frames") if kind == "image" else ("vid", "windows")
        count, clips = sum(map(len, sides[1])), len(sides[1])
        protocol = f"{tag}, {count} {vectors} of {clips} clips, 25 fps"
        fd_tag = (metric or f"fd_{short}/{tag}") + (f"/n{count}" if kind == "video" else "")
        if min(sum(map(len, side)) for side in sides) < 2:
            note = "fewer than 2 vectors on a side"
            table.row(MetricRow(fd_tag, np.nan, protocol=protocol, note=note, better="lower"))
            return
        dims = sides[0][0].shape[1]
        interval = null = None
        if len(sides[0]) == clips > 1:
            if dims <= INTERVAL_DIMS:
                pairs = zip(*sides, strict=True)
                sums = np.stack([np.concatenate([gaussian_sums(a), gaussian_sums(b)]) for a, b in pairs])
                interval = bootstrap(sums, lambda s: distance_from_sums(s, dims), None, FRECHET_RESAMPLES, self.seed)
            halves = [np.concatenate(sides[0][i::2]) for i in (0, 1)]
            null = frechet_distance(*gaussian(halves[0]), *gaussian(halves[1]))
        first, second = (np.concatenate(side) for side in sides)
        value = frechet_distance(*gaussian(first), *gaussian(second))
        note = f"{count} vectors for {dims} dims: the covariance is singular, the value too large"
        text = f"{protocol}; null: odd against even true clips"
        note = "" if count > dims else note
        table.row(MetricRow(fd_tag, value, interval, clips, 0.0, null, text, "lower", note=note))
        kernel, spread = kernel_distance(first, second, seed=self.seed)
        text, error = f"{protocol}; cubic kernel, subsets of 1000, seed {self.seed}", spread or None
        table.row(MetricRow(f"kd_{short}/{tag}", kernel, None, clips, 0.0, None, text, "lower", standard_error=error))

    def _borders(self, table: ClipTable, tag: str, true: list[np.ndarray], generated: list[np.ndarray]) -> None:
        assert self.block is not None
        own, truth = (
            np.stack([border_sums(clip, self.block, self.first_border) for clip in side]) for side in (generated, true)
        )
        value, ground_truth = (float(border_from_sums(sums.sum(0))) for sums in (own, truth))
        interval = bootstrap(own, border_from_sums, None, self.resamples, self.seed)
        text = f"{tag}, blocks of {self.block} frames, 25 fps"
        note = "" if np.isfinite(value) else "no border inside a clip, or nothing moves"
        table.row(MetricRow(f"border_ratio/{tag}", value, interval, len(own), ground_truth, protocol=text, note=note))
