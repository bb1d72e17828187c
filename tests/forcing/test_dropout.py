from __future__ import annotations

import pytest
import torch

from af.forcing.dropout import ConditionDropout, drop
from af.types import Condition


def condition(batch: int) -> Condition:
    return Condition(torch.ones(batch, 4, 3), torch.ones(batch, 4, 3) * 2, torch.ones(batch, 4, 5) * 3)


def test_rates_are_the_probabilities(generator):
    dropped = ConditionDropout(0.1, 0.2, 0.3, 0.4).draw(20_000, generator)
    rates = [getattr(dropped, name).float().mean().item() for name in vars(dropped)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.012)


def test_joint_drops_take_the_users_signals_together(generator):
    dropped = ConditionDropout(0, 0, 0, 0, user=0.5).draw(1000, generator)
    assert torch.equal(dropped.user_audio, dropped.user_motion)
    assert 400 < dropped.user_audio.sum() < 600
    assert not dropped.avatar_audio.any()


def test_everything_leaves_only_the_reference(generator):
    dropped = ConditionDropout(0, 0, 0, 0, everything=1.0).draw(8, generator)
    assert (dropped.avatar_audio & dropped.user_audio & dropped.user_motion).all()
    assert not dropped.reference.any()


def test_dropped_signals_are_zero_and_the_rest_is_untouched(generator):
    probabilities = ConditionDropout(0.5, 0.5, 0.5, 0.5)
    dropped = probabilities.draw(64, generator)
    before, reference = condition(64), torch.ones(64, 5)
    after, kept = drop(before, reference, dropped)
    for name in ("avatar_audio", "user_audio", "user_motion"):
        gone = getattr(dropped, name)
        assert (getattr(after, name)[gone] == 0).all()
        assert torch.equal(getattr(after, name)[~gone], getattr(before, name)[~gone])
    assert torch.equal(kept.sum(1) == 0, dropped.reference)


def test_every_signal_keeps_a_gradient_path_whatever_is_dropped(generator):
    """DDP needs every parameter in every step: an encoder's output that is dropped still has a (zero) gradient."""
    audio = torch.ones(2, 4, 3, requires_grad=True)
    dropped = ConditionDropout(1, 1, 1, 1).draw(2, generator)
    present, _ = drop(Condition(audio, audio, torch.ones(2, 4, 5)), torch.ones(2, 5), dropped)
    present.avatar_audio.sum().backward()
    assert audio.grad is not None
    assert (audio.grad == 0).all()


def test_a_probability_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="user_motion"):
        ConditionDropout(user_motion=1.5)
