from __future__ import annotations

import pytest
import torch

from af.losses.guide import FaceGuide


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
