"""Muon: every direction of a convolution moves alike; everything else is Adam."""

from __future__ import annotations

import torch
from torch import nn

from af.training.muon import Muon, is_matrix, orthogonalised


def test_singular_values_become_alike(generator):
    rows = torch.randn(24, 60, generator=generator) * torch.logspace(0, -2, 24)[:, None]
    for matrix in (rows, rows.T):
        values = torch.linalg.svdvals(orthogonalised(matrix))
        assert values.max() < 1.3
        assert values.min() > 0.3
        assert torch.linalg.svdvals(matrix).max() > 50 * torch.linalg.svdvals(matrix).min()


def test_directions_far_apart_are_as_exact_as_the_numbers(generator):
    """Also where the smallest is lost in the squares of the largest."""
    rows = torch.randn(24, 60, generator=generator) * torch.logspace(0, -5, 24)[:, None]
    exact = orthogonalised(rows.double())
    for matrix, expected in ((rows, exact), (rows.T, exact.T)):
        assert (orthogonalised(matrix) - expected).norm() / expected.norm() < 1e-3


def test_steps_have_the_size_asked_for_and_turn_against_the_gradient(generator):
    for shape in ((16, 8, 3, 3), (8, 64, 1, 1)):
        weight = nn.Parameter(torch.randn(shape, generator=generator))
        before = weight.detach().clone()
        gradient = torch.randn(shape, generator=generator)
        optimizer = Muon([weight], lr=0.02, adam_lr=1.0)
        (weight * gradient).sum().backward()
        optimizer.step()
        step = weight.detach() - before
        torch.testing.assert_close(step.square().mean().sqrt(), torch.tensor(0.02), rtol=0.3, atol=0)
        assert (step * gradient).sum() < 0


def test_what_is_no_large_convolution_is_adams(generator):
    def parameters() -> list[nn.Parameter]:
        shapes = ((5, 7), (3,), (4, 16, 3, 3))
        values = torch.Generator().manual_seed(0)
        return [nn.Parameter(torch.randn(shape, generator=values)) for shape in shapes]

    ours, theirs = parameters(), parameters()
    assert not any(map(is_matrix, ours))
    optimizers = Muon(ours, 0.5, adam_lr=0.01, betas=(0.8, 0.95)), torch.optim.Adam(theirs, 0.01, betas=(0.8, 0.95))
    for _ in range(5):
        noise = [torch.randn(p.shape, generator=generator) for p in ours]
        for group, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter, gradient in zip(group, noise, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
