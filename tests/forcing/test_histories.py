"""Windows that begin with generated motion: whole blocks of it, then a smooth way back to the truth."""

from __future__ import annotations

import pytest
import torch

from af.errors import UserError
from af.forcing.histories import GuessedHistories, OwnHistories

TRUE, GENERATED = torch.zeros(3, 50, 2), torch.full((3, 50, 2), 2.0)


def test_borders_are_between_blocks_and_as_often_as_asked_for():
    borders = OwnHistories(10, share=0.25).borders(4000, 50, torch.Generator().manual_seed(0))
    assert set(borders.tolist()) == {0, 10, 20, 30, 40}  # one block at least is left to learn
    assert (borders > 0).view(-1, 4).sum(1).eq(1).all()  # of every four in a row, so ranks share the work
    assert borders.equal(OwnHistories(10, share=0.25).borders(4000, 50, torch.Generator().manual_seed(0)))


def test_a_partial_last_block_is_learnt_and_a_single_block_refused():
    assert OwnHistories(10, share=1).borders(100, 25).max() == 20
    with pytest.raises(UserError, match=r"module\.histories"):
        OwnHistories(10).borders(4, 10)


def test_generated_up_to_the_border_then_back_to_the_truth_without_a_jump():
    motion, generated = OwnHistories(10, return_frames=15)(TRUE, GENERATED, torch.tensor([0, 10, 40]))
    assert generated.sum(1).tolist() == [0, 10, 40]
    assert motion[0].eq(0).all()  # no history: the truth
    assert motion[1, :10].eq(2).all()
    assert motion[2, :40].eq(2).all()
    path = motion[1, 9:, 0]
    assert (path.diff() <= 0).all()
    assert path.diff().abs().max() < 2 * 1.6 / 15  # a cosine's steepest step: pi / 2 of the mean
    assert motion[1, 24:].abs().max() < 1e-6  # 15 frames after the border


def test_a_gap_of_zero_changes_nothing():
    true = torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(0))
    assert OwnHistories(10)(true, true, torch.tensor([10, 20, 0])).motion.allclose(true)


@pytest.mark.parametrize("wrong", [{"block_frames": 0}, {"share": 1.5}, {"return_frames": 0}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=f"histories.{next(iter(wrong))}"):
        OwnHistories(**{"block_frames": 10, **wrong})


def test_without_a_way_back_the_truth_follows_at_once():
    motion, own = GuessedHistories(10, return_frames=0)(TRUE, GENERATED, torch.tensor([0, 10, 40]))
    assert own.sum(1).tolist() == [0, 10, 40]
    assert motion.eq(2).equal(own[..., None].expand_as(motion))
    assert motion.eq(0).equal(~own[..., None].expand_as(motion))


def test_every_block_returns_from_the_own_motion_before_it():
    chosen = torch.tensor([True, False, True])
    own = GENERATED.clone()
    own[2, 19] = 5  # the frame before the third block
    motion, past = GuessedHistories(10, return_frames=8).each(TRUE, own, chosen)
    assert past[0].equal(own[0])
    assert past[1].equal(TRUE[1])
    assert motion[1].equal(TRUE[1])
    assert motion[0, :10].eq(0).all()  # nothing before the first block
    blocks = motion[0, 10:, 0].reshape(4, 10)
    assert blocks.eq(blocks[:1]).all()
    assert (blocks.diff(dim=1) <= 0).all()
    assert 1.8 < blocks[0, 0] < 2
    assert blocks[0, 7:].abs().max() < 1e-6
    torch.testing.assert_close(motion[2, 20:30, 0], blocks[0] * 2.5)
    assert motion[2, 10:20].equal(motion[0, 10:20])


def test_guesses_are_made_from_a_flow_time_a_block():
    times = GuessedHistories(10, least_flow_time=0.7).flow_times(500, 25, torch.Generator().manual_seed(0))
    assert times.shape == (500, 25)
    assert 0.7 <= times.min() < 0.71
    assert 0.99 < times.max() < 1
    assert times[:, :10].eq(times[:, :1]).all()
    assert times[:, 20:].eq(times[:, 20:21]).all()
    assert abs(torch.corrcoef(times[:, [0, 10]].T)[0, 1]) < 0.15
    with pytest.raises(ValueError, match=r"histories.least_flow_time"):
        GuessedHistories(10, least_flow_time=1.5)
