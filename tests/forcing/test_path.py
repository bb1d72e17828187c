from __future__ import annotations

import pytest
import torch

from af.errors import UserError
from af.forcing.path import interpolate, schedule, target_velocity


def test_ends_of_the_path(generator: torch.Generator) -> None:
    noise, clean = torch.randn(2, 2, 4, 3, generator=generator)
    times = torch.tensor([[0.0, 1.0, 0.25, 0.5]] * 2)
    x = interpolate(noise, clean, times)
    torch.testing.assert_close(x[:, 0], noise[:, 0])
    torch.testing.assert_close(x[:, 1], clean[:, 1])
    torch.testing.assert_close(x[:, 2], 0.25 * clean[:, 2] + 0.75 * noise[:, 2])


def test_velocity_leads_from_any_point_to_the_clean_end(generator: torch.Generator) -> None:
    noise, clean = torch.randn(2, 1, 4, 3, generator=generator)
    times = torch.tensor([[0.0, 0.3, 0.9, 1.0]])
    x = interpolate(noise, clean, times)
    torch.testing.assert_close(x + (1 - times[..., None]) * target_velocity(noise, clean), clean)


def test_uniform_steps() -> None:
    assert schedule("uniform", 4).flow_times == (0, 0.25, 0.5, 0.75)
    assert schedule("uniform", 4).step_sizes == (0.25,) * 4


def test_released_table() -> None:
    got = schedule("released", 8)
    table = torch.linspace(1, 0, 1000)[[0, 125, 250, 375, 499, 624, 749, 874, 999]].double()
    torch.testing.assert_close(torch.tensor(got.step_sizes).double(), table[:-1] - table[1:])
    assert got.flow_times == pytest.approx([i / 8 for i in range(8)], abs=1e-7)
    assert sum(got.step_sizes) == pytest.approx(1)


@pytest.mark.parametrize(("name", "steps", "message"), [("cosine", 8, "cosine"), ("uniform", 0, "steps: 0")])
def test_wrong_values_are_named(name: str, steps: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedule(name, steps)
