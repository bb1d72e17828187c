"""The roll-out with caches against the same computation without any: all windows laid end to end, explicit masks."""

from __future__ import annotations

import pytest
import torch

from af.forcing.guidance import Guidance
from af.forcing.rollout import block_sizes, rollout
from af.nn.masks import RULES, attention_mask
from af.nn.rope import rotary_table
from af.nn.transformer import AttentionPlan
from af.types import Condition


class Window:
    """One window of the roll-out in absolute frames: offset and block [start, stop), the first `offset` being clean."""

    def __init__(self, start: int, stop: int, look_ahead: int) -> None:
        self.offset = look_ahead if start else 0
        self.start, self.stop = start - self.offset, stop


def table(denoiser, frames: torch.Tensor):
    """Rotary table of the condition encoder at absolute positions, where it has positions."""
    if not denoiser.condition_positions:
        return None
    dim = denoiser.condition_encoder.out.in_features
    return rotary_table(frames, dim // denoiser.condition_heads, dtype=torch.float64)


def rules_by_layer(denoiser, frames: torch.Tensor, layers: int) -> list[torch.Tensor]:
    """Look-ahead in every layer, or in the first alone."""
    first = denoiser.layout.look_ahead
    deeper = first if denoiser.look_ahead_layers == "all" else 0
    return [
        attention_mask(denoiser.mask, frames, frames, block_frames=denoiser.layout.block_frames, look_ahead=n)
        for n in (first, *[deeper] * (layers - 1))
    ]


def encode(denoiser, raw: Condition, windows: list[Window]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each window the frames its cross-attention can reach and their vectors."""
    layout, encoded = denoiser.layout, []
    for window in windows:
        first = max(0, window.start - layout.condition_reach)
        if denoiser.causal_condition:
            begin = max(0, window.stop - layout.window_frames)
            frames = torch.arange(begin, window.stop)
            masks = rules_by_layer(denoiser, frames, 2)
            vectors = denoiser.condition_encoder(raw.window(begin, window.stop), masks, table(denoiser, frames))
            vectors = vectors[:, first - begin :]
        else:
            frames = torch.arange(window.start, window.stop)
            vectors = denoiser.condition_encoder(
                raw.window(window.start, window.stop), (None, None), table(denoiser, frames)
            )
            if encoded:
                before, old = encoded[-1]
                kept = (before >= first) & (before < window.start)
                vectors = torch.cat((old[:, kept], vectors), 1)
        encoded.append((torch.arange(first, window.stop), vectors))
    return encoded


def velocity(denoiser, latents, times, raw: Condition, reference, windows: list[Window]) -> torch.Tensor:
    """Velocity of the tokens of the last window, all windows being tokens of their own of one long sequence."""
    layout = denoiser.layout
    position = torch.cat([torch.arange(w.start, w.stop) for w in windows])
    owner = torch.cat([torch.full((w.stop - w.start,), i) for i, w in enumerate(windows)])
    stop = torch.tensor([w.stop for w in windows])
    encoded = encode(denoiser, raw, windows)
    vectors = torch.cat([v for _, v in encoded], 1)
    condition_position = torch.cat([frames for frames, _ in encoded])
    condition_owner = torch.cat([torch.full_like(frames, i) for i, (frames, _) in enumerate(encoded)])

    rules = rules_by_layer(denoiser, position, denoiser.depth)
    same = owner[:, None] == owner[None]
    earlier = owner[None] < owner[:, None]
    was_stored = (position < stop[owner] - layout.look_ahead)[None]
    not_evicted = position[None] >= (stop[owner] - layout.window_frames)[:, None]
    visible = same | (earlier & was_stored & not_evicted)
    near = (condition_position[None] - position[:, None]).abs() <= layout.condition_reach
    cross_mask = near & (condition_owner[None] == owner[:, None])

    rope = rotary_table(position, denoiser.hidden // denoiser.heads, dtype=torch.float64)
    plans = [AttentionPlan(rope, rule & visible, cross_mask) for rule in rules]
    out = denoiser.velocity(
        denoiser.embed(latents, denoiser.embed_reference(reference)),
        denoiser.modulation(times),
        denoiser.condition_keys(vectors),
        plans,
    )
    return out[:, owner == len(windows) - 1]


def from_scratch(denoiser, raw: Condition, reference, noise, steps: int, guidance: Guidance, sizes: list[int]):
    nothing = torch.zeros_like
    talking = Condition(raw.avatar_audio, nothing(raw.user_audio), nothing(raw.user_motion))
    listening = Condition(nothing(raw.avatar_audio), raw.user_audio, raw.user_motion)
    silent = Condition(nothing(raw.avatar_audio), nothing(raw.user_audio), nothing(raw.user_motion))
    done = noise[:, :0]
    windows: list[Window] = []
    for size in sizes:
        begin = done.shape[1]
        windows.append(Window(begin, begin + size, denoiser.layout.look_ahead))
        x = noise[:, begin : begin + size]
        for step in range(steps):
            frames = torch.cat((done, x), 1)
            latents = torch.cat([frames[:, w.start : w.stop] for w in windows], 1)
            times = torch.ones(latents.shape[:2], dtype=torch.float64)
            times[:, latents.shape[1] - size :] = step / steps
            none, audio, user = (
                velocity(denoiser, latents, times, branch, reference, windows)[:, -size:]
                for branch in (silent, talking, listening)
            )
            x = x + (none + guidance.audio * (audio - none) + guidance.user * (user - none)) / steps
        done = torch.cat((done, x), 1)
    return done


@pytest.mark.parametrize("prime", ["block", "joint"])
@pytest.mark.parametrize("causal_condition", [True, False])
@pytest.mark.parametrize("mask", sorted(RULES))
def test_caches_change_nothing(small_denoiser, random_inputs, mask: str, causal_condition: bool, prime: str) -> None:
    denoiser = small_denoiser(mask=mask, causal_condition=causal_condition)
    sizes = block_sizes(30, denoiser.layout, prime)  # a window of 4 blocks: 6 evictions after it
    condition, reference, noise = random_inputs(30, sum(sizes))
    guidance = Guidance(audio=2.0, user=1.0)
    with torch.no_grad():
        expected = from_scratch(denoiser, condition, reference, noise, 2, guidance, sizes)
        got = rollout(denoiser, condition, reference, steps=2, guidance=guidance, noise=noise, prime=prime)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "sizes",
    [{"look_ahead": 0}, {"look_ahead": 3}, {"look_ahead": 2, "condition_reach": 5}, {"look_ahead": 0, "condition_reach": 2},
     {"look_ahead": 2, "condition_positions": True}, {"look_ahead": 2, "look_ahead_layers": "first"}, {"block_frames": 1, "look_ahead": 1, "window_frames": 6}, {"block_frames": 6, "look_ahead": 2, "window_frames": 12}],
)  # fmt: skip
@pytest.mark.parametrize("causal_condition", [True, False])
def test_other_sizes(small_denoiser, random_inputs, sizes: dict, causal_condition: bool) -> None:
    denoiser = small_denoiser(mask="block_lookahead", causal_condition=causal_condition, **sizes)
    blocks = block_sizes(18, denoiser.layout)
    condition, reference, noise = random_inputs(18, sum(blocks), batch=1)
    guidance = Guidance(audio=1.5, user=0.5)
    with torch.no_grad():
        expected = from_scratch(denoiser, condition, reference, noise, 1, guidance, blocks)
        got = rollout(denoiser, condition, reference, steps=1, guidance=guidance, noise=noise)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("mask", ["frame_causal", "block_causal"])
def test_training_pass_equals_cached_pass_while_nothing_is_evicted(small_denoiser, random_inputs, mask: str) -> None:
    """What is trained (`forward` on a window of clean and noisy blocks) is what is rolled out, up to the look-ahead."""
    denoiser = small_denoiser(mask=mask, look_ahead=0)
    condition, reference, noise = random_inputs(12, 12)
    with torch.no_grad():
        motion = rollout(denoiser, condition, reference, steps=1, guidance=Guidance.conditional(), noise=noise)
        for begin in (0, 3, 6, 9):
            stop = begin + 3
            x = torch.cat((motion[:, :begin], noise[:, begin:stop]), 1)
            times = torch.ones(x.shape[:2], dtype=torch.float64)
            times[:, begin:] = 0
            v = denoiser(x, times, condition.window(0, stop), reference)[:, begin:]
            torch.testing.assert_close(motion[:, begin:stop], noise[:, begin:stop] + v)
