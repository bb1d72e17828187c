from __future__ import annotations

import itertools

import pytest
import torch

from af.errors import UserError
from af.forcing.path import integrate, interpolate, pyramid, schedule, step_matrix, target_velocity
from af.forcing.solvers import SOLVERS


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
    assert schedule("uniform", 4).flow_times.tolist() == [[0], [0.25], [0.5], [0.75]]
    assert schedule("uniform", 4).step_sizes.tolist() == [[0.25]] * 4


def test_the_last_pair_of_a_fine_end_is_taken_in_two() -> None:
    """Of four pairs, three are equal, and the last of these is cut at 0.7 of its length; seven rows end in one step."""
    expected = [0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 47 / 60, 0.9, 0.95]
    assert schedule("fine_end", 8).flow_times[:, 0].tolist() == pytest.approx(expected)
    assert schedule("fine_end", 7).flow_times[:, 0].tolist() == pytest.approx(expected[:7])
    assert schedule("fine_end", 3).flow_times[:, 0].tolist() == pytest.approx([0, 0.35, 0.7])
    for steps in (1, 2):
        assert torch.equal(schedule("fine_end", steps).flow_times, schedule("uniform", steps).flow_times)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 31, 64])
@pytest.mark.parametrize("name", ["uniform", "fine_end"])
def test_steps_lead_from_noise_to_the_clean_end(name: str, steps: int) -> None:
    matrix = schedule(name, steps)
    ends = matrix.flow_times + matrix.step_sizes
    assert matrix.steps == steps
    assert matrix.flow_times[0] == 0
    assert ends[-1] == 1
    torch.testing.assert_close(ends[:-1], matrix.flow_times[1:])
    assert (matrix.step_sizes > 0).all()


@pytest.mark.parametrize(
    ("spread", "uniform", "fine_end"), [(1.0, 0.99, 0.99), (0.2, 0.94, 0.95), (0.1, 0.6, 0.9), (0.05, 0.2, 0.75)]
)
def test_a_fine_end_keeps_small_spreads(spread: float, uniform: float, fine_end: float) -> None:
    """The variance of a Gaussian sampled with its exact velocity in eight rows, as a share of its own: at least so much, and
    with equal rows at most 0.1 more.
    """

    def share(name: str) -> float:
        matrix = schedule(name, 8)
        times = matrix.flow_times[:, 0].tolist()

        def velocity(x: torch.Tensor, row: int) -> torch.Tensor:
            t = times[row]
            return x * (t * spread**2 - (1 - t)) / (t**2 * spread**2 + (1 - t) ** 2)

        return (integrate(velocity, torch.ones(1, 1, 1, dtype=torch.float64), matrix, "midpoint").item() / spread) ** 2

    assert uniform < share("uniform") < uniform + 0.1
    assert fine_end < share("fine_end") < 1.05


def test_released_table() -> None:
    got = schedule("released", 8)
    table = torch.linspace(1, 0, 1000)[[0, 125, 250, 375, 499, 624, 749, 874, 999]].double()
    torch.testing.assert_close(got.step_sizes[:, 0], table[:-1] - table[1:])
    assert got.flow_times[:, 0].tolist() == pytest.approx([i / 8 for i in range(8)], abs=1e-7)
    assert float(got.step_sizes.sum()) == pytest.approx(1)


