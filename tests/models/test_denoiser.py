from __future__ import annotations

import pytest
import torch

from af.errors import UserError
from af.models.denoiser import MotionDenoiser
from af.models.motion_space import MotionSpace
from af.types import Condition

DIM, AUDIO, FRAMES = 5, 8, 12


def make(**settings) -> MotionDenoiser:
    values = {
        "hidden": 32, "depth": 2, "heads": 2, "mlp_ratio": 2, "block_frames": 4, "look_ahead": 1, "window_frames": 12,
        "condition_dim": AUDIO, "condition_heads": 2, "audio_feature_dim": 7, "mask": "block_lookahead",
    }  # fmt: skip
    denoiser = MotionDenoiser(MotionSpace("identity", DIM, DIM), **{**values, **settings}).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return denoiser


@pytest.fixture
def inputs(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, Condition, torch.Tensor]:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    condition = Condition(normal(2, FRAMES, AUDIO), normal(2, FRAMES, AUDIO), normal(2, FRAMES, DIM))
    times = torch.rand(2, FRAMES, generator=generator, dtype=torch.float64)
    return normal(2, FRAMES, DIM), times, condition, normal(2, DIM)


def dependence(denoiser: MotionDenoiser, inputs, name: str) -> torch.Tensor:
    """(T, T): does the velocity of frame q depend on frame k of the input called `name`? By gradients."""
    noisy, times, condition, reference = inputs
    leaf = {"noisy": noisy, "times": times, **vars(condition)}[name].requires_grad_()
    velocity = denoiser(noisy, times, condition, reference)
    rows = [torch.autograd.grad(velocity[:, q].sum(), leaf, retain_graph=True)[0] for q in range(FRAMES)]
    table = torch.stack([r.abs().sum(-1) if r.ndim == 3 else r.abs() for r in rows])
    return (table > 0).any(1)


@pytest.mark.parametrize("mask", ["frame_causal", "block_causal"])
@pytest.mark.parametrize("name", ["noisy", "times", "avatar_audio", "user_audio", "user_motion"])
def test_receptive_field_of_causal_masks(inputs, mask: str, name: str) -> None:
    """With look-ahead 0 no stack of layers sees past the mask; everything inside is used."""
    denoiser = make(mask=mask, look_ahead=0, depth=3)
    positions = torch.arange(FRAMES)
    block = 1 if mask == "frame_causal" else 4
    allowed = positions[None] // block <= positions[:, None] // block
    assert torch.equal(dependence(denoiser, inputs, name), allowed)


@pytest.mark.parametrize("mask", ["frame_causal", "block_lookahead"])
def test_blocks_after_a_given_past_are_those_of_a_roll_out(inputs, mask: str) -> None:
    """In one pass, each block's velocity is the one in a window of clean blocks before it, and nothing after it."""
    noisy, times, condition, reference = inputs
    denoiser, past = make(mask=mask, look_ahead=0, condition_positions=True, depth=3), noisy.flip(1) + 1
    together = denoiser(noisy, times, condition, reference, past)
    for start in range(0, FRAMES, 4):
        stop = start + 4
        window = torch.cat((past[:, :start], noisy[:, start:stop]), 1)
        levels = torch.cat((torch.ones_like(times[:, :start]), times[:, start:stop]), 1)
        alone = denoiser(window, levels, condition.window(0, stop), reference)
        torch.testing.assert_close(together[:, start:stop], alone[:, start:])


def test_a_given_past_has_no_next_block_to_look_into(inputs) -> None:
    noisy, times, condition, reference = inputs
    with pytest.raises(UserError, match="look_ahead=0"):
        make(look_ahead=1)(noisy, times, condition, reference, noisy)


def test_look_ahead_adds_up_over_layers_and_stops_there(inputs) -> None:
    """One block, look-ahead l, causal condition: the condition path sees 3·l ahead (two attentions and the window)."""
    denoiser = make(mask="frame_lookahead", look_ahead=1, depth=1)
    ahead = torch.arange(FRAMES)[None] - torch.arange(FRAMES)[:, None]
    assert torch.equal(dependence(denoiser, inputs, "noisy"), ahead <= 1)
    assert torch.equal(dependence(denoiser, inputs, "avatar_audio"), (ahead <= 1) & (ahead >= -1))
    assert torch.equal(dependence(denoiser, inputs, "user_audio"), ahead <= 3)


