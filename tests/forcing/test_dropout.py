from __future__ import annotations

import pytest
import torch

from af.errors import UserError
from af.forcing.dropout import (
    SIGNALS,
    ConditionDropout,
    Ramp,
    drop,
    keep_signals,
    named_subset,
    signal_subsets,
    subset_name,
)
from af.types import Condition


def condition(batch: int) -> Condition:
    return Condition(torch.ones(batch, 4, 3), torch.ones(batch, 4, 3) * 2, torch.ones(batch, 4, 5) * 3)


def test_rates_are_the_probabilities(generator):
    dropped = ConditionDropout(0.1, 0.2, 0.3, 0.4)(20_000, 4, generator=generator)
    rates = [getattr(dropped, name).float().mean().item() for name in vars(dropped)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.012)


def test_joint_drops_take_the_users_signals_together(generator):
    dropped = ConditionDropout(0, 0, 0, 0, user=0.5)(1000, 4, generator=generator)
    assert torch.equal(dropped.user_audio, dropped.user_motion)
    assert 400 < dropped.user_audio[:, 0].sum() < 600
    assert not dropped.avatar_audio.any()


def test_everything_leaves_only_the_reference(generator):
    dropped = ConditionDropout(0, 0, 0, 0, everything=1.0)(8, 4, generator=generator)
    assert (dropped.avatar_audio & dropped.user_audio & dropped.user_motion).all()
    assert not dropped.reference.any()


def test_dropped_signals_are_zero_and_the_rest_is_untouched(generator):
    probabilities = ConditionDropout(0.5, 0.5, 0.5, 0.5)
    dropped = probabilities(64, 4, generator=generator)
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
    dropped = ConditionDropout(1, 1, 1, 1)(2, 4, generator=generator)
    present, _ = drop(Condition(audio, audio, torch.ones(2, 4, 5)), torch.ones(2, 5), dropped)
    present.avatar_audio.sum().backward()
    assert audio.grad is not None
    assert (audio.grad == 0).all()


def test_a_probability_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="user_motion"):
        ConditionDropout(user_motion=1.5)


def test_a_sequence_is_dropped_whole_and_a_block_for_itself(generator):
    whole = ConditionDropout(0.5, 0.5, 0.5, 0.5)(200, 20, generator=generator)
    assert (whole.user_audio == whole.user_audio[:, :1]).all()
    blocks = ConditionDropout(0.5, 0.5, 0.5, 0.5, per="block", block_frames=5)(200, 18, generator=generator)
    by_block = blocks.user_audio[:, :15].unflatten(1, (3, 5))
    assert (by_block == by_block[..., :1]).all()
    assert not (blocks.user_audio == blocks.user_audio[:, :1]).all()
    assert blocks.reference.shape == (200,)
    both = ConditionDropout(0, 0, 0, 0, user=0.5, per="block", block_frames=5)(50, 18, generator=generator)
    assert both.user_audio.equal(both.user_motion)


def test_a_ramp_scales_every_probability_up_to_one():
    dropout = ConditionDropout(0.2, 0.0, 0.6, 0.1, user=0.5, schedule=Ramp(start=0.0, end=2.0, over=0.5))
    assert dropout.at(0.0) == ConditionDropout.never()
    assert dropout.at(0.25) == ConditionDropout(0.2, 0.0, 0.6, 0.1, user=0.5)
    assert dropout.at(0.5) == dropout.at(1.0) == ConditionDropout(0.4, 0.0, 1.0, 0.2, user=1.0)
    assert ConditionDropout().at(0.3) == ConditionDropout()


def test_every_subset_of_the_signals_once_and_by_name():
    subsets = signal_subsets()
    assert len(set(subsets)) == 8
    assert subsets[0] == SIGNALS
    assert all(named_subset(subset_name(s)) == s for s in subsets)
    with pytest.raises(UserError, match="smell"):
        named_subset("user_audio+smell")


def test_kept_signals_stay_and_the_others_are_zero():
    kept = keep_signals(condition(2), ("user_audio",))
    assert kept.user_audio.equal(condition(2).user_audio)
    assert not kept.avatar_audio.any()
    assert not kept.user_motion.any()


@pytest.mark.parametrize("wrong", [{"per": "day"}, {"block_frames": 0}])
def test_a_wrong_unit_is_refused(wrong):
    with pytest.raises((UserError, ValueError), match=next(iter(wrong))):
        ConditionDropout(**wrong)
