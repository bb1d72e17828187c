"""Several roll-outs in one pass: samplers whose states have the same sizes are joined, stepped and divided again.

Roll-outs that started at different times fit together once their caches are full; positions count back from the end of
the window, so nothing else tells them apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from af.forcing.sampler import BlockSampler, Pending, State
from af.nn.kv_cache import KeysValues, RollingCache
from af.nn.rows import divide_rows, join_rows
from af.types import Condition


def step_together(
    samplers: Sequence[BlockSampler], conditions: Sequence[Condition], noises: Sequence[Float[Tensor, "b T D"]]
) -> list[Float[Tensor, "b T D"]]:
    """The next block of every sampler, in as few passes as there are kinds of state; what `step` gives, up to rounding.

    Every sampler may hold several sequences. ValueError as in `BlockSampler.step`.
    """
    motions: list[Tensor | None] = [None] * len(samplers)
    for members in _kinds([(_kind(s), n.shape[1]) for s, n in zip(samplers, noises, strict=True)]):
        group = [samplers[i] for i in members]

        def work(whole: BlockSampler, members: list[int] = members) -> Tensor:
            condition = conditions[members[0]].beside(*(conditions[i] for i in members[1:]))
            return whole.step(condition, torch.cat([noises[i] for i in members]))

        for i, motion in zip(members, _joined(group, work).split([len(noises[i]) for i in members]), strict=True):
            motions[i] = motion
    return [motion for motion in motions if motion is not None]


def commit_together(samplers: Sequence[BlockSampler]) -> None:
    """`commit` of every sampler that has a block to commit."""
    waiting = [s for s in samplers if s.state.pending is not None]
    for members in _kinds([_kind(s) for s in waiting]):
        _joined([waiting[i] for i in members], BlockSampler.commit)


def _joined(group: Sequence[BlockSampler], work: Callable[[BlockSampler], Any]) -> Any:
    """`work` on one sampler that stands for all of `group`, whose states are what it leaves."""
    if len(group) == 1:
        return work(group[0])
    whole = copy.copy(group[0])  # shares geometries and modulation, which depend on sizes only
    branches, before = len(whole.branches), whole.frames
    whole.state = _join([s.state for s in group], branches)
    result = work(whole)
    sizes = [s.state.portrait.shape[0] for s in group]
    for sampler, state in zip(group, _divide(whole.state, sizes, branches), strict=True):
        sampler.state = state
        sampler.frames += whole.frames - before
    return result


def _kind(sampler: BlockSampler) -> tuple:
    """Equal for samplers that can be joined."""
    state = sampler.state

    def frames(x: Tensor | None) -> int | None:
        return None if x is None else x.shape[1]

    return (
        id(sampler.denoiser),
        sampler.settings,
        sampler.frames > 0,
        state.cache.frames,
        None if state.history is None else state.history.frames,
        frames(state.vectors),
        frames(state.offset),
        None if state.pending is None else _pending_sizes(state.pending),
    )


def _pending_sizes(block: Pending) -> tuple[int, int, int]:
    past = 0 if block.past is None else block.past[0].keys.shape[2]
    return block.latents.shape[1], block.condition[0].keys.shape[2], past


def _kinds(keys: Sequence[Any]) -> list[list[int]]:
    """Places of equal keys, in order."""
    groups: dict[Any, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def _join(states: Sequence[State], branches: int) -> State:
    def plain(name: str) -> Any:
        parts = [getattr(s, name) for s in states]
        return None if parts[0] is None else torch.cat(parts)

    histories = [s.history for s in states if s.history is not None]
    vectors = [s.vectors for s in states if s.vectors is not None]
    blocks = [s.pending for s in states if s.pending is not None]
    return State(
        plain("portrait"),
        plain("reference"),
        plain("mean"),
        RollingCache.join([s.cache for s in states], branches),
        histories[0].beside(*histories[1:]) if histories else None,
        join_rows(vectors, branches) if vectors else None,
        plain("offset"),
        _join_pending(blocks, branches) if blocks else None,
    )


def _join_pending(blocks: Sequence[Pending], branches: int) -> Pending:
    def layers(parts: list[list[KeysValues]]) -> list[KeysValues]:
        return [
            KeysValues(
                join_rows([p.keys for p in layer], branches),
                join_rows([p.values for p in layer], branches),
                layer[0].room,
            )
            for layer in zip(*parts, strict=True)
        ]

    past = [b.past for b in blocks if b.past is not None]
    return Pending(
        torch.cat([b.latents for b in blocks]),
        layers([b.condition for b in blocks]),
        layers(past) if past else None,
        blocks[0].plans,
    )


def _divide(whole: State, sizes: Sequence[int], branches: int) -> list[State]:
    def plain(x: Tensor | None) -> Sequence[Any]:
        return [None] * len(sizes) if x is None else [part.clone() for part in x.split(list(sizes))]

    def layers(x: list[KeysValues] | None) -> Sequence[Any]:
        if x is None:
            return [None] * len(sizes)
        parts = [(divide_rows(kv.keys, sizes, branches), divide_rows(kv.values, sizes, branches), kv.room) for kv in x]
        return [[KeysValues(keys[i], values[i], room) for keys, values, room in parts] for i in range(len(sizes))]

    signals: Sequence[Any] = [None] * len(sizes)
    if whole.history is not None:
        history = whole.history
        signals = [
            Condition(*each)
            for each in zip(*map(plain, (history.avatar_audio, history.user_audio, history.user_motion)), strict=True)
        ]
    pending: Sequence[Any] = [None] * len(sizes)
    if whole.pending is not None:
        block = whole.pending
        pending = [
            Pending(latents, keys, past, block.plans)
            for latents, keys, past in zip(
                plain(block.latents), layers(block.condition), layers(block.past), strict=True
            )
        ]
    vectors = [None] * len(sizes) if whole.vectors is None else divide_rows(whole.vectors, sizes, branches)
    return [
        State(*each)
        for each in zip(
            plain(whole.portrait),
            plain(whole.reference),
            plain(whole.mean),
            whole.cache.divide(sizes, branches),
            signals,
            vectors,
            plain(whole.offset),
            pending,
            strict=True,
        )
    ]