def test_look_ahead_in_the_first_layer_alone_does_not_add_up(inputs) -> None:
    """Three blocks see l ahead, and what they know of the condition 2·l: encoder and window."""
    ahead = torch.arange(FRAMES)[None] - torch.arange(FRAMES)[:, None]
    every = make(mask="frame_lookahead", look_ahead=1, depth=3)
    first = make(mask="frame_lookahead", look_ahead=1, depth=3, look_ahead_layers="first")
    assert torch.equal(dependence(every, inputs, "noisy"), ahead <= 3)
    assert torch.equal(dependence(first, inputs, "noisy"), ahead <= 1)
    assert torch.equal(dependence(first, inputs, "user_audio"), ahead <= 2)
    block = make(mask="block_lookahead", look_ahead=1, depth=3, look_ahead_layers="first")
    positions = torch.arange(FRAMES)
    assert torch.equal(dependence(block, inputs, "noisy"), positions[None] < (positions[:, None] // 4 + 1) * 4 + 1)


@pytest.mark.parametrize("causal", [True, False])
def test_condition_encoder_obeys_the_mask_only_when_causal(inputs, causal: bool) -> None:
    denoiser = make(mask="block_causal", look_ahead=0, causal_condition=causal)
    seen = dependence(denoiser, inputs, "user_motion")
    assert seen.all() != causal
    assert seen.all() or not seen[:4, 4:].any()


@pytest.mark.parametrize("positions", [False, True])
def test_condition_encoder_knows_when_only_with_positions(inputs, positions: bool) -> None:
    """The paper's encoder cannot tell the order of what it has seen; with rotary positions it can."""
    *_, condition, _ = inputs
    denoiser = make(causal_condition=False, condition_positions=positions)
    order = torch.arange(FRAMES).flip(0)
    turned = Condition(condition.avatar_audio, condition.user_audio[:, order], condition.user_motion[:, order])
    same = torch.allclose(denoiser.encode_condition(turned), denoiser.encode_condition(condition))
    assert same != positions


def test_every_parameter_is_trained(inputs) -> None:
    noisy, times, condition, reference = inputs
    denoiser = make()
    raw = torch.randn(2, FRAMES, 7, dtype=torch.float64)
    condition = denoiser.condition(raw, raw.flip(1), condition.user_motion)
    denoiser(noisy, times, condition, reference).square().sum().backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_starts_at_zero_velocity(inputs) -> None:
    noisy, times, condition, reference = inputs
    fresh = MotionDenoiser(
        MotionSpace("identity", DIM, DIM), hidden=32, depth=2, heads=2, condition_dim=AUDIO, condition_heads=2,
        audio_feature_dim=7,
    ).double()  # fmt: skip
    assert (fresh(noisy, times, condition, reference) == 0).all()


def test_dropped_signals_are_zeros() -> None:
    denoiser = make()
    audio, motion = torch.randn(2, 6, 7, dtype=torch.float64), torch.randn(2, 6, DIM, dtype=torch.float64)
    full = denoiser.condition(audio, audio, motion)
    assert torch.equal(full.avatar_audio, denoiser.audio_projection(audio))
    part = denoiser.condition(audio, None, None)
    assert torch.equal(part.avatar_audio, full.avatar_audio)
    assert part.user_audio.shape == full.user_audio.shape
    assert (part.user_audio == 0).all()
    assert part.user_motion.shape == full.user_motion.shape
    assert (part.user_motion == 0).all()
    with pytest.raises(ValueError, match="at least one signal"):
        denoiser.condition(None, None, None)


def test_coefficient_space_changes_the_width_only() -> None:
    denoiser = MotionDenoiser(
        MotionSpace("coefficients", 16, 3), hidden=32, depth=1, heads=2, condition_dim=AUDIO, condition_heads=2,
        audio_feature_dim=7,
    )  # fmt: skip
    condition = Condition(torch.zeros(1, 4, AUDIO), torch.zeros(1, 4, AUDIO), torch.zeros(1, 4, 3))
    assert denoiser(torch.zeros(1, 4, 3), torch.zeros(1, 4), condition, torch.zeros(1, 3)).shape == (1, 4, 3)


def test_bf16_autocast_is_close(inputs) -> None:
    noisy, times, condition, reference = (
        x.float() if isinstance(x, torch.Tensor) else Condition(*(v.float() for v in vars(x).values())) for x in inputs
    )
    denoiser = make().float()
    with torch.no_grad():
        exact = denoiser(noisy, times, condition, reference)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = denoiser(noisy, times, condition, reference)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_autocast_is_for_the_blocks_alone(inputs) -> None:
    """Flow time, coordinates going in and velocities coming out keep fp32, and the sum over the blocks does too."""
    noisy, times, condition, reference = (
        x.float() if isinstance(x, torch.Tensor) else Condition(*(v.float() for v in vars(x).values())) for x in inputs
    )
    denoiser = make(window_frames=12).float()
    seen: list[torch.dtype] = []
    for block in denoiser.blocks:
        block.register_forward_hook(lambda module, given, made: seen.extend((given[0].dtype, made[0].dtype)))

    def ends() -> list[torch.Tensor]:
        start = denoiser.embed_reference(reference)
        return [denoiser.time_embedding(times), start, denoiser.embed(noisy, start)]

    with torch.no_grad():
        exact = ends()
        with torch.autocast("cpu", torch.bfloat16):
            assert all(torch.equal(a, b) for a, b in zip(ends(), exact, strict=True))
            velocity = denoiser(noisy, times, condition, reference)
        assert set(seen) == {velocity.dtype} == {torch.float32}
        assert not torch.equal(velocity, denoiser(noisy, times, condition, reference))  # the blocks are in bf16


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"mask": "causal"}, "'causal'"), ({"heads": 3}, "3 does not divide"), ({"hidden": 34, "heads": 2}, "odd size"),
     ({"window_frames": 13}, "window_frames: 13"), ({"look_ahead_layers": "last"}, "'last'; allowed: all, first"), ({"look_ahead": 5}, "look_ahead: 5")],
)  # fmt: skip
def test_wrong_values_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**settings)
