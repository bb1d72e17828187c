from __future__ import annotations

import itertools
from dataclasses import fields

import pytest
import torch

from af.errors import UserError
from af.forcing.anchor import Anchor
from af.forcing.guidance import Guidance
from af.forcing.path import pyramid, step_matrix
from af.forcing.rollout import block_sizes, draw_noise, rollout, rollout_blocks
from af.forcing.sampler import BlockSampler
from af.types import Condition

SIGNALS = [f.name for f in fields(Condition)]


def with_changed(condition: Condition, signal: str, start: int) -> Condition:
    """The condition with `signal` replaced from frame `start` on."""
    values = {name: getattr(condition, name).clone() for name in SIGNALS}
    values[signal][:, start:] = 3 * values[signal][:, start:].flip(1) + 1
    return Condition(**values)


@pytest.mark.parametrize("prime", ["block", "joint"])
@pytest.mark.parametrize("causal_condition", [True, False])
@pytest.mark.parametrize("mask", ["block_lookahead", "frame_lookahead", "bidirectional"])
def test_later_input_changes_no_bit_of_earlier_blocks(
    small_denoiser, random_inputs, mask: str, causal_condition: bool, prime: str
) -> None:
    denoiser = small_denoiser(mask=mask, causal_condition=causal_condition, look_ahead=2)
    sizes = block_sizes(24, denoiser.layout, prime)
    condition, reference, noise = random_inputs(24, sum(sizes))
    stops = torch.tensor(sizes).cumsum(0).tolist()

    def run(c: Condition) -> torch.Tensor:
        with torch.no_grad():
            return rollout(denoiser, c, reference, steps=2, noise=noise, prime=prime)

    plain = run(condition)
    for signal in SIGNALS:
        for n in (17, 21):
            changed = run(with_changed(condition, signal, n))
            safe = max(stop for stop in [0, *stops] if stop <= n)
            assert torch.equal(changed[:, :safe], plain[:, :safe]), (signal, n)
            assert not torch.equal(changed[:, n:], plain[:, n:]), (signal, n)


@pytest.mark.parametrize("prime", ["block", "joint"])
@pytest.mark.parametrize("causal_condition", [True, False])
def test_gradients_agree(small_denoiser, random_inputs, causal_condition: bool, prime: str) -> None:
    denoiser = small_denoiser(mask="block_lookahead", causal_condition=causal_condition)
    sizes = block_sizes(18, denoiser.layout, prime)
    condition, reference, noise = random_inputs(18, sum(sizes), batch=1)
    leaves = {name: getattr(condition, name).requires_grad_() for name in SIGNALS}
    motion = rollout(denoiser, Condition(**leaves), reference, steps=2, noise=noise, prime=prime)
    stop = 0
    for size in sizes:
        start, stop = stop, stop + size
        gradients = torch.autograd.grad(motion[:, start:stop].sum(), list(leaves.values()), retain_graph=True)
        for name, gradient in zip(SIGNALS, gradients, strict=True):
            assert (gradient[:, stop:] == 0).all(), name
            assert (gradient[:, start:stop] != 0).any(-1).all(), name  # the test can fail: a block sees its own input


def test_no_gradient_unless_asked(small_denoiser, random_inputs) -> None:
    condition, reference, noise = random_inputs(6, 6)
    assert not rollout(small_denoiser(), condition, reference, steps=1, noise=noise).requires_grad
    assert torch.is_grad_enabled()
    assert rollout(small_denoiser(), condition, reference.requires_grad_(), steps=1, noise=noise).requires_grad


