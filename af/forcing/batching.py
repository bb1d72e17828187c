"""Several roll-outs in one pass: samplers with states of equal sizes are joined, stepped and split again.

Roll-outs that started at different times can be joined once their caches are full, because positions count back from
the end of the window.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from af.forcing.sampler import BlockSampler
from af.nn.transformer import AttentionPlan
from af.types import Condition


def step_batch(
    samplers: Sequence[BlockSampler], conditions: Sequence[Condition], noises: Sequence[Float[Tensor, "b T D"]]
) -> list[Float[Tensor, "b T D"]]:
    """The next block of every sampler, equal to `step` up to rounding, in one pass per kind of state.

    Every sampler may hold several sequences. Raises ValueError as `BlockSampler.step`.
    """
    motions: dict[int, Tensor] = {}
    for members in _groups((_kind(s), n.shape[1]) for s, n in zip(samplers, noises, strict=True)):

        def step(whole: BlockSampler, members: list[int] = members) -> Tensor:
            condition = conditions[members[0]].beside(*(conditions[i] for i in members[1:]))
            return whole.step(condition, torch.cat([noises[i] for i in members]))

        motion = _as_one([samplers[i] for i in members], step)
        motions |= zip(members, motion.split([len(noises[i]) for i in members]), strict=True)
    return [motions[i] for i in range(len(samplers))]


def commit_batch(samplers: Sequence[BlockSampler]) -> None:
    """Call `commit` for every sampler that has a block to commit."""
    waiting = [s for s in samplers if s.state.pending is not None]
    for members in _groups(map(_kind, waiting)):
        _as_one([waiting[i] for i in members], lambda sampler: sampler.commit())


def _groups(keys: Iterable[Hashable]) -> list[list[int]]:
    """Indices grouped by equal keys, in order."""
    groups: dict[Any, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def _kind(sampler: BlockSampler) -> tuple:
    """A key that is equal for samplers that can be joined: same model, settings and tensor sizes."""
    if not isinstance(sampler, BlockSampler):  # a sampler that a denoiser brings computes alone
        return (id(sampler),)
    sizes: list[torch.Size | None] = []
    map_tensors(lambda x: sizes.append(None if x is None else x.shape[1:]), sampler.state)
    return id(sampler.denoiser), sampler.settings, sampler.frames > 0, *sizes


def _as_one(group: Sequence[BlockSampler], work: Callable[[BlockSampler], Any]) -> Any:
    """Run `work` on one sampler that stands for all of `group`, then give each its part of the new state."""
    if len(group) == 1:
        return work(group[0])
    sizes = [s.state.portrait.shape[0] for s in group]
    whole = copy.copy(group[0])  # shares geometries and modulation, which depend only on sizes
    whole.state = map_tensors(lambda *parts: _join(parts, sizes), *(s.state for s in group))
    before = whole.frames
    result = work(whole)
    for i, sampler in enumerate(group):
        sampler.state = map_tensors(lambda x, i=i: _part(x, sizes, i), whole.state)
        sampler.frames += whole.frames - before
    return result


def map_tensors(change: Callable[..., Any], *values: Any) -> Any:
    """Apply `change` to the tensors (or None) at the same place in all `values`; other parts are those of the first.

    Attention plans belong to the other parts: they depend only on sizes.
    """
    first = values[0]
    if first is None or isinstance(first, Tensor):
        return change(*values)
    if isinstance(first, list):
        return [map_tensors(change, *each) for each in zip(*values, strict=True)]
    if is_dataclass(first) and not isinstance(first, type | AttentionPlan):
        names = [f.name for f in fields(first)]
        return replace(first, **{name: map_tensors(change, *(getattr(v, name) for v in values)) for name in names})
    return first


def _join(parts: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
    """Join batches within every branch: rows are branch · sequence, with the sequences of `parts` in order."""
    split = [part.unflatten(0, (-1, size)) for part, size in zip(parts, sizes, strict=True) if part is not None]
    return torch.cat(split, 1).flatten(0, 1) if split else None


def _part(whole: Tensor | None, sizes: Sequence[int], i: int) -> Tensor | None:
    """A copy of the rows of part i; a view would keep the whole batch in memory."""
    if whole is None:
        return None
    return whole.unflatten(0, (-1, sum(sizes))).split(list(sizes), 1)[i].clone().flatten(0, 1)
