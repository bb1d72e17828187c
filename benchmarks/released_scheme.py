"""What the roll-out is measured against, on the same weights: the released scheme, and no cache at all.

The released scheme is a straightforward re-implementation from its description: it encodes the condition, makes its
keys and values and the modulation anew in every pass, and makes one pass more than there are Euler steps.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from af.forcing.guidance import Guidance, branch_conditions, combine
from af.models.denoiser import MotionDenoiser
from af.nn.kv_cache import KeysValues
from af.nn.rope import rotate
from af.types import Condition


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
        signals = condition if self.signals is None else self.signals.then(condition)
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


def whole_window(
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