@pytest.mark.parametrize("prime", ["block", "joint"])
@pytest.mark.parametrize("pieces", [[20], [1] * 20, [3] * 6 + [2], [7, 0, 11, 2], [13, 7]])
def test_pieces_of_any_size_give_the_same_motion(small_denoiser, random_inputs, pieces: list[int], prime: str) -> None:
    denoiser = small_denoiser()
    condition, reference, _ = random_inputs(20, 0)
    whole = rollout(denoiser, condition, reference, steps=2, generator=torch.Generator().manual_seed(5), prime=prime)
    assert whole.shape == (2, 20, denoiser.dim)
    stops = torch.tensor([0, *pieces]).cumsum(0).tolist()
    stream = (condition.window(a, b) for a, b in itertools.pairwise(stops))
    blocks = rollout_blocks(
        denoiser, stream, reference, steps=2, generator=torch.Generator().manual_seed(5), prime=prime
    )
    assert torch.equal(torch.cat(list(blocks), 1), whole)


def test_a_block_comes_as_soon_as_its_condition_is_there(small_denoiser, random_inputs) -> None:
    denoiser = small_denoiser()
    condition, reference, _ = random_inputs(9, 0)
    given = []

    def stream():
        for i in range(9):
            given.append(i)
            yield condition.window(i, i + 1)

    seen = [len(given) for _ in rollout_blocks(denoiser, stream(), reference, steps=1)]
    assert seen == [3, 6, 9]


def test_explicit_noise_is_what_the_generator_draws(small_denoiser, random_inputs) -> None:
    denoiser = small_denoiser()
    condition, reference, _ = random_inputs(11, 0)
    generator = torch.Generator().manual_seed(3)
    noise = torch.cat([draw_noise(generator, reference, size) for size in block_sizes(11, denoiser.layout)], 1)
    assert noise.shape == (2, 12, denoiser.dim)
    drawn = rollout(denoiser, condition, reference, steps=2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn, rollout(denoiser, condition, reference, steps=2, noise=noise))


