"""The sampler of a block roll-out: its state, and one block per step (method §4, paper Algorithm 2)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from af.devices import widest_float
from af.errors import UserError, require_choice
from af.forcing.anchor import Anchor
from af.forcing.dead_band import check_dead_band, held
from af.forcing.guidance import Guidance, branch_conditions, combine
from af.forcing.path import Schedule, integrate
from af.forcing.path import schedule as make_schedule
from af.forcing.solvers import SOLVERS, STEPS
from af.nn.kv_cache import KeysValues, RollingCache, WindowLayout
from af.nn.rope import RotaryTable, rotary_table
from af.nn.transformer import AttentionPlan, Modulation
from af.types import Condition


class Denoiser(Protocol):
    """What the roll-out needs of a denoiser (implemented by `af.models.denoiser.MotionDenoiser`)."""

    dim: int
    hidden: int
    heads: int
    causal_condition: bool
    layout: WindowLayout

    def embed_reference(self, reference: Tensor) -> Tensor: ...  # noqa: D102
    def embed(self, noisy: Tensor, reference: Tensor) -> Tensor: ...  # noqa: D102
    def modulation(self, flow_time: Tensor) -> Modulation: ...  # noqa: D102
    def encode_condition(self, condition: Condition, first_position: int = 0) -> Tensor: ...  # noqa: D102
    def condition_keys(self, vectors: Tensor) -> list[KeysValues]: ...  # noqa: D102
    def plans(self, frames: Tensor, keys: Tensor, condition: Tensor) -> list[AttentionPlan]: ...  # noqa: D102
    def velocity(  # noqa: D102
        self,
        x: Tensor,
        modulation: Modulation,
        condition: Sequence[KeysValues],
        plans: Sequence[AttentionPlan],
        past: Sequence[KeysValues] | None = None,
        newest: int | None = None,
    ) -> Tensor: ...
    def keys_values(  # noqa: D102
        self,
        x: Tensor,
        modulation: Modulation,
        condition: Sequence[KeysValues],
        plans: Sequence[AttentionPlan],
        past: Sequence[KeysValues] | None = None,
    ) -> list[KeysValues]: ...


class Space(Protocol):
    """Conversion between motion latents (L dims) and the denoiser's space."""

    latent_dim: int

    def to_model(self, motion: Tensor) -> Tensor: ...  # noqa: D102
    def from_model(self, x: Tensor) -> Tensor: ...  # noqa: D102


class LiveDenoiser(Denoiser, Protocol):
    """A denoiser that also builds conditions from raw features and latents (None = dropped)."""

    @property
    def motion_space(self) -> Space: ...  # noqa: D102

    def condition(  # noqa: D102
        self, avatar_audio: Tensor | None, user_audio: Tensor | None, user_motion: Tensor | None
    ) -> Condition: ...


@dataclass(frozen=True)
class Pending:
    """A finished block not yet in the caches."""

    latents: Float[Tensor, "B T D"]
    condition: list[KeysValues]
    past: list[KeysValues] | None
    plans: list[AttentionPlan]


@dataclass
class State:
    """State of a roll-out between blocks, for B sequences; caches have R rows, branch by branch."""

    portrait: Float[Tensor, "B D"]
    reference: Float[Tensor, "B 1 C"]  # the embedded reference
    mean: Float[Tensor, "B D"]  # mean motion, for the anchor
    cache: RollingCache
    history: Condition | None = None  # signals that later blocks still attend to
    vectors: Float[Tensor, "R T C"] | None = None  # encoded condition, where it is kept and not recomputed
    offset: Float[Tensor, "B l D"] | None = None
    shown: Float[Tensor, "B D"] | None = None  # the newest frame after the dead band, where there is one
    pending: Pending | None = None


