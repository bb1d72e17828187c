from __future__ import annotations

import math

import pytest
import torch

from af.losses.adversarial import discriminator_loss, generator_loss, r1_penalty


def test_undecided_discriminator_gives_log_two():
    logits = [torch.zeros(4), torch.zeros(4)]
    assert generator_loss(logits).item() == pytest.approx(math.log(2))
    assert discriminator_loss(logits, logits).item() == pytest.approx(2 * math.log(2))


def test_losses_are_softplus_of_the_wrong_direction():
    fake, real = [torch.tensor([2.0])], [torch.tensor([-1.0])]
    assert generator_loss(fake).item() == pytest.approx(math.log1p(math.exp(-2.0)))
    expected = math.log1p(math.exp(1.0)) + math.log1p(math.exp(2.0))
    assert discriminator_loss(real, fake).item() == pytest.approx(expected)


def test_generator_still_learns_where_the_discriminator_is_sure():
    logits = torch.tensor([-20.0], requires_grad=True)
    generator_loss([logits]).backward()
    assert logits.grad.item() == pytest.approx(-1.0)  # saturating log(1 − D) would give ~0


def test_scales_are_averaged():
    assert generator_loss([torch.zeros(2), torch.full((2,), 100.0)]).item() == pytest.approx(math.log(2) / 2)


def test_r1_of_a_linear_discriminator_is_half_its_squared_weight(generator):
    weight = torch.randn(3, 4, 4, generator=generator)
    image = torch.randn(5, 3, 4, 4, generator=generator)
    penalty = r1_penalty(lambda x: [(x * weight).sum((1, 2, 3)), 2 * (x * weight).sum((1, 2, 3))], image)
    assert penalty.item() == pytest.approx((1 + 4) / 2 * weight.square().sum().item() / 2, rel=1e-5)


def test_r1_trains_the_discriminator(generator):
    weight = torch.randn(3, 4, 4, generator=generator, requires_grad=True)
    r1_penalty(lambda x: [(x * weight).sum((1, 2, 3))], torch.zeros(2, 3, 4, 4)).backward()
    torch.testing.assert_close(weight.grad, weight)
