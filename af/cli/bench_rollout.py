"""Roll-out speed: time per block against the released scheme and against no cache at all, on the same weights.

The released scheme is kept here as a straightforward re-implementation from its description: it encodes the condition,
makes its keys and values and the modulation anew in every pass, and makes one pass more than there are Euler steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from af.clock import frames_to_seconds
from af.forcing.guidance import Guidance, branch_conditions, combine
from af.forcing.rollout import BlockSampler
from af.models.artifact import build
from af.models.denoiser import MotionDenoiser
from af.models.released import ReleasedSizes
from af.nn.kv_cache import KeysValues
from af.nn.rope import rotate
from af.types import Condition

SIZES: Final = {
    "released": ReleasedSizes(),
    "small": ReleasedSizes(dim=20, hidden=160, depth=4, heads=4, condition_dim=96, audio_feature_dim=64),
}


class ReleasedScheme:
    """The baseline: the same motion as `BlockSampler` (unmasked condition encoder), computed as the released code does."""

    def __init__(
        self, denoiser: MotionDenoiser, reference: Float[Tensor, "B D"], steps: int, guidance: Guidance
    ) -> None:
        self.denoiser, self.reference = denoiser, reference
        self.branches = guidance.branches()
        self.times, self.sizes = [i / steps for i in range(steps)], [1 / steps] * steps
        self.frames = 0
        self.offset = reference.new_zeros(reference.shape[0], 0, reference.shape[-1])
        self.signals: Condition | None = None
        self.past: list[KeysValues] | None = None  # self-attention, keys rotated to absolute positions
        self.condition_past: list[KeysValues] | None = None

    def step(self, condition: Condition, noise: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Motion of the next block."""
        layout = self.denoiser.layout
        offset = self.offset.shape[1]
        signals = condition
        if self.signals is not None:
            signals = Condition(
                *(torch.cat(pair, 1) for pair in zip(_signals(self.signals), _signals(condition), strict=True))
            )
        x = torch.cat((self.offset, noise), 1)
        for t, size in zip((*self.times, 1.0), (*self.sizes, 0.0), strict=True):
            velocity = self._pass(x, t, offset, signals)[0]
            x = torch.cat((x[:, :offset], x[:, offset:] + size * velocity[:, offset:]), 1)
        _, own, condition_keys = self._pass(x, 1.0, offset, signals)  # the store pass
        self.past = _kept(self.past, own, layout.look_ahead, layout.cached_frames)
        self.condition_past = _kept(self.condition_past, condition_keys, layout.look_ahead, layout.condition_reach)
        self.offset = x[:, x.shape[1] - layout.look_ahead :]
        self.signals = signals.window(signals.frames - layout.look_ahead, signals.frames)
        self.frames += noise.shape[1]
        return x[:, offset:]

    def _pass(
        self, x: Tensor, flow_time: float, offset: int, signals: Condition
    ) -> tuple[Tensor, list[KeysValues], list[KeysValues]]:
        denoiser, branches = self.denoiser, len(self.branches)
        stop = self.frames + x.shape[1] - offset
        frames = torch.arange(stop - x.shape[1], stop)
        cached = 0 if self.past is None else self.past[0].keys.shape[2]
        reached = 0 if self.condition_past is None else self.condition_past[0].keys.shape[2]
        plans = denoiser.plans(
            frames,
            torch.arange(stop - x.shape[1] - cached, stop),
            torch.arange(stop - x.shape[1] - reached, stop),
        )
        times = torch.full((branches * x.shape[0], x.shape[1]), flow_time)
        times[:, :offset] = 1.0
        modulation = denoiser.modulation(times)
        condition = denoiser.condition_keys(denoiser.encode_condition(branch_conditions(signals, self.branches)))
        seen = condition if self.condition_past is None else _joined(self.condition_past, condition)
        h = denoiser.embed(x.repeat(branches, 1, 1), denoiser.embed_reference(self.reference).repeat(branches, 1, 1))
        own = []
        for i, block in enumerate(denoiser.blocks):
            h, made = block(h, modulation, plans[i], seen[i], None if self.past is None else self.past[i])
            own.append(KeysValues(rotate(made.keys, plans[i].rope), made.values))
        return combine(denoiser.head_velocity(h, modulation), self.branches), own, condition


@dataclass(frozen=True)
class _Inputs:
    """Made-up input of a roll-out, block after block."""

    denoiser: MotionDenoiser
    generator: torch.Generator

    def reference(self) -> Tensor:
        return torch.randn(1, self.denoiser.dim, generator=self.generator)

    def block(self, frames: int) -> tuple[Condition, Tensor]:
        audio = self.denoiser.condition_encoder.out.in_features
        shapes = (audio, audio, self.denoiser.dim, self.denoiser.dim)
        *signals, noise = (torch.randn(1, frames, size, generator=self.generator) for size in shapes)
        return Condition(*signals), noise


