"""Expected values are derived by hand in the comments."""

from __future__ import annotations

import math

import pytest
import torch

from af.errors import UserError
from af.losses.preference import KINDS, PairErrors, PreferenceLoss, pooled_margins, preference_losses
from af.losses.velocity import VelocityLoss


def all_of(values: torch.Tensor) -> torch.Tensor:
    return torch.ones(values.shape, dtype=torch.bool)


def errors_of(margin: torch.Tensor) -> PairErrors:
    nothing = torch.zeros_like(margin)
    return PairErrors(nothing, margin, nothing, nothing)


def test_two_frames_by_hand():
    """Two frames of one dim; v^w = (1, 0), v^l = (−1, 2); policy (0.5, 0.2), reference (0.2, 0.2), β = 2.

    e_w = (0.5, 0.2), r_w = (0.8, 0.2), Δ_w = (−0.3, 0);  e_l = (1.5, 1.8), r_l = (1.2, 1.8), Δ_l = (0.3, 0)
    m = Δ_l − Δ_w = (0.6, 0);  loss = ½ [log(1 + e^−1.2) + log 2]
    dm/dv = d|v^l − v|/dv − d|v^w − v|/dv = +1 − (−1) = 2 in frame one (v^l below, v^w above v),
    and −1 − (+1) = −2 in frame two (v^l above, v^w below v); dL/dm = −½ β σ(−βm)
    """
    policy = torch.tensor([[[0.5], [0.2]]], requires_grad=True)
    reference = torch.tensor([[[0.2], [0.2]]])
    winner, loser = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[-1.0], [2.0]]])
    errors = PairErrors(
        VelocityLoss()(policy, winner),
        VelocityLoss()(policy, loser),
        VelocityLoss()(reference, winner),
        VelocityLoss()(reference, loser),
    )
    torch.testing.assert_close(errors.margin(), torch.tensor([[0.6, 0.0]]))
    value, _ = PreferenceLoss(beta=2.0)(errors, torch.ones(1, 2, dtype=torch.bool))
    assert value.item() == pytest.approx(0.5 * (math.log(1 + math.exp(-1.2)) + math.log(2)))
    value.backward()
    slopes = [-0.5 * 2 / (1 + math.exp(1.2)) * 2, -0.5 * 2 * 0.5 * -2]
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad[0, :, 0], torch.tensor(slopes))


@pytest.mark.parametrize(
    ("kind", "value", "slope"), [("dpo", math.log(2), -5.0), ("ipo", 0.25, -10), ("hinge", 1, -10)]
)
def test_at_the_reference_each_kind_has_its_value_and_slope(kind, value, slope):
    margin = torch.zeros(3, 4, requires_grad=True)
    losses = preference_losses(margin, beta=10.0, kind=kind)
    assert (losses == torch.tensor(value)).all()  # policy = reference gives log 2 exactly
    losses.sum().backward()
    torch.testing.assert_close(margin.grad, torch.full((3, 4), float(slope)))


def test_ipo_stops_where_dpo_goes_on():
    margin = torch.tensor([0.05], requires_grad=True)  # = 1 / (2β)
    preference_losses(margin, beta=10.0, kind="ipo").sum().backward()
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(0, abs=1e-5)


def test_the_mean_of_the_logarithms_is_not_the_logarithm_of_the_mean():
    margin = torch.tensor([[1.0, -1.0]])
    each, one = (
        PreferenceLoss(beta=3.0, per=per)(errors_of(margin), all_of(margin))[0] for per in ("frame", "sequence")
    )
    assert each.item() == pytest.approx(0.5 * (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(3))))
    assert one.item() == pytest.approx(math.log(2))


def test_units_are_means_over_the_frames_that_count():
    margin = torch.tensor([[1.0, 3.0, 5.0, float("nan"), 7.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    counted = torch.tensor([[True, True, False, False, True], [False, False, True, True, True]])
    blocks = pooled_margins(margin, counted, per="block", block_frames=2)
    torch.testing.assert_close(blocks.values, torch.tensor([[2.0, 0.0, 7.0], [0.0, 2.0, 2.0]]))
    assert blocks.counted.tolist() == [[True, False, True], [False, True, True]]
    assert blocks.mean(blocks.values).item() == pytest.approx((2 + 7 + 2 + 2) / 4)
    sequences = pooled_margins(margin, counted, per="sequence")
    torch.testing.assert_close(sequences.values, torch.tensor([[11 / 3], [2.0]]))
    frames = pooled_margins(margin, counted)
    assert frames.counted.equal(counted)


def test_nothing_that_counts_is_a_loss_of_zero_with_gradients():
    margin = torch.zeros(2, 3, requires_grad=True)
    value, _ = PreferenceLoss()(errors_of(margin), torch.zeros(2, 3, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert margin.grad is not None
    assert (margin.grad == 0).all()


def test_diagnostics_by_hand():
    """βm = (4, 1, 0, −4) with log 19 = 2.94: two saturated, one and a half of four right... (1 + 1 + ½ + 0) / 4."""
    values = torch.tensor([[0.4, 0.1, 0.0, -0.4]])
    _, found = PreferenceLoss(beta=10.0)(errors_of(values), all_of(values))
    expected = {"margin": 0.025, "reward_margin": 0.25, "accuracy": 0.625, "saturated": 0.5}
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [{"kind": "kto"}, {"per": "dim"}, {"beta": 0.0}])
def test_a_wrong_value_is_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        PreferenceLoss(**wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_margin_never_costs_more_up_to_the_target(kind):
    losses = preference_losses(torch.linspace(-1, 0.05, 50), beta=10.0, kind=kind)
    assert (losses.diff() <= 0).all()
