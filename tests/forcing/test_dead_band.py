"""The dead band: wavering within it is gone, every movement is kept, and a roll-out does not see it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from af.errors import UserError
from af.forcing.dead_band import held
from af.forcing.rollout import rollout
from af.forcing.sampler import BlockSampler

WIDTH = 0.3


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=40), st.floats(0, 1))
def test_frames_are_never_further_away_than_the_band_and_move_no_more_than_they_must(values: list[float], width: float):
    frames = [np.array([value]) for value in values]
    followed = [frame.item() for frame in held(frames, None, width)]
    assert followed[0] == values[0]
    assert np.abs(np.subtract(followed, values)).max() <= width + 1e-9
    for before, after, goal in zip(followed, followed[1:], values[1:], strict=False):
        if abs(goal - before) <= width:
            assert after == pytest.approx(before, abs=1e-12)  # it rests
        else:
            assert (after - before) * (goal - before) >= 0
            assert abs(after - goal) == pytest.approx(width, abs=1e-12)


def test_arrays_and_tensors_are_held_alike_and_in_pieces():
    frames = np.random.default_rng(0).normal(size=(20, 2, 3)).cumsum(0)
    whole = np.stack(list(held(frames, None, WIDTH)))
    tensors = torch.stack(list(held(torch.from_numpy(frames), None, WIDTH)))
    np.testing.assert_array_equal(tensors.numpy(), whole)
    first = list(held(frames[:7], None, WIDTH))
    np.testing.assert_array_equal(np.stack([*first, *held(frames[7:], first[-1], WIDTH)]), whole)


def test_a_roll_out_is_calmed_and_does_not_see_it(small_denoiser, random_inputs):
    """What is shown is what would be made without a band, held; after given motion it goes on from that."""
    denoiser = small_denoiser()
    condition, reference, noise = random_inputs(30, 30)
    free, calm = (rollout(denoiser, condition, reference, steps=2, noise=noise, dead_band=w) for w in (0.0, WIDTH))
    torch.testing.assert_close(calm, torch.stack(list(held(free.unbind(1), None, WIDTH)), 1))
    assert (calm.diff(dim=1) == 0).float().mean() > 0.1 > (free.diff(dim=1) == 0).float().mean()
    given, parts = free[:, :3] + 1, (condition.window(0, 3), condition.window(3, 6))
    with torch.no_grad():
        blocks = []
        for width in (0.0, WIDTH):
            sampler = BlockSampler(denoiser, reference, steps=2, dead_band=width)
            sampler.give(parts[0], given)
            blocks.append(sampler.step(parts[1], noise[:, 3:6]))
    torch.testing.assert_close(blocks[1], torch.stack(list(held(blocks[0].unbind(1), given[:, -1], WIDTH)), 1))


@pytest.mark.parametrize("width", [-0.1, 1.5, "wide"])
def test_wrong_bands_are_named(small_denoiser, random_inputs, width):
    condition, reference, _ = random_inputs(6, 6)
    with pytest.raises(UserError, match="dead_band"):
        rollout(small_denoiser(), condition, reference, dead_band=width)