class BlockSampler:
    """A roll-out in steps: each takes the condition and noise of the next block and returns the block's motion.

    B sequences times the guidance branches run in one pass, in constant memory. `step` takes `block_frames` frames; the
    first may take a whole window at once (prime="joint"). A block enters the caches with the next step, or earlier by
    `commit` (a live session uses its idle time). `schedule` names one of `af.forcing.path` or is a step matrix for the
    frames of a block, which replaces `steps`. `dead_band`: changes of coordinates up to this many standard deviations are
    not shown (`af.forcing.dead_band`; 0: off); later blocks see the motion as it was before.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        reference: Float[Tensor, "B D"],
        *,
        steps: int = STEPS,
        guidance: Guidance = Guidance(),  # noqa: B008 (frozen)
        schedule: str | Schedule = "uniform",
        solver: str = "euler",
        anchor: Anchor = Anchor(),  # noqa: B008 (frozen)
        dead_band: float = 0.0,
    ) -> None:
        require_choice("solver", "solver", solver, SOLVERS)
        check_dead_band(dead_band)
        for name, value, kind in (("guidance", guidance, Guidance), ("anchor", anchor, Anchor)):
            if not isinstance(value, kind):
                raise UserError(f"{name}: expected {kind.__name__}(…), got {type(value).__name__}")
        if not isinstance(schedule, str | Schedule):
            raise UserError(f"schedule: expected a name or a Schedule, got {type(schedule).__name__}")
        self.denoiser, self.layout = denoiser, denoiser.layout
        self.branches = guidance.branches()
        # samplers with equal settings can be batched
        self.settings = (steps, guidance, schedule, solver, anchor, dead_band)
        self._solver, self.anchor, self._device, self._dead_band = solver, anchor, reference.device, dead_band
        make = _steps if isinstance(schedule, str) else _steps.__wrapped__
        self._steps, self._row_times, distinct = make(
            schedule, steps, self.layout.block_frames, reference.device, reference.dtype
        )
        # the modulation for every flow time, computed once per roll-out; the last is t = 1 (clean)
        self._modulation = denoiser.modulation(distinct[None])
        # these depend only on a few sizes, which are constant once the caches are full
        self._geometries: dict[tuple[int, int, int], tuple[list[AttentionPlan], RotaryTable]] = {}
        self._step_modulations: dict[tuple[int, int], list[Modulation]] = {}
        cache = RollingCache(self.layout.cached_frames, anchor.sink_frames)
        self.state = State(reference, denoiser.embed_reference(reference), reference, cache)
        self.frames = 0

    def step(self, condition: Condition, noise: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Clean motion of the next T frames in the denoiser's space, from their condition and noise.

        T is block_frames; for the first step any multiple of it up to window_frames. Raises ValueError otherwise.
        """
        new = self._check(condition, noise)
        state, anchor = self.state, self.anchor
        keys, plans, past = self._prepare(condition, new)
        modulations = self._modulations(0 if state.offset is None else state.offset.shape[1], new)
        pull = anchor.pull * (state.mean - state.portrait)[:, None]

        def velocity(x: Tensor, row: int) -> Tensor:
            embedded = self.denoiser.embed(self._after_offset(x), state.reference)
            branches = self.denoiser.velocity(embedded, modulations[row], keys, plans, past, new)
            guided = combine(branches, self.branches)
            return guided - pull if anchor.pull else guided

        motion = integrate(velocity, noise, self._steps, self._solver)
        self._finish(motion, keys, plans, past)
        return self._shown(motion)

    def give(self, condition: Condition, motion: Float[Tensor, "B T D"]) -> None:
        """Append existing motion (from a recording or an earlier session) as if it had been generated."""
        new = self._check(condition, motion)
        self._finish(motion, *self._prepare(condition, new))
        self.state.shown = motion[:, -1] if self._dead_band else None

    def commit(self) -> None:
        """Put the newest block into the caches (one pass at t = 1), unless it is already there."""
        state, block = self.state, self.state.pending
        if block is None:
            return
        state.pending = None
        stored = self._stored(block.latents, block.condition, block.plans, block.past)
        # the last look_ahead frames have not seen their own look-ahead, so the next block recomputes them
        state.cache.append(stored, drop_last=self.layout.look_ahead)

    def change_reference(self, reference: Float[Tensor, "B D"]) -> None:
        """Replace the portrait's motion from the next block on."""
        self.commit()
        state = self.state
        state.portrait, state.reference, state.mean = reference, self.denoiser.embed_reference(reference), reference
        if self.anchor.sink_frames and state.history is not None:
            self._pin(state.history)

    def saved(self) -> tuple[State, int]:
        """The current state, for `restore`. Copies nothing, since tensors are never changed in place."""
        return replace(self.state, cache=copy.copy(self.state.cache)), self.frames

    def restore(self, saved: tuple[State, int]) -> None:
        """Return to a state from `saved`."""
        self.state, self.frames = saved

    def _stored(
        self,
        latents: Tensor,
        keys: list[KeysValues],
        plans: list[AttentionPlan],
        past: list[KeysValues] | None,
    ) -> list[KeysValues]:
        """Keys and values of clean frames."""
        clean = self._modulation.frames(torch.full((latents.shape[1],), -1, device=self._device))
        return self.denoiser.keys_values(self.denoiser.embed(latents, self.state.reference), clean, keys, plans, past)

    def _check(self, condition: Condition, frames: Tensor) -> int:
        new, b = frames.shape[1], self.layout.block_frames
        if condition.frames != new:
            raise ValueError(f"condition of {condition.frames} frames, noise of {new}")
        if new != b and (self.frames or new % b or not b <= new <= self.layout.window_frames):
            raise ValueError(f"{new} frames in a step; a block has {b} (first step: any multiple up to the window)")
        return new

    def _shown(self, motion: Tensor) -> Tensor:
        """Generated motion after the dead band."""
        if not self._dead_band:
            return motion
        calm = torch.stack(list(held(motion.unbind(1), self.state.shown, self._dead_band)), 1)
        self.state.shown = calm[:, -1]
        return calm

    def _after_offset(self, x: Tensor) -> Tensor:
        return x if self.state.offset is None else torch.cat((self.state.offset, x), 1)

    def _finish(
        self, motion: Tensor, keys: list[KeysValues], plans: list[AttentionPlan], past: list[KeysValues] | None
    ) -> None:
        state, kept = self.state, self.layout.look_ahead
        latents = self._after_offset(motion)
        state.pending = Pending(latents, keys, past, plans) if self.layout.cached_frames else None
        state.offset = latents[:, latents.shape[1] - kept :] if kept else None
        state.mean = self.anchor.running_mean(state.mean, motion) if self.anchor.pull else state.mean
        self.frames += motion.shape[1]

    def _prepare(
        self, condition: Condition, new: int
    ) -> tuple[list[KeysValues], list[AttentionPlan], list[KeysValues] | None]:
        """Commit the block before, then compute all of the next block that does not depend on the step."""
        self.commit()
        if not self.frames and self.anchor.sink_frames:
            self._pin(condition)
        layout, denoiser, state = self.layout, self.denoiser, self.state
        offset = 0 if state.offset is None else state.offset.shape[1]
        signals = condition if state.history is None else state.history.then(condition)
        if denoiser.causal_condition:
            # encode the window of the self-attention again: this is cheap
            signals = signals.last(layout.window_frames)
            first = layout.window_frames - signals.frames
            vectors = denoiser.encode_condition(branch_conditions(signals, self.branches), first)
            vectors = vectors[:, max(0, vectors.shape[1] - layout.condition_reach - offset - new) :]
            state.history = signals.last(layout.block_position)
        else:
            # released: encode only these frames; the few before them stay as encoded in their own block
            signals = signals.last(offset + new)
            vectors = denoiser.encode_condition(branch_conditions(signals, self.branches))
            vectors = vectors if state.vectors is None else torch.cat((state.vectors, vectors), 1)
            stop = vectors.shape[1] - layout.look_ahead
            state.vectors = vectors[:, max(0, stop - layout.condition_reach) : stop]
            state.history = signals.last(layout.look_ahead)
        plans, past_rope = self._geometry(offset + new, state.cache.frames, vectors.shape[1])
        room = 0 if torch.is_grad_enabled() else offset + new
        return denoiser.condition_keys(vectors), plans, state.cache.rotated(past_rope, room)

    def _pin(self, condition: Condition) -> None:
        """Cache the anchor's frames for good: the portrait's motion with every signal dropped."""
        count, branches = self.anchor.sink_frames, len(self.branches)
        dropped = condition.map(lambda signal: signal.new_zeros(branches * len(signal), count, signal.shape[2]))
        keys = self.denoiser.condition_keys(self.denoiser.encode_condition(dropped))
        plans, _ = self._geometry(count, 0, count)
        held = self.state.portrait[:, None].expand(-1, count, -1)
        stored = self._stored(held, keys, plans, None)
        if self.state.cache.frames:
            self.state.cache.pin(stored)
        else:
            self.state.cache.append(stored)

    def _geometry(self, current: int, cached: int, condition: int) -> tuple[list[AttentionPlan], RotaryTable]:
        """Positions and masks of a block; positions count back from the window's end, so they become constant."""
        sizes, end = (current, cached, condition), self.layout.window_frames

        def last(count: int, stop: int) -> Int[Tensor, " T"]:
            return torch.arange(stop - count, stop, device=self._device)

        if sizes not in self._geometries:
            plans = self.denoiser.plans(last(current, end), last(cached + current, end), last(condition, end))
            turns = plans[0].rope.turns
            past = rotary_table(last(cached, end - current), 2 * turns.shape[1], dtype=turns.real.dtype)
            self._geometries[sizes] = plans, past
        return self._geometries[sizes]

    def _modulations(self, offset: int, new: int) -> list[Modulation]:
        """Modulation for every row of the step matrix: the offset clean, the block's frames at their flow times."""
        if (offset, new) not in self._step_modulations:
            clean = self._row_times[-1:].expand(offset)
            rows = self._row_times[:-1].unflatten(0, (self._steps.steps, -1))
            blocks = new // self.layout.block_frames
            self._step_modulations[offset, new] = [
                self._modulation.frames(torch.cat((clean, row.repeat(blocks)))) for row in rows
            ]
        return self._step_modulations[offset, new]


