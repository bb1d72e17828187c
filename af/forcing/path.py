"""The straight path from noise to motion, schedules of flow times for sampling, and the solvers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from af.devices import widest_float
from af.errors import UserError, require_choice
from af.forcing.solvers import SCHEDULES, SOLVERS, levels
from af.values import require_number

_TABLE_SIZE: Final = 1000


def interpolate(
    noise: Float[Tensor, "B T D"], clean: Float[Tensor, "B T D"], flow_time: Float[Tensor, "B T"]
) -> Float[Tensor, "B T D"]:
    """x_t = t·x_1 + (1 − t)·x_0, with a flow time for each frame (method §3)."""
    t = flow_time[..., None]
    return t * clean + (1 - t) * noise


def target_velocity(noise: Float[Tensor, "B T D"], clean: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """v = x_1 − x_0: what the denoiser predicts."""
    return clean - noise


@dataclass(frozen=True, eq=False)
class Schedule:
    """A sampling schedule as a step matrix, steps × frames; a single column serves all frames of a block.

    `flow_times`: flow time at which each frame is evaluated (0 = noise). `step_sizes`: length of its step; 0 for a
    frame that waits or is finished. Each column's steps add up to 1.
    """

    flow_times: Float[Tensor, "S F"]
    step_sizes: Float[Tensor, "S F"]

    @property
    def steps(self) -> int:
        """Number of rows of the matrix."""
        return self.flow_times.shape[0]

    def beside(self, motion: Tensor) -> Schedule:
        """The schedule on the device of `motion`: flow times in its widest float, step sizes in `motion`'s dtype."""
        times = self.flow_times.to(motion.device, widest_float(motion.device, motion.dtype), non_blocking=True)
        return Schedule(times, self.step_sizes.to(motion.device, motion.dtype, non_blocking=True))

    def of(self, frames: int) -> Schedule:
        """The matrix for `frames` frames, repeated block by block. Raises ValueError if they do not fit."""
        columns = self.flow_times.shape[1]
        if frames % columns:
            raise ValueError(f"a step matrix of {columns} frames does not fit {frames} frames")
        times = 1 if columns == 1 else frames // columns
        rows = (self.steps, frames)
        return Schedule(self.flow_times.repeat(1, times).expand(rows), self.step_sizes.repeat(1, times).expand(rows))


def step_matrix(levels: Float[Tensor, "R F"] | Sequence[Sequence[float]]) -> Schedule:
    """The schedule through flow times `levels`: R − 1 steps, one column per frame of a block (or one for all).

    Raises UserError unless every column begins at 0 (noise), ends at 1 (clean) and never decreases.
    """
    matrix = torch.as_tensor(levels, dtype=torch.float64)
    if matrix.ndim != 2 or matrix.shape[0] < 2:
        raise UserError(
            f"schedule: a step matrix has at least two rows and a column per frame, got {tuple(matrix.shape)}"
        )
    steps = matrix.diff(dim=0)
    if (matrix[0] != 0).any() or (matrix[-1] != 1).any() or not (steps >= 0).all():
        raise UserError("schedule: every frame of a step matrix must begin at flow time 0, end at 1 and never go back")
    return Schedule(matrix[:-1], steps)


def pyramid(steps: int, frames: int, stagger: float = 1.0) -> Schedule:
    """A schedule that finishes earlier frames of a block earlier: the last starts when the first is at `stagger`.

    `stagger` 0 is the uniform schedule; with 1 the last frame starts when the first is clean. The number of evaluations
    stays `steps`, so each frame takes fewer, longer steps. Raises UserError for a negative `stagger`.
    """
    require_number("schedule: stagger", stagger, least=0)
    start = stagger * torch.arange(frames, dtype=torch.float64) / max(1, frames - 1)
    clock = (1 + stagger) * torch.arange(steps + 1, dtype=torch.float64)[:, None] / steps
    levels = (clock - start).clamp(0, 1)
    levels[-1] = 1  # the last frames end at 1 only up to rounding
    return step_matrix(levels)


def schedule(name: str, steps: int, frames: int = 1) -> Schedule:
    """`steps` steps from 0 to 1 for blocks of `frames` frames. Raises UserError for an unknown name or steps < 1.

    `uniform`, `fine_end`: `af.forcing.solvers.levels`. `released`: flow times of `uniform`, but step lengths from a table of
    1000 float32 noise levels, looked up by the nearest timestep (`steps` = nfe − 2). `pyramid`: see `pyramid`.
    """
    require_choice("schedule", "schedule", name, SCHEDULES)
    require_number("steps", steps, least=1, whole=True)
    if name == "pyramid":
        return pyramid(steps, frames)
    if name != "released":
        return step_matrix(torch.tensor(levels(name, steps), dtype=torch.float64)[:, None])
    tau = torch.linspace(1000, 0, steps + 1)
    table = torch.linspace(1, 0, _TABLE_SIZE)
    # on CPU, argmin takes the first of equal minima, as the released model does
    sigma = table[(1000 * table - tau[:, None]).abs().argmin(1)].double()
    return Schedule((1 - tau[:-1, None].double() / 1000), (sigma[:-1] - sigma[1:])[:, None])


def integrate(
    velocity: Callable[[Float[Tensor, "B F D"], int], Float[Tensor, "B F D"]],
    noise: Float[Tensor, "B F D"],
    steps: Schedule,
    solver: str = "euler",
) -> Float[Tensor, "B F D"]:
    """Integrate from noise to motion; `velocity(x, row)` is the velocity at the flow times of a row of the matrix.

    `euler`: one evaluation a row. `heun`: two, using the mean velocity of both ends of the step (second order). `midpoint`
    (second order): rows in pairs, one evaluation each; the first goes to where the velocity of both is taken, and a last
    row without a partner is an Euler step. Where the other end of a row is clean, there is no velocity, and the row is an
    Euler step (Karras et al. 2022). Raises UserError for an unknown solver.
    """
    require_choice("solver", "solver", solver, SOLVERS)
    steps = steps.of(noise.shape[1]).beside(noise)
    sizes = steps.step_sizes[..., None]
    x, pairs = noise, solver == "midpoint"
    for row in range(0, steps.steps, 2 if pairs else 1):
        v, step = velocity(x, row), sizes[row]
        if solver != "euler" and row + 1 < steps.steps:
            later = velocity(x + step * v, row + 1)
            arrived = (steps.flow_times[row + 1] == 1)[:, None]
            v = torch.where(arrived, v, later if pairs else (v + later) / 2)
            step = step + sizes[row + 1] if pairs else step
        x = x + step * v
    return x
