"""Block roll-out with rolling caches: motion of any length, block by block (method §4, paper Algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from af.errors import UserError
from af.forcing.guidance import Guidance, branch_conditions, combine
from af.forcing.path import schedule as make_schedule
from af.nn.kv_cache import KeysValues, RollingCache, WindowLayout
from af.nn.rope import RotaryTable, rotary_table
from af.nn.transformer import AttentionPlan, Modulation
from af.types import Condition

__all__ = ["BlockSampler", "Denoiser", "Guidance", "block_sizes", "draw_noise", "filled", "rollout", "rollout_blocks"]

PRIMES = ("block", "joint")


class Denoiser(Protocol):
    """What the roll-out needs of a denoiser (`af.models.denoiser.MotionDenoiser` has it)."""

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
    def plan(self, frames: Tensor, keys: Tensor, condition: Tensor) -> AttentionPlan: ...  # noqa: D102
    def velocity(  # noqa: D102
        self,
        x: Tensor,
        modulation: Modulation,
        condition: Sequence[KeysValues],
        plan: AttentionPlan,
        past: Sequence[KeysValues] | None = None,
    ) -> Tensor: ...
    def keys_values(  # noqa: D102
        self,
        x: Tensor,
        modulation: Modulation,
        condition: Sequence[KeysValues],
        plan: AttentionPlan,
        past: Sequence[KeysValues] | None = None,
    ) -> list[KeysValues]: ...


@dataclass(frozen=True)
class _Pending:
    """A finished block that is not in the caches yet."""

    latents: Float[Tensor, "B T D"]
    condition: list[KeysValues]
    plan: AttentionPlan
    past: list[KeysValues] | None


class BlockSampler:
    """The state of a roll-out: give it the condition and the noise of the next block, take the block's motion.

    Everything is batched: B sequences times the guidance branches run in one pass. Memory does not grow with time.
    `step` takes `block_frames` frames; the first one may take a whole window at once (prime="joint").
    A block enters the caches when it is needed, or earlier by `commit` (a live session has time for it then).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        reference: Float[Tensor, "B D"],
        *,
        steps: int = 8,
        guidance: Guidance = Guidance(),  # noqa: B008 (frozen)
        schedule: str = "uniform",
    ) -> None:
        self._denoiser, self._layout = denoiser, denoiser.layout
        self._branches = guidance.branches()
        self._schedule = make_schedule(schedule, steps)
        self._reference = denoiser.embed_reference(reference)
        self._device = reference.device
        times = torch.tensor((*self._schedule.flow_times, 1.0), dtype=torch.float64, device=self._device)
        self._modulation = denoiser.modulation(times[None])  # once for the whole roll-out: steps + 1 flow times
        self._cache = RollingCache(self._layout.cached_frames)
        self._history: Condition | None = None  # signals that later blocks still look at
        self._vectors: Float[Tensor, "R T C"] | None = None  # encoded condition kept, where it is not recomputed
        self._offset: Float[Tensor, "B l D"] | None = None
        self._pending: _Pending | None = None
        # both depend on a few sizes only and become constant once the caches are full
        self._geometries: dict[tuple[int, int, int], tuple[AttentionPlan, RotaryTable]] = {}
        self._step_modulations: dict[tuple[int, int], list[Modulation]] = {}
        self.frames = 0

    @property
    def layout(self) -> WindowLayout:
        """Sizes of blocks, window and caches."""
        return self._layout

    def step(self, condition: Condition, noise: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Motion of the next T frames (clean, the denoiser's space), from their condition and their noise.

        T is block_frames; at the start any multiple of it up to window_frames. ValueError otherwise.
        """
        new = self._check(condition, noise)
        self.commit()
        offset = self._layout.look_ahead if self.frames else 0
        keys, plan, past = self._prepare(condition, offset, new)
        x = noise if self._offset is None else torch.cat((self._offset, noise), 1)
        for size, times in zip(self._schedule.step_sizes, self._times(offset, new), strict=True):
            velocity = combine(self._denoiser.velocity(self._embed(x), times, keys, plan, past), self._branches)
            x = torch.cat((x[:, :offset], x[:, offset:] + size * velocity[:, offset:]), 1)
        self._pending = _Pending(x, keys, plan, past)
        self._offset = x[:, x.shape[1] - self._layout.look_ahead :] if self._layout.look_ahead else None
        self.frames += new
        return x[:, offset:]

    def commit(self) -> None:
        """Put the newest block into the caches (one pass at t = 1); nothing to do when it is there already."""
        if self._pending is None:
            return
        block, self._pending = self._pending, None
        clean = self._modulation.frames(torch.full((block.latents.shape[1],), -1, device=self._device))
        stored = self._denoiser.keys_values(self._embed(block.latents), clean, block.condition, block.plan, block.past)
        # the last look_ahead frames have not seen their own look-ahead: the next block computes them again
        self._cache.append(stored, drop_last=self._layout.look_ahead)

    def _check(self, condition: Condition, noise: Tensor) -> int:
        new, b = noise.shape[1], self._layout.block_frames
        if condition.frames != new:
            raise ValueError(f"condition of {condition.frames} frames, noise of {new}")
        if new != b and (self.frames or new % b or not b <= new <= self._layout.window_frames):
            raise ValueError(f"{new} frames in a step; a block has {b} (the first step: a multiple up to the window)")
        return new

    def _embed(self, x: Tensor) -> Tensor:
        return self._denoiser.embed(x, self._reference).repeat(len(self._branches), 1, 1)

    def _prepare(
        self, condition: Condition, offset: int, new: int
    ) -> tuple[list[KeysValues], AttentionPlan, list[KeysValues] | None]:
        """Everything about the next block that does not depend on the Euler step."""
        layout, denoiser = self._layout, self._denoiser
        signals = condition if self._history is None else _concatenate(self._history, condition)
        if denoiser.causal_condition:
            # an encoding of the same window that self-attention sees, which is cheap enough to be made anew
            signals = _last(signals, layout.window_frames)
            first = layout.window_frames - signals.frames
            vectors = denoiser.encode_condition(branch_conditions(signals, self._branches), first)
            vectors = vectors[:, max(0, vectors.shape[1] - layout.condition_reach - offset - new) :]
            self._history = _last(signals, layout.block_position)
        else:
            # released: these frames alone, and the few before them as they were encoded in their own block
            signals = _last(signals, offset + new)
            vectors = denoiser.encode_condition(branch_conditions(signals, self._branches))
            vectors = vectors if self._vectors is None else torch.cat((self._vectors, vectors), 1)
            stop = vectors.shape[1] - layout.look_ahead
            self._vectors = vectors[:, max(0, stop - layout.condition_reach) : stop]
            self._history = _last(signals, layout.look_ahead)
        plan, past_rope = self._geometry(offset + new, self._cache.frames, vectors.shape[1])
        return denoiser.condition_keys(vectors), plan, self._cache.rotated(past_rope)

    def _geometry(self, current: int, cached: int, condition: int) -> tuple[AttentionPlan, RotaryTable]:
        """Positions count back from the end of the window, so every block of a long roll-out has the same ones."""
        sizes, end = (current, cached, condition), self._layout.window_frames

        def last(count: int, stop: int) -> Int[Tensor, " T"]:
            return torch.arange(stop - count, stop, device=self._device)

        if sizes not in self._geometries:
            plan = self._denoiser.plan(last(current, end), last(cached + current, end), last(condition, end))
            head_dim = self._denoiser.hidden // self._denoiser.heads
            past = rotary_table(last(cached, end - current), head_dim, dtype=plan.rope.cos.dtype)
            self._geometries[sizes] = plan, past
        return self._geometries[sizes]

    def _times(self, offset: int, new: int) -> list[Modulation]:
        """Modulation of every Euler step: the offset is clean, the block is at the step's flow time."""
        if (offset, new) not in self._step_modulations:
            steps = len(self._schedule.step_sizes)
            self._step_modulations[offset, new] = [
                self._modulation.frames(torch.tensor([steps] * offset + [i] * new, device=self._device))
                for i in range(steps)
            ]
        return self._step_modulations[offset, new]


def rollout_blocks(
    denoiser: Denoiser,
    condition: Condition | Iterable[Condition],
    reference: Float[Tensor, "B D"],
    *,
    steps: int = 8,
    guidance: Guidance = Guidance(),  # noqa: B008 (frozen)
    schedule: str = "uniform",
    noise: Float[Tensor, "B N D"] | None = None,
    generator: torch.Generator | None = None,
    prime: str = "block",
) -> Iterator[Float[Tensor, "B T D"]]:
    """Motion block by block, each as soon as its condition is there, in memory that does not grow.

    `condition`: all frames, or pieces of any size one after the other. A last, partial block is filled by repeating its
    last frame and cut on the way out. `noise`: one row a frame, whole blocks (see `block_sizes`); otherwise drawn block
    by block from `generator`. Gradients flow when an input asks for them, never otherwise.
    Raises UserError for an unknown schedule or prime, ValueError for noise that does not fit or an empty condition.
    """
    _check_prime(prime)
    layout = denoiser.layout
    if noise is not None and isinstance(condition, Condition):
        needed = (reference.shape[0], sum(block_sizes(condition.frames, layout, prime)), denoiser.dim)
        if tuple(noise.shape) != needed:
            raise ValueError(f"noise of shape {tuple(noise.shape)}; {condition.frames} frames need {needed}")
    whole = [condition] if isinstance(condition, Condition) else condition
    first = layout.window_frames if prime == "joint" else layout.block_frames
    pieces = _blocks(whole, first, layout.block_frames)

    def inputs_ask(piece: Condition) -> bool:
        signals = (piece.avatar_audio, piece.user_audio, piece.user_motion, reference, noise)
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in signals)

    sampler: BlockSampler | None = None
    differentiable = False
    for piece, frames in pieces:
        differentiable = differentiable or inputs_ask(piece)
        with torch.set_grad_enabled(differentiable):  # not around the yield: grad mode would leak to the caller
            if sampler is None:
                sampler = BlockSampler(denoiser, reference, steps=steps, guidance=guidance, schedule=schedule)
            if noise is not None:
                drawn = noise[:, sampler.frames : sampler.frames + piece.frames]
            else:
                drawn = draw_noise(generator, reference, piece.frames)
            block = sampler.step(piece, drawn)[:, :frames]
        yield block
    if sampler is None:
        raise ValueError("a roll-out needs at least one frame of condition")


def rollout(
    denoiser: Denoiser,
    condition: Condition,
    reference: Float[Tensor, "B D"],
    *,
    steps: int = 8,
    guidance: Guidance = Guidance(),  # noqa: B008 (frozen)
    schedule: str = "uniform",
    noise: Float[Tensor, "B N D"] | None = None,
    generator: torch.Generator | None = None,
    prime: str = "block",
) -> Float[Tensor, "B T D"]:
    """Motion of all frames of `condition` (the denoiser's space): `rollout_blocks`, joined.

    `steps` Euler steps a block; `schedule` "uniform" or "released"; `prime` "block" starts with one block, "joint" with
    a whole window at once (released). Noise and errors as in `rollout_blocks`. Method §4.
    """
    blocks = rollout_blocks(
        denoiser,
        condition,
        reference,
        steps=steps,
        guidance=guidance,
        schedule=schedule,
        noise=noise,
        generator=generator,
        prime=prime,
    )
    return torch.cat(list(blocks), 1)


def block_sizes(frames: int, layout: WindowLayout, prime: str = "block") -> list[int]:
    """Frames of each step of a roll-out of `frames` frames; their sum is the number of noise rows."""
    _check_prime(prime)
    first = layout.window_frames if prime == "joint" else layout.block_frames
    rest = max(0, frames - first)
    return [first, *[layout.block_frames] * -(-rest // layout.block_frames)] if frames > 0 else []


def draw_noise(generator: torch.Generator | None, reference: Float[Tensor, "B D"], frames: int) -> Tensor:
    """Standard normal noise (B, frames, D), drawn where the generator lives: the same numbers on every device."""
    device = reference.device if generator is None else generator.device
    shape = (reference.shape[0], frames, reference.shape[-1])
    return torch.randn(shape, generator=generator, device=device, dtype=reference.dtype).to(reference.device)


def _check_prime(prime: str) -> None:
    if prime not in PRIMES:
        raise UserError(f"prime: unknown start {prime!r}; allowed: {', '.join(PRIMES)}")


def _blocks(pieces: Iterable[Condition], first: int, rest: int) -> Iterator[tuple[Condition, int]]:
    """Cut pieces of any size into a first block and equal others; (block filled up, true frames)."""
    held: Condition | None = None
    size = first
    for piece in pieces:
        held = piece if held is None or held.frames == 0 else _concatenate(held, piece)
        start = 0
        while held.frames - start >= size:
            yield held.window(start, start + size), size
            start, size = start + size, rest
        held = held.window(start, held.frames)
    if held is not None and held.frames:
        yield filled(held, size), held.frames


def filled(condition: Condition, frames: int) -> Condition:
    """The condition with its last frame repeated up to `frames`."""

    def fill(x: Tensor) -> Tensor:
        return torch.cat((x, x[:, -1:].expand(-1, frames - x.shape[1], -1)), 1)

    return Condition(fill(condition.avatar_audio), fill(condition.user_audio), fill(condition.user_motion))


def _concatenate(a: Condition, b: Condition) -> Condition:
    return Condition(
        torch.cat((a.avatar_audio, b.avatar_audio), 1),
        torch.cat((a.user_audio, b.user_audio), 1),
        torch.cat((a.user_motion, b.user_motion), 1),
    )


def _last(condition: Condition, frames: int) -> Condition:
    return condition.window(max(0, condition.frames - frames), condition.frames)