def sampler_of(denoiser: Any, reference: Float[Tensor, "B D"], **sampling: Any) -> BlockSampler:
    """A sampler for `denoiser`: its own, where it brings one (exports do)."""
    own = getattr(denoiser, "sampler", None)
    return BlockSampler(denoiser, reference, **sampling) if own is None else own(reference, **sampling)


@cache
@torch.inference_mode(False)  # what is kept may also serve a gradient
def _steps(
    name: str | Schedule, steps: int, frames: int, device: torch.device, dtype: torch.dtype
) -> tuple[Schedule, Int[Tensor, " N"], Float[Tensor, " U"]]:
    """The step matrix of a block on `device`; the place of each of its flow times, row by row, and of t = 1 among the
    distinct ones; and these.
    """
    chosen = make_schedule(name, steps, frames) if isinstance(name, str) else name
    matrix = chosen.of(frames)
    times = torch.cat((matrix.flow_times.flatten(), torch.ones(1, dtype=torch.float64)))
    distinct, places = torch.unique(times, return_inverse=True)
    there = torch.empty(0, dtype=dtype, device=device)
    wide = widest_float(device, dtype)
    return matrix.beside(there), places.to(device, non_blocking=True), distinct.to(device, wide, non_blocking=True)


def continued(
    sampler: BlockSampler, blocks: Iterable[tuple[Condition, Float[Tensor, "B T D"]]], **sampling: Any
) -> BlockSampler:
    """A roll-out with other settings that continues `sampler`'s, from the condition and motion of its last blocks."""
    other = sampler_of(sampler.denoiser, sampler.state.portrait, **sampling)
    for condition, motion in blocks:
        other.give(condition, motion)
    other.frames = sampler.frames
    if isinstance(other, BlockSampler) and sampler.anchor.pull:
        other.state.mean = sampler.state.mean  # of longer than the last blocks
    return other
