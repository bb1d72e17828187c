from __future__ import annotations

import math

import pytest
import torch

from af.nn.rope import rotary_table, rotate


def test_pairs_turn_by_their_own_angle() -> None:
    x = torch.tensor([[1.0, 0.0, 0.0, 2.0]])
    turned = rotate(x, rotary_table(torch.tensor([3]), 4, theta=100.0))
    slow = 3 * 100 ** (-2 / 4)  # the second pair
    expected = [math.cos(3), math.sin(3), -2 * math.sin(slow), 2 * math.cos(slow)]
    torch.testing.assert_close(turned[0], torch.tensor(expected))


@pytest.mark.parametrize("start", [7, 5_000, 10_000_000])
def test_scores_depend_on_differences_only(start: int, generator: torch.Generator) -> None:
    q, k = torch.randn(2, 6, 16, generator=generator)

    def scores(first: int) -> torch.Tensor:
        table = rotary_table(torch.arange(first, first + 6), 16)
        return rotate(q, table) @ rotate(k, table).T

    torch.testing.assert_close(scores(start), scores(0), atol=2e-6, rtol=1e-5)
    assert not torch.allclose(scores(0), q @ k.T, atol=1e-2)


def test_odd_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        rotary_table(torch.arange(3), 5)
