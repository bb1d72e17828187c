"""Offline block roll-out: motion of any length, block by block (method §4). State and step are in `sampler`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from af.errors import UserError, require_choice
from af.forcing.anchor import Anchor
from af.forcing.guidance import Guidance
from af.forcing.path import Schedule
from af.forcing.sampler import BlockSampler, Denoiser
from af.forcing.solvers import STEPS
from af.nn.kv_cache import WindowLayout
from af.types import Condition

PRIMES = ("block", "joint")


def rollout_blocks(
    denoiser: Denoiser,
    condition: Condition | Iterable[Condition],
    reference: Float[Tensor, "B D"],
    *,
    noise: Float[Tensor, "B N D"] | None = None,
    generator: torch.Generator | None = None,
    prime: str = "block",
    **sampling: Any,
) -> Iterator[Float[Tensor, "B T D"]]:
    """Motion block by block, each as soon as its condition arrives, in constant memory.

    `condition`: all frames, or successive pieces of any size. A partial last block is completed by repeating its last
    frame, and its motion is cut to size. `noise`: one row per frame, in whole blocks (see `block_sizes`); otherwise
    drawn per block from `generator`. `sampling` as in `rollout`. Gradients flow only if an input requires them. Raises
    UserError for an unknown schedule, solver or prime, ValueError for misfitting noise or an empty condition.
    """
    layout = denoiser.layout
    _check_prime(prime, layout)
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
        with torch.set_grad_enabled(differentiable):  # not around the yield: the grad mode would leak to the caller
            if sampler is None:
                sampler = BlockSampler(denoiser, reference, **sampling)
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
    steps: int = STEPS,
    guidance: Guidance = Guidance(),  # noqa: B008 (frozen)
    schedule: str | Schedule = "uniform",
    noise: Float[Tensor, "B N D"] | None = None,
    generator: torch.Generator | None = None,
    prime: str = "block",
    solver: str = "euler",
    anchor: Anchor = Anchor(),  # noqa: B008 (frozen)
    dead_band: float = 0.0,
) -> Float[Tensor, "B T D"]:
    """Motion of all frames of `condition` in the denoiser's space: the joined blocks of `rollout_blocks`.

    `steps`: rows of the schedule of a block, which the `solver` integrates (`af.forcing.path.integrate`). `schedule`:
    a name (`af.forcing.path.schedule`) or a step matrix (`af.forcing.path.step_matrix`), which replaces `steps`.
    `prime`: "block" starts with one block, "joint" with a whole window at once (released). `anchor` holds long
    roll-outs near the portrait. `dead_band` as in `BlockSampler`. Noise and errors as in `rollout_blocks`. Method §4.
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
        solver=solver,
        anchor=anchor,
        dead_band=dead_band,
    )
    return torch.cat(list(blocks), 1)


def block_sizes(frames: int, layout: WindowLayout, prime: str = "block") -> list[int]:
    """Number of frames in each step of a roll-out of `frames` frames; their sum is the number of noise rows."""
    _check_prime(prime, layout)
    first = layout.window_frames if prime == "joint" else layout.block_frames
    rest = max(0, frames - first)
    return [first, *[layout.block_frames] * -(-rest // layout.block_frames)] if frames > 0 else []


def draw_noise(generator: torch.Generator | None, reference: Float[Tensor, "B D"], frames: int) -> Tensor:
    """Standard normal noise (B, frames, D), drawn on the generator's device: the same numbers for every device."""
    device = reference.device if generator is None else generator.device
    shape = (reference.shape[0], frames, reference.shape[-1])
    return torch.randn(shape, generator=generator, device=device, dtype=reference.dtype).to(
        reference.device, non_blocking=True
    )


def _check_prime(prime: str, layout: WindowLayout) -> None:
    require_choice("prime", "start", prime, PRIMES)
    if prime == "joint" and layout.window_frames % layout.block_frames:
        raise UserError(
            f"prime: 'joint' starts with whole blocks, and a window of {layout.window_frames} frames is not a multiple of "
            f"{layout.block_frames}; use 'block'"
        )


def _blocks(pieces: Iterable[Condition], first: int, rest: int) -> Iterator[tuple[Condition, int]]:
    """Cut pieces of any size into a `first` block and equal `rest`; yields (completed block, number of true frames)."""
    held: Condition | None = None
    size = first
    for piece in pieces:
        held = piece if held is None or held.frames == 0 else held.then(piece)
        start = 0
        while held.frames - start >= size:
            yield held.window(start, start + size), size
            start, size = start + size, rest
        held = held.window(start, held.frames)
    if held is not None and held.frames:
        yield held.filled(size), held.frames
