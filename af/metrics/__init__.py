"""All metrics: a family is one file (functions and a `ClipMetric`) and one line in the list below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from af.metrics.base import ClipMetric
from af.metrics.coupling import Coupling
from af.metrics.diversity import Diversity
from af.metrics.features import FeatureDistances
from af.metrics.frechet import FaceDistances
from af.metrics.known_reactions import KnownReactions
from af.metrics.likeness import Identity, Likeness, SyncDistances
from af.metrics.lipsync import Lips
from af.metrics.reaction import ReactionGain
from af.metrics.records import EvaluationClip, MetricResult, Protocol
from af.metrics.repeats import Repeats
from af.metrics.responses import Responses
from af.metrics.smoothness import Smoothness
from af.metrics.two_sample import TwoSample


def families(protocol: Protocol = Protocol()) -> list[ClipMetric]:  # noqa: B008 (frozen)
    """One metric of each family, in the order of the table."""
    p, draws = protocol, {"resamples": protocol.resamples, "seed": protocol.seed}
    return [
        Repeats(),
        Coupling(p.max_lag, **draws),
        Diversity(p.clusters, **draws),
        FaceDistances(**draws),
        ReactionGain(p.mel_bands, p.gain_bands, **draws),
        KnownReactions(p.smile_lag, p.tilt_lag, **draws),
        Responses(**draws),
        Lips(p.lip_max_lag, p.mouth_max_lag, **draws),
        Smoothness(p.block, p.first_border, **draws),
        TwoSample(p.block, p.first_border, True, **draws),
        FeatureDistances(p.block, p.first_border, **draws),
        Likeness(**draws),
        Identity(p.embedder, **draws),
        SyncDistances(p.lip_crop, **draws),
    ]


def evaluate_clips(
    clips: Sequence[EvaluationClip],
    protocol: Protocol = Protocol(),  # noqa: B008 (frozen)
    metrics: Sequence[ClipMetric] | None = None,
) -> MetricResult:
    """All rows that the clips allow, in this process or over the ranks of a group (each with its own clips).

    `metrics` (default: `families`) are reset first; reusing a list for several systems on the same true clips reuses
    what was fitted on these. Raises ValueError naming a clip with another tracker, layout or length.
    """
    placed = [clip if clip.position is not None else replace(clip, position=i) for i, clip in enumerate(clips)]
    results = []
    for metric in families(protocol) if metrics is None else metrics:
        metric.reset()
        for clip in placed:
            metric.update(clip)
        results.append(metric.compute())
    return MetricResult.merged(results)
