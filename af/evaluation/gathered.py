"""torchmetrics classes that need more than sums of clips: SID, reaction gain, and distances of network features.

Where the definition needs all frames (clusters to be fitted, ridge over identities, kernels) clips are gathered from
all ranks, ordered by the clip numbers given to `update`, and repeats (the padding of distributed validation) dropped:
the value does not depend on how many ranks there were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from af.evaluation.modules import SumsMetric, as_result
from af.metrics import diversity, frechet, reaction
from af.metrics.arrays import Array, Clip, Clips, as_array, as_clips, safe_divide

Features = Callable[[Any], Tensor | np.ndarray]


class GatheredMetric(Metric):
    """Keeps clips of `dims` channels with their numbers; `clips()` gives all ranks' clips in order of number, once."""

    full_state_update = False
    is_differentiable = False
    values: list[Tensor]
    lengths: list[Tensor]
    numbers: list[Tensor]

    def __init__(self, dims: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.dims = dims
        for name in ("values", "lengths", "numbers"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def keep(self, numbers: Sequence[int] | Tensor, clips: Sequence[Clip]) -> None:
        """Store clips (T_i, dims) under their numbers (unique over the data set)."""
        numbers = [int(n) for n in numbers]
        if len(numbers) != len(clips):
            raise ValueError(f"{len(numbers)} numbers for {len(clips)} clips")
        for number, clip in zip(numbers, clips, strict=True):
            self.values.append(torch.as_tensor(np.ascontiguousarray(clip).ravel(), device=self.device).double())
            self.lengths.append(torch.tensor([len(clip)], device=self.device))
            self.numbers.append(torch.tensor([number], device=self.device))

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # A rank without clips must still send tensors of the right type.
        for name, dtype in (("values", torch.float64), ("lengths", torch.int64), ("numbers", torch.int64)):
            if not getattr(self, name):
                setattr(self, name, [torch.zeros(0, dtype=dtype, device=self.device)])
        super()._sync_dist(*args, **kwargs)

    def clips(self) -> list[Clip]:
        """All clips, ordered by number, each once."""

        def joined(state: list[Tensor] | Tensor) -> np.ndarray:
            return (
                (state if isinstance(state, Tensor) else torch.cat(state)).cpu().numpy() if len(state) else np.zeros(0)
            )

        values, lengths, numbers = joined(self.values), joined(self.lengths).astype(int), joined(self.numbers)
        starts = np.concatenate([[0], np.cumsum(lengths)]) * self.dims
        _, first = np.unique(numbers, return_index=True)
        return [values[starts[i] : starts[i + 1]].reshape(-1, self.dims) for i in first]


class SID(GatheredMetric):
    """`sid`: {"sid", "sid/true"} (bits). Gathers frames because k-means is fitted on all true frames in clip order."""

    def __init__(self, dims: int, clusters: int, **kwargs: Any):
        super().__init__(2 * dims, **kwargs)
        self.clusters = clusters

    def update(self, numbers: Sequence[int] | Tensor, true: Clips, generated: Clips) -> None:
        """Add clips with their numbers; true and generated of equal length."""
        pairs = zip(as_clips(true, "true"), as_clips(generated, "generated"), strict=True)
        self.keep(numbers, [np.concatenate(pair, axis=1) for pair in pairs])

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Entropy of generated and of true frames."""
        clips = self.clips()
        half = self.dims // 2
        true, own = [c[:, :half] for c in clips], [c[:, half:] for c in clips]
        centres = diversity.fit_clusters(true, self.clusters) if clips else None
        if centres is None:
            return as_result("SID", {"sid": np.nan, "sid/true": np.nan})
        counts = [np.sum([diversity.cluster_counts(c, centres) for c in side], axis=0) for side in (own, true)]
        return as_result("SID", dict(zip(("sid", "sid/true"), map(diversity.entropy_bits, counts), strict=True)))


class StreamingSID(SumsMetric):
    """SID with centres fitted beforehand (`af.metrics.diversity.fit_clusters`): memory K, not frames."""

    def __init__(self, centres: Float[np.ndarray, "K D"], **kwargs: Any):
        self.centres = as_array(centres)
        super().__init__(len(self.centres), **kwargs)

    def update(self, generated: Clips) -> None:
        """Add clips."""
        self.add(np.sum([diversity.cluster_counts(c, self.centres) for c in as_clips(generated)], axis=0))

    def finish(self, sums: Float[np.ndarray, " K"]) -> float:
        """Entropy in bits."""
        return float(diversity.entropy_bits(sums))


class ReactionGainMetric(GatheredMetric):
    """`reaction_gain` of generated and true motion: {"reaction_gain", "…/low", "…/high", "…/true"}, nats."""

    def __init__(self, motion_dims: int, audio_dims: int, model: reaction.ReactionModel | None = None, **kwargs: Any):
        super().__init__(3 * motion_dims + 2 * audio_dims + 1, **kwargs)
        self.parts = np.cumsum([motion_dims, motion_dims, motion_dims, audio_dims, audio_dims])
        self.model = model or reaction.ReactionModel()

    def update(
        self,
        numbers: Sequence[int] | Tensor,
        user: Clips,
        true: Clips,
        generated: Clips,
        user_audio: Clips,
        avatar_audio: Clips,
        identities: Sequence[int] | Tensor,
    ) -> None:
        """Add clips with their numbers, audio as log-mel frames, and the avatars' identities as integers."""
        sides = [as_clips(c) for c in (user, true, generated, user_audio, avatar_audio)]
        rows = [
            np.concatenate([*parts, np.full((len(parts[0]), 1), float(identity))], axis=1)
            for *parts, identity in zip(*sides, [int(i) for i in identities], strict=True)
        ]
        self.keep(numbers, rows)

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Fit on the true clips and judge both; NaN with fewer than two identities of long enough clips."""
        clips = self.clips()
        split = [np.split(c, self.parts, axis=1) for c in clips]
        names = ("reaction_gain", "reaction_gain/low", "reaction_gain/high", "reaction_gain/true")
        if split:
            user, true, generated, user_audio, avatar_audio, identity = map(list, zip(*split, strict=True))
            self.model.fit(user, true, user_audio, avatar_audio, [str(int(i[0, 0])) for i in identity])
        if not split or not self.model.usable:
            return as_result("ReactionGain", dict.fromkeys(names, np.nan))
        own, truth = self.model.gain(generated), self.model.gain(true)
        low, high = (own.interval.low, own.interval.high) if own.interval else (np.nan, np.nan)
        return as_result("ReactionGain", dict(zip(names, (own.value, low, high, truth.value), strict=True)))


class FrechetFeatures(SumsMetric):
    """`fd_img/<extractor>`, `fd_vid/<extractor>` (FID, FVD on the real networks): distance of feature Gaussians.

    `features` maps a batch of pictures (or windows of frames) to (N, dims); None: `update` gets features. It is kept
    outside the module tree, so it is in no checkpoint, no average and on no other device than its own.
    """

    def __init__(self, dims: int, features: Features | None = None, **kwargs: Any):
        self._features = (features,)  # a tuple: nn.Module does not register what is inside
        self.dims = dims
        super().__init__(2 * (1 + dims + dims * dims), **kwargs)

    def update(self, batch: Any, real: bool) -> None:
        """Add true (`real`) or generated pictures, windows or feature rows."""
        features = self._features[0]
        rows = as_array(batch if features is None else features(batch))
        if rows.ndim != 2 or rows.shape[1] != self.dims:
            raise ValueError(f"features must be (N, {self.dims}), got {rows.shape}")
        sums = frechet.gaussian_sums(rows)
        zeros = np.zeros_like(sums)
        self.add(np.concatenate([sums, zeros] if real else [zeros, sums]))

    def finish(self, sums: Float[np.ndarray, " S"]) -> float:
        """Fréchet distance of the two sets; NaN below 2 rows on a side."""
        return float(frechet.distance_from_sums(sums, self.dims))


class KernelDistance(GatheredMetric):
    """`kd_img/<extractor>` (KID on InceptionV3): {"kd", "kd/std"} over random subsets; gathers features."""

    def __init__(
        self,
        dims: int,
        features: Features | None = None,
        subset: int = 1000,
        subsets: int = 100,
        seed: int = 0,
        **kw: Any,
    ):
        super().__init__(dims + 1, **kw)
        self._features = (features,)
        self.options = (subset, subsets, seed)

    def update(self, numbers: Sequence[int] | Tensor, batch: Any, real: bool) -> None:
        """Add pictures or feature rows under their numbers (unique within the side)."""
        features = self._features[0]
        rows = as_array(batch if features is None else features(batch))
        side = np.full((len(rows), 1), float(real))
        # Numbers of the two sides must not meet: even for generated, odd for true.
        self.keep([2 * int(n) + real for n in numbers], list(np.concatenate([side, rows], axis=1)[:, None]))

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Mean and deviation over subsets."""
        rows = (
            np.concatenate(self.clips()) if self.numbers is not None and len(self.numbers) else np.zeros((0, self.dims))
        )
        real = rows[:, 0] == 1
        value = frechet.kernel_distance(rows[real, 1:], rows[~real, 1:], *self.options)
        return as_result("KernelDistance", dict(zip(("kd", "kd/std"), value, strict=True)))


class DriftMetric(SumsMetric):
    """`drift` over long roll-outs: {"distance" (W,), "sharpness" (W,)} per window, all roll-outs' windows pooled."""

    def __init__(self, mean: Array, covariance: Array, windows: int, window_frames: int = 500, **kwargs: Any):
        self._training = (as_array(mean), as_array(covariance))
        self.dims, self.windows, self.window_frames = len(self._training[0]), windows, window_frames
        super().__init__(windows * (3 + self.dims + self.dims**2), **kwargs)

    def update(self, coefficients: Clips, frame_sharpness: Sequence | None = None) -> None:
        """Add roll-outs: motion coefficients (T_i, K) and, if given, each frame's sharpness (T_i,)."""
        clips = as_clips(coefficients)
        sharp = [None] * len(clips) if frame_sharpness is None else list(frame_sharpness)
        for clip, values in zip(clips, sharp, strict=True):
            sums = np.zeros((self.windows, 3 + self.dims + self.dims**2))
            for w in range(min(self.windows, len(clip) // self.window_frames)):
                part = slice(w * self.window_frames, (w + 1) * self.window_frames)
                x = clip[part]
                light = np.zeros(0) if values is None else as_array(values)[part]
                sums[w] = np.concatenate([[light.sum(), light.size], frechet.gaussian_sums(x)])
            self.add(sums.ravel())

    def finish(self, sums: Float[np.ndarray, " S"]) -> dict[str, Array]:
        """Distances to the training coefficients, and sharpness relative to the first window."""
        rows = sums.reshape(self.windows, -1)
        sharp = safe_divide(rows[:, 0], rows[:, 1])
        distance = np.array(
            [
                frechet.frechet_distance(*frechet.gaussian_from_sums(row[2:], self.dims), *self._training)
                if row[2] > 1
                else np.nan
                for row in rows
            ]
        )
        return {"distance": distance, "sharpness": safe_divide(sharp, np.broadcast_to(sharp[:1], sharp.shape))}


def pooled_features(features: Features, pictures: Tensor, batch: int = 32) -> Float[np.ndarray, "N F"]:
    """Features of many pictures in batches, without gradients, as float64 rows."""
    with torch.no_grad():
        return np.concatenate([as_array(features(pictures[i : i + batch])) for i in range(0, len(pictures), batch)])
