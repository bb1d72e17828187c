"""A captured block: the motion of the sampler it was taken from, and nothing that a CUDA graph could not hold."""

from __future__ import annotations

import pytest
import torch

from af.forcing.graph import CapturedSampler
from af.models.artifact import build
from benchmarks.rollout import Inputs, randomise, ready
from tests import fake_device
from tests.conftest import DENOISER


def samplers(device: torch.device | str = "cpu"):
    denoiser = build(DENOISER).eval().requires_grad_(False)
    denoiser.motion_space.fitted = True
    randomise(denoiser, torch.Generator().manual_seed(0))
    denoiser.to(device)
    return [
        (ready(denoiser, inputs, 2), inputs)
        for inputs in (Inputs(denoiser, torch.Generator().manual_seed(1)) for _ in range(2))
    ]


def test_captured_blocks_are_those_of_the_sampler_at_fixed_addresses():
    with torch.no_grad():
        (plain, inputs), (taken, _) = samplers()
        captured = CapturedSampler(taken)
        places = captured.addresses()
        seen = []
        for _ in range(6):
            given = inputs.block(5)
            expected = plain.step(*given)
            plain.commit()
            motion = captured.step(*given)
            torch.testing.assert_close(motion, expected, rtol=0, atol=0)
            seen.append(motion)
            assert captured.addresses() == places
        assert not torch.equal(seen[0], seen[-1])
        assert taken.frames == plain.frames


def test_a_captured_block_asks_the_host_for_nothing():
    with fake_device.present() as device, torch.no_grad():
        (_, inputs), (taken, _) = samplers(device)
        captured, given = CapturedSampler(taken), inputs.block(5)
        captured.step(*given)
        before = len(fake_device.State.syncs), len(fake_device.State.copies)
        captured.step(*given)
        assert fake_device.State.syncs[before[0] :] == []
        assert fake_device.State.copies[before[1] :] == []


def test_growing_caches_are_refused():
    (sampler, _), _ = samplers()
    sampler.frames = 10
    with pytest.raises(ValueError, match="constant from 20"):
        CapturedSampler(sampler)