@torch.inference_mode()
def bench(size: str = "released", steps: int = 8, repeats: int = 3) -> dict[str, Any]:
    """Seconds per block with full caches (best of `repeats`), three branches, fp32, with what it is compared to.

    Takes about a minute at the released size on one core. The caller sets the number of threads.
    """
    generator = torch.Generator().manual_seed(0)
    denoiser = build(SIZES[size].config()).eval()
    _randomise(denoiser, generator)
    layout, inputs = denoiser.layout, _Inputs(denoiser, generator)
    reference = inputs.reference()
    ours = BlockSampler(denoiser, reference, steps=steps)
    theirs = ReleasedScheme(denoiser, reference, steps, Guidance())
    first = inputs.block(layout.window_frames)
    _prime(ours, theirs, first)

    difference, seconds = 0.0, {"ours": float("inf"), "released": float("inf"), "uncached": float("inf")}
    for _ in range(repeats):
        condition, noise = inputs.block(layout.block_frames)
        got, seconds["ours"] = _timed(partial(_block, ours, condition, noise), seconds["ours"])
        expected, seconds["released"] = _timed(partial(theirs.step, condition, noise), seconds["released"])
        difference = max(difference, ((got - expected).norm() / expected.norm()).item())
    whole, noise = first
    for _ in range(max(1, repeats - 2)):
        _, seconds["uncached"] = _timed(
            lambda: _whole_window(denoiser, whole, noise, reference, steps), seconds["uncached"]
        )
    operations = _operations(lambda: _block(ours, *inputs.block(layout.block_frames)))
    peak = matmul_flops(torch.float32)
    return {
        "size": size,
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "threads": torch.get_num_threads(),
        "block_frames": layout.block_frames,
        "steps": steps,
        "seconds_per_block": seconds["ours"],
        "seconds_per_block_released_scheme": seconds["released"],
        "seconds_per_block_without_cache": seconds["uncached"],
        "speedup_over_released_scheme": seconds["released"] / seconds["ours"],
        "speedup_over_no_cache": seconds["uncached"] / seconds["ours"],
        "relative_difference_from_released_scheme": difference,
        "times_real_time": frames_to_seconds(layout.block_frames) / seconds["ours"],
        "matmul_peak_gflops": peak / 1e9,
        "share_of_matmul_peak": operations / seconds["ours"] / peak,
    }


def matmul_flops(dtype: torch.dtype, size: int = 1024, repeats: int = 4) -> float:
    """Floating-point operations a second of a square matrix product: what the machine can do, measured now."""
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    seconds = float("inf")
    for _ in range(repeats):
        _, seconds = _timed(lambda: a @ b, seconds)
    return 2 * size**3 / seconds


def _block(sampler: BlockSampler, condition: Condition, noise: Tensor) -> Tensor:
    motion = sampler.step(condition, noise)
    sampler.commit()
    return motion


def _prime(ours: BlockSampler, theirs: ReleasedScheme, first: tuple[Condition, Tensor]) -> None:
    """Fill both caches with one and the same window. One Euler step would do, were the state not to be compared."""
    _block(ours, *first)
    theirs.step(*first)


def _whole_window(
    denoiser: MotionDenoiser, condition: Condition, motion: Tensor, reference: Tensor, steps: int
) -> Tensor:
    """A block without any cache: the whole window in every step and branch, its past being clean."""
    layout, branches = denoiser.layout, Guidance().branches()
    signals = branch_conditions(condition, branches)
    times = torch.ones(len(branches), layout.window_frames)
    x = motion.repeat(len(branches), 1, 1)
    for step in range(steps):
        times[:, layout.block_position :] = step / steps
        velocity = combine(denoiser(x, times, signals, reference.repeat(len(branches), 1)), branches)
        x[:, layout.block_position :] += velocity[:, layout.block_position :] / steps
    return x


def _timed(work: Callable[[], Any], best: float) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, min(best, time.perf_counter() - start)


def _operations(work: Callable[[], Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _randomise(denoiser: MotionDenoiser, generator: torch.Generator) -> None:
    """Weights of a trained network's size: a fresh one has zero gates, and denormals would spoil the timing."""
    for parameter in denoiser.parameters():
        if parameter.ndim == 2:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)


def _signals(condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
    return condition.avatar_audio, condition.user_audio, condition.user_motion


def _joined(before: list[KeysValues], new: list[KeysValues]) -> list[KeysValues]:
    return [
        KeysValues(torch.cat((a.keys, b.keys), 2), torch.cat((a.values, b.values), 2))
        for a, b in zip(before, new, strict=True)
    ]


def _kept(before: list[KeysValues] | None, new: list[KeysValues], drop_last: int, capacity: int) -> list[KeysValues]:
    grown = new if before is None else _joined(before, new)
    stop = grown[0].keys.shape[2] - drop_last
    kept = slice(max(0, stop - capacity), stop)
    return [KeysValues(layer.keys[:, :, kept], layer.values[:, :, kept]) for layer in grown]
