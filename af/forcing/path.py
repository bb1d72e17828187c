"""The straight path from noise to motion, and the points in flow time at which a sampler stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from af.errors import UserError

SCHEDULES: Final = ("uniform", "released")
_TABLE_SIZE: Final = 1000


def interpolate(
    noise: Float[Tensor, "B T D"], clean: Float[Tensor, "B T D"], flow_time: Float[Tensor, "B T"]
) -> Float[Tensor, "B T D"]:
    """x_t = t·x_1 + (1 − t)·x_0 with each frame's own flow time (method §3)."""
    t = flow_time[..., None]
    return t * clean + (1 - t) * noise


def target_velocity(noise: Float[Tensor, "B T D"], clean: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """v = x_1 − x_0: what the denoiser predicts."""
    return clean - noise


@dataclass(frozen=True)
class Schedule:
    """Flow times of the evaluations (0 = noise) and the length of the Euler step after each. Both have `steps` entries."""

    flow_times: tuple[float, ...]
    step_sizes: tuple[float, ...]


def schedule(name: str, steps: int) -> Schedule:
    """`steps` Euler steps from 0 to 1. UserError for an unknown name or steps < 1.

    `uniform`: equal steps. `released`: evaluated at the same times, but step lengths come from a table of 1000 float32
    noise levels looked up by the nearest timestep (released.md; `steps` = nfe − 2).
    """
    if name not in SCHEDULES:
        raise UserError(f"schedule: unknown schedule {name!r}; allowed: {', '.join(SCHEDULES)}")
    if steps < 1:
        raise UserError(f"steps: {steps}; at least one Euler step is needed")
    if name == "uniform":
        return Schedule(tuple(i / steps for i in range(steps)), (1 / steps,) * steps)
    tau = torch.linspace(1000, 0, steps + 1)
    table = torch.linspace(1, 0, _TABLE_SIZE)
    # argmin takes the first of equal minima on CPU, which is the released tie rule
    sigma = table[(1000 * table - tau[:, None]).abs().argmin(1)].double()
    return Schedule(
        tuple((1 - tau[:-1].double() / 1000).tolist()),
        tuple((sigma[:-1] - sigma[1:]).tolist()),
    )
