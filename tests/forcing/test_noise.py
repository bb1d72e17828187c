from __future__ import annotations

import pytest
import torch

from af.errors import UserError
from af.forcing.noise import FlowTimes, LogitNormal, Uniform


@pytest.mark.parametrize("distribution", [Uniform(), LogitNormal(0.5, 0.8)])
def test_frames_of_a_block_share_their_time(distribution, generator: torch.Generator) -> None:
    times = FlowTimes(10, distribution)(64, 45, generator=generator)
    assert times.shape == (64, 45)
    assert ((times >= 0) & (times <= 1)).all()
    for start in range(0, 45, 10):
        block = times[:, start : start + 10]
        assert (block == block[:, :1]).all()
    blocks = times[:, ::10]
    assert len(blocks.unique()) == blocks.numel()  # independent between blocks and sequences


def test_uniform_moments(generator: torch.Generator) -> None:
    times = FlowTimes(5)(4000, 5, generator=generator)[:, 0]
    assert times.mean() == pytest.approx(0.5, abs=0.02)
    assert times.var() == pytest.approx(1 / 12, abs=0.005)


def test_logit_normal_moments(generator: torch.Generator) -> None:
    logit = torch.logit(FlowTimes(5, LogitNormal(1.0, 0.5))(4000, 5, generator=generator)[:, 0])
    assert logit.mean() == pytest.approx(1.0, abs=0.04)
    assert logit.std() == pytest.approx(0.5, abs=0.03)


def test_same_generator_same_times() -> None:
    draws = [FlowTimes(3)(2, 9, generator=torch.Generator().manual_seed(s)) for s in (4, 4, 5)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_clean_share(generator: torch.Generator) -> None:
    times = FlowTimes(2, clean_probability=0.3)(2000, 4, generator=generator)
    assert (times[:, ::2] == 1).float().mean() == pytest.approx(0.3, abs=0.03)
    assert (times[:, 0] == times[:, 1]).all()


def test_autoregressive_levels_are_clean_history_and_one_noisy_block(generator: torch.Generator) -> None:
    levels = FlowTimes(10, levels="last", start_share=0.5)
    assert levels.histories(50) == [0, 10, 20, 30, 40]
    assert FlowTimes(75, levels="last").histories(85) == [0, 10]
    seen = [levels.frames(50, generator) for _ in range(400)]
    assert set(seen) == {10, 20, 30, 40, 50}
    assert seen.count(50) == pytest.approx(200, abs=50)
    times = levels(64, 30, generator=generator)
    assert (times[:, :20] == 1).all()
    assert (times[:, 20:] == times[:, 20:21]).all()
    assert len(times[:, 20].unique()) == 64
    assert FlowTimes(10).frames(50, generator) == 50


def test_wrong_values_are_named() -> None:
    with pytest.raises(UserError, match=r"flow_times\.block_frames must be .*, got 0"):
        FlowTimes(0)
    with pytest.raises(UserError, match=r"flow_times\.levels: .*'first'; allowed: independent, each, last"):
        FlowTimes(5, levels="first")
    with pytest.raises(UserError, match="has only 40 frames"):
        FlowTimes(50, levels="last").frames(40)
    with pytest.raises(UserError, match=r"clean_probability must be .*, got 2"):
        FlowTimes(5, clean_probability=2)