@pytest.mark.parametrize("frames", [1, 2, 10])
@pytest.mark.parametrize("stagger", [0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_pyramid_finishes_earlier_frames_first(steps: int, stagger: float, frames: int) -> None:
    got = pyramid(steps, frames, stagger)
    assert got.flow_times.shape == (steps, frames)
    torch.testing.assert_close(got.step_sizes.sum(0), torch.ones(frames, dtype=torch.float64))
    assert (got.flow_times.diff(dim=1) <= 1e-12).all()  # never behind the frame after it
    assert (got.flow_times[0] == 0).all()


def test_pyramid_by_hand() -> None:
    got = pyramid(4, 3, stagger=1.0)
    expected = [[0, 0, 0], [0.5, 0, 0], [1, 0.5, 0], [1, 1, 0.5]]
    assert got.flow_times.tolist() == expected
    assert torch.equal(pyramid(4, 3, 0).flow_times, schedule("uniform", 4).of(3).flow_times)


def test_a_matrix_of_one_block_serves_several() -> None:
    matrix = pyramid(4, 3)
    assert torch.equal(matrix.of(6).flow_times, torch.cat((matrix.flow_times, matrix.flow_times), 1))
    with pytest.raises(ValueError, match="3 frames does not fit 4"):
        matrix.of(4)


def solve(steps: int, solver: str, matrix=None) -> torch.Tensor:
    """x' = x·cos(2t) from x(0) = 1 over [0, 1], three frames: x(1) = exp(sin(2)/2)."""
    matrix = schedule("uniform", steps) if matrix is None else matrix
    times = matrix.of(3).flow_times
    return integrate(
        lambda x, row: x * torch.cos(2 * times[row])[:, None], torch.ones(1, 3, 1, dtype=torch.float64), matrix, solver
    )


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_order_of_the_solvers(solver: str, order: int) -> None:
    """Halving the steps divides the error by 2^order."""
    exact = torch.tensor(2.0, dtype=torch.float64).sin().div(2).exp()
    errors = [(solve(steps, solver) - exact).abs().max().item() for steps in (32, 64, 128)]
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_frames_go_their_own_ways(solver: str) -> None:
    """Frames of a matrix that do not influence each other are what each of them is alone."""
    matrix = pyramid(12, 3, stagger=0.5)
    together = solve(12, solver, matrix)
    for n in range(3):
        column = step_matrix(torch.cat((matrix.flow_times[:, n], torch.ones(1)))[:, None])
        alone = solve(12, solver, column)
        torch.testing.assert_close(together[0, n], alone[0, n])


def test_heun_evaluates_twice_but_for_the_last_step() -> None:
    rows = []
    integrate(lambda x, row: rows.append(row) or x, torch.ones(1, 1, 1), schedule("uniform", 3), "heun")
    assert rows == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_midpoint_evaluates_once_a_row(steps: int) -> None:
    rows = []
    integrate(lambda x, row: rows.append(row) or x, torch.ones(1, 1, 1), schedule("uniform", steps), "midpoint")
    assert rows == list(range(steps))


@pytest.mark.parametrize("spread", [1.0, 0.5, 0.3])
def test_eight_evaluations_keep_the_spread_with_midpoint_and_lose_it_with_euler(spread: float) -> None:
    """The exact velocity of a Gaussian of this width takes x_0 to spread · x_0."""
    times = schedule("uniform", 8).flow_times.squeeze(1).tolist()

    def velocity(x: torch.Tensor, row: int) -> torch.Tensor:
        t = times[row]
        return x * (t * spread**2 - (1 - t)) / (t**2 * spread**2 + (1 - t) ** 2)

    one = torch.ones(1, 1, 1, dtype=torch.float64)
    variance = {s: (integrate(velocity, one, schedule("uniform", 8), s).item() / spread) ** 2 for s in SOLVERS}
    assert variance["euler"] < 0.75
    assert variance["midpoint"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("levels", "message"),
    [([[0.0, 0.0]], "at least two rows"), ([[0.0], [0.9]], "begin at flow time 0, end at 1"),
     ([[0.1], [1.0]], "begin at"), ([[0.0], [0.6], [0.5], [1.0]], "never go back")],
)  # fmt: skip
def test_wrong_matrices_are_named(levels: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        step_matrix(levels)


@pytest.mark.parametrize(
    ("name", "steps", "message"), [("cosine", 8, "cosine"), ("uniform", 0, "steps must be .*, got 0")]
)
def test_wrong_values_are_named(name: str, steps: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedule(name, steps)
    with pytest.raises(UserError, match=r"stagger must be .*, got -1"):
        pyramid(4, 2, -1)
    with pytest.raises(UserError, match=r"'rk4'; allowed: euler, heun"):
        integrate(lambda x, row: x, torch.ones(1, 1, 1), schedule("uniform", 1), "rk4")
