from __future__ import annotations

import math

import pytest
import torch

from af.errors import UserError
from af.losses.reconstruction import (
    FaceGuide,
    ReconstructionLoss,
    feature_pyramid_l1,
    kl_to_standard_normal,
    weighted_l1,
)


def test_l1_is_the_mean_absolute_difference():
    prediction = torch.tensor([0.0, 0.5, -1.0, 1.0]).view(1, 1, 2, 2)
    assert weighted_l1(prediction, torch.zeros(1, 1, 2, 2)).item() == pytest.approx(2.5 / 4)


def test_weights_count_pixels_several_times_whatever_their_scale():
    prediction = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).expand(1, 3, 2, 2)
    weight = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).view(1, 1, 2, 2)
    for scale in (1.0, 10.0):  # one pixel of weight 3 out of a total of 6 is wrong by 1
        assert weighted_l1(prediction, torch.zeros(1, 3, 2, 2), scale * weight).item() == pytest.approx(0.5)


def test_kl_of_the_standard_normal_is_zero_and_of_a_shifted_one_half_its_square():
    assert kl_to_standard_normal(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0
    mean = torch.tensor([[2.0, 0.0], [0.0, 0.0]])  # mean over the batch of 2²/2
    assert kl_to_standard_normal(mean, torch.zeros(2, 2)).item() == pytest.approx(1.0)


def test_kl_of_a_narrow_posterior():
    # σ² = 1/4: (1/4 − 1 + ln 4) / 2 a dimension
    log_variance = torch.full((1, 5), math.log(0.25))
    assert kl_to_standard_normal(torch.zeros(1, 5), log_variance).item() == pytest.approx(5 * (math.log(4) - 0.75) / 2)


def test_kl_agrees_with_torch(generator):
    mean, log_variance = torch.randn(2, 4, 3, generator=generator)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)


def test_free_bits_stop_the_gradient_of_cheap_dimensions_only():
    mean = torch.tensor([[0.1, 2.0]], requires_grad=True)
    kl = kl_to_standard_normal(mean, torch.zeros(1, 2), free_bits=0.5)
    assert kl.item() == pytest.approx(0.5 + 2.0)
    kl.backward()
    assert mean.grad.tolist() == [[0.0, 2.0]]


def test_pyramid_sums_scales_and_layers():
    prediction, target = torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    value = feature_pyramid_l1(prediction, target, features=lambda x: [x, 2 * x], scales=(1.0, 0.5))
    assert value.item() == pytest.approx(2 * (1 + 2))


def test_features_in_half_precision_are_compared_in_full(generator):
    """Nearly equal ones: their differences are a rounding or two, and the mean of those must not be rounded as well."""
    features = torch.randn(1, 3, 16, 16, generator=generator)
    near = features * (1 + 0.01 * torch.randn(features.shape, generator=generator))

    def half(x):
        return [x.bfloat16()]

    value = feature_pyramid_l1(near, features, features=half, scales=(1.0,))
    expected = (near.bfloat16().double() - features.bfloat16().double()).abs().mean()
    assert value.dtype == torch.float32
    assert abs(value - expected) < 1e-5 * expected


def test_pyramid_gives_the_target_no_gradient():
    prediction, target = torch.zeros(1, 3, 8, 8, requires_grad=True), torch.ones(1, 3, 8, 8, requires_grad=True)
    feature_pyramid_l1(prediction, target, features=lambda x: [x]).backward()
    assert prediction.grad.abs().sum() > 0
    assert target.grad is None


def test_kl_weight_warms_up_linearly():
    weights = ReconstructionLoss(kl=0.2, kl_warmup_steps=100)
    assert [weights.kl_at(step) for step in (0, 50, 100, 500)] == pytest.approx([0, 0.1, 0.2, 0.2])
    assert ReconstructionLoss(kl=0.2).kl_at(0) == 0.2


def test_negative_weight_is_refused():
    with pytest.raises(ValueError, match="perceptual must be a number from 0 on, got -1"):
        ReconstructionLoss(perceptual=-1)


def test_coefficients_that_are_the_standardised_parameters_cost_nothing(generator):
    guide = FaceGuide(3)
    face = torch.randn(64, 3, generator=generator) * torch.tensor([1.0, 0.1, 5.0]) + 2
    standard = (face - face.mean(0)) / face.var(0, correction=0).add(1e-4).sqrt()
    coefficients = torch.cat((standard, torch.full((64, 2), 7.0)), 1)  # what lies beyond the parameters is free
    assert guide(coefficients, face).item() == pytest.approx(0, abs=1e-10)
    assert guide(torch.zeros(64, 5), face).item() == pytest.approx(1, abs=0.01)


def test_too_few_coefficients_are_refused():
    with pytest.raises(ValueError, match="13 face parameters"):
        FaceGuide(13)(torch.zeros(4, 6), torch.zeros(4, 13))


def test_another_number_of_parameters_is_refused():
    with pytest.raises(UserError, match=r"loss\.face\.parameters is 5, and the batches hold 3"):
        FaceGuide(5)(torch.zeros(4, 6), torch.zeros(4, 3))