def test_a_batch_is_each_sequence_alone(small_denoiser, random_inputs) -> None:
    denoiser = small_denoiser()
    condition, reference, noise = random_inputs(18, 18, batch=3)
    together = rollout(denoiser, condition, reference, steps=2, noise=noise)
    for i in range(3):
        one = Condition(*(getattr(condition, name)[i : i + 1] for name in SIGNALS))
        alone = rollout(denoiser, one, reference[i : i + 1], steps=2, noise=noise[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


def test_a_last_partial_block_sees_its_last_frame_repeated(small_denoiser, random_inputs) -> None:
    denoiser = small_denoiser()
    condition, reference, noise = random_inputs(8, 9)
    filled = Condition(*(torch.cat((s, s[:, -1:]), 1) for s in (getattr(condition, name) for name in SIGNALS)))
    short = rollout(denoiser, condition, reference, steps=2, noise=noise)
    assert torch.equal(short, rollout(denoiser, filled, reference, steps=2, noise=noise)[:, :8])


def test_memory_and_speed_do_not_depend_on_the_position(small_denoiser, random_inputs) -> None:
    """5,400 frames: positions never run out, and caches stop growing after one window."""
    denoiser = small_denoiser(depth=2, block_frames=9, window_frames=27, look_ahead=2).float()
    condition, reference, noise = (x.to(torch.float32) if isinstance(x, torch.Tensor) else x
                                   for x in random_inputs(9, 9, batch=1))  # fmt: skip
    condition = Condition(*(getattr(condition, name).float() for name in SIGNALS))
    with torch.no_grad():
        sampler = BlockSampler(denoiser, reference, steps=1, guidance=Guidance.conditional())
        sizes = set()
        for i in range(600):
            block = sampler.step(condition, noise)
            if i > 5:
                sampler.commit()
                sizes.add((sampler.state.cache.held.nbytes, sampler.state.history.frames, len(sampler._geometries)))
        assert sampler.frames == 5_400
    assert torch.isfinite(block).all()
    assert len(sizes) == 1


def test_evaluations_are_not_wasted(small_denoiser, random_inputs, monkeypatch) -> None:
    """Per block: one pass a step and one store pass; modulation once a roll-out; no store after the last block."""
    denoiser = small_denoiser()
    condition, reference, noise = random_inputs(12, 12)
    calls: dict[str, int] = {}
    for name in ("velocity", "keys_values", "modulation", "condition_keys", "encode_condition", "embed_reference"):
        original = getattr(denoiser, name)

        def counted(*args, _name=name, _original=original, **kwargs):
            calls[_name] = calls.get(_name, 0) + 1
            return _original(*args, **kwargs)

        monkeypatch.setattr(denoiser, name, counted)
    rollout(denoiser, condition, reference, steps=5, noise=noise)
    assert calls == {
        "velocity": 20, "keys_values": 3, "modulation": 1, "condition_keys": 4, "encode_condition": 4, "embed_reference": 1,
    }  # fmt: skip


def test_a_matrix_of_equal_columns_is_the_uniform_schedule(small_denoiser, random_inputs) -> None:
    denoiser = small_denoiser()
    condition, reference, noise = random_inputs(12, 12)
    plain = rollout(denoiser, condition, reference, steps=4, noise=noise)
    rows = step_matrix(torch.arange(5)[:, None].expand(5, 3) / 4)
    assert torch.equal(rollout(denoiser, condition, reference, schedule=rows, noise=noise), plain)


@pytest.mark.parametrize("prime", ["block", "joint"])
def test_a_pyramid_evaluates_every_frame_at_its_own_flow_time(small_denoiser, random_inputs, prime: str) -> None:
    """The first window against the same steps by `forward`, which takes any flow time per frame."""
    denoiser = small_denoiser()
    (size, *_) = block_sizes(12, denoiser.layout, prime)
    condition, reference, noise = random_inputs(size, size)
    got = rollout(
        denoiser, condition, reference, steps=3, schedule="pyramid", noise=noise, prime=prime,
        guidance=Guidance.conditional(),
    )  # fmt: skip
    matrix, x = pyramid(3, 3).of(size), noise
    with torch.no_grad():
        for times, sizes in zip(matrix.flow_times, matrix.step_sizes, strict=True):
            v = denoiser(x, times.expand(2, size), condition, reference)
            x = x + sizes[:, None] * v
    torch.testing.assert_close(got, x)
    plain = rollout(denoiser, condition, reference, steps=3, noise=noise, prime=prime, guidance=Guidance.conditional())
    assert not torch.allclose(got, plain, atol=1e-3)


def test_heun_converges_faster_than_euler(small_denoiser, random_inputs) -> None:
    denoiser = small_denoiser()
    with torch.no_grad():
        denoiser.time_embedding.fc1.weight.zero_()  # with random weights time is a wave of 1,000 radians
    condition, reference, noise = random_inputs(9, 9)

    def run(steps: int, solver: str) -> torch.Tensor:
        return rollout(denoiser, condition, reference, steps=steps, solver=solver, noise=noise)

    exact = run(128, "heun")
    errors = {solver: (run(16, solver) - exact).norm().item() for solver in ("euler", "heun")}
    assert errors["heun"] < 0.2 * errors["euler"]


def test_taking_over_motion_goes_on_as_if_it_had_been_generated(small_denoiser, random_inputs) -> None:
    """No drift of caches: a fresh roll-out that is given what lies within reach goes on like one that ran for long."""
    denoiser = small_denoiser(depth=2)
    frames = 60 * denoiser.layout.block_frames
    condition, reference, noise = random_inputs(frames, frames)
    motion = rollout(denoiser, condition, reference, steps=2, noise=noise)
    # a frame sees a window back in every layer, and so does what it sees there; the condition encoder has two
    reach = (denoiser.depth + 3) * denoiser.layout.window_frames
    start, size = frames - 6 - reach, denoiser.layout.block_frames
    with torch.no_grad():
        fresh = BlockSampler(denoiser, reference, steps=2)
        for n in range(start, frames - 6, size):
            fresh.give(condition.window(n, n + size), motion[:, n : n + size])
        for n in (frames - 6, frames - 3):
            got = fresh.step(condition.window(n, n + size), noise[:, n : n + size])
            torch.testing.assert_close(got, motion[:, n : n + size], atol=1e-10, rtol=1e-10)


def test_the_anchor_pins_the_portrait_and_changes_what_follows(small_denoiser, random_inputs) -> None:
    denoiser = small_denoiser()
    condition, reference, noise = random_inputs(30, 30)
    plain = rollout(denoiser, condition, reference, steps=2, noise=noise)
    assert torch.equal(rollout(denoiser, condition, reference, steps=2, noise=noise, anchor=Anchor()), plain)
    with torch.no_grad():
        sampler = BlockSampler(denoiser, reference, steps=2, anchor=Anchor(sink_frames=2))
        held = []
        for n in range(0, 30, 3):
            block = sampler.step(condition.window(n, n + 3), noise[:, n : n + 3])
            sampler.commit()
            held.append(sampler.state.cache.held[..., :2, :])
            assert sampler.state.cache.frames <= denoiser.layout.cached_frames
    assert all(torch.equal(h, held[0]) for h in held)
    assert not torch.allclose(block, plain[:, 27:], atol=1e-4)


def test_the_anchor_pulls_the_running_mean_to_the_portrait(small_denoiser, random_inputs) -> None:
    denoiser = small_denoiser()
    condition, reference, noise = random_inputs(90, 90)

    def distance(pull: float) -> float:
        motion = rollout(
            denoiser, condition, reference, steps=4, noise=noise, anchor=Anchor(pull=pull, horizon_frames=12)
        )
        return (motion[:, 30:].mean(1) - reference).norm().item()

    distances = [distance(pull) for pull in (0.0, 0.5, 1.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.8 * distances[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pull": -1.0}, r"anchor\.pull must be .*, got -1"),
        ({"sink_frames": -1}, r"anchor\.sink_frames"),
        ({"horizon_frames": 0}, "horizon"),
    ],
)
def test_wrong_anchors_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Anchor(**settings)


def test_wrong_use_is_said(small_denoiser, random_inputs) -> None:
    denoiser = small_denoiser()
    condition, reference, noise = random_inputs(10, 10)
    with pytest.raises(ValueError, match=r"\(2, 10, 6\); 10 frames need \(2, 12, 6\)"):
        rollout(denoiser, condition, reference, noise=noise)
    with pytest.raises(UserError, match=r"'all'.*block, joint"):
        rollout(denoiser, condition, reference, prime="all")
    with pytest.raises(UserError, match=r"'linear'.*uniform, fine_end, released, pyramid"):
        rollout(denoiser, condition, reference, schedule="linear")
    with pytest.raises(UserError, match=r"'rk4'.*euler, heun"):
        rollout(denoiser, condition, reference, solver="rk4")
    for name, value in (("anchor", True), ("guidance", 2.0), ("schedule", [[0.0], [1.0]])):
        with pytest.raises(UserError, match=f"{name}: expected"):
            BlockSampler(denoiser, reference, **{name: value})
    uneven = small_denoiser(mask="bidirectional", block_frames=9, window_frames=11, look_ahead=2)
    with pytest.raises(UserError, match="11 frames is not a multiple of 9"):
        rollout(uneven, condition, reference, prime="joint")
    with pytest.raises(UserError, match="steps"):
        rollout(denoiser, condition, reference, steps=0)
    with pytest.raises(ValueError, match="at least one frame"):
        rollout(denoiser, condition.window(0, 0), reference)
    sampler = BlockSampler(denoiser, reference)
    with pytest.raises(ValueError, match="4 frames in a step"):
        sampler.step(condition.window(0, 4), noise[:, :4])
    with pytest.raises(ValueError, match="noise of 2"):
        sampler.step(condition.window(0, 3), noise[:, :2])
