"""Definitions of all metrics: a family is one file (its functions and its `ClipMetric`) and one line of the list below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from af.metrics.base import ClipMetric
from af.metrics.records import EvaluationClip, MetricResult, Protocol
from af.metrics.repeats import Repeats


def families(protocol: Protocol = Protocol()) -> list[ClipMetric]:  # noqa: B008 (frozen)
    """One metric of each family, in the order of their rows."""
    p = protocol
    return [
        Repeats(resamples=p.resamples, seed=p.seed),
    ]


def evaluate_clips(
    clips: Iterable[EvaluationClip],
    protocol: Protocol = Protocol(),  # noqa: B008 (frozen)
    metrics: Sequence[ClipMetric] | None = None,
) -> MetricResult:
    """All rows that the clips allow, on this process or on all ranks of a group (each with clips of its own).

    `metrics` (default: `families`) are reset first: the same list judges several systems on the same true clips, and
    what was fitted on those is fitted once. Raises ValueError naming a clip of another tracker, layout or length.
    """
    metrics = families(protocol) if metrics is None else metrics
    for metric in metrics:
        metric.reset()
    for i, clip in enumerate(clips):
        placed = clip if clip.position is not None else replace(clip, position=i)
        for metric in metrics:
            metric.update(placed)
    return MetricResult.merged(metric.compute() for metric in metrics)
