"""Options of roll-outs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from af.cli.kinds import Count, Scale, Whole

#: As `af.forcing.solvers.SOLVERS` and `SCHEDULES`.
Solver = Literal["euler", "heun", "midpoint"]
Schedule = Literal["uniform", "fine_end", "released", "pyramid"]


@dataclass(kw_only=True)
class Guided:
    """Steps, solver, schedule and guidance scales. None: as the model says, else as `af.pipeline.sampling.usual_sampling`."""

    steps: Annotated[Count | None, "evaluations of the denoiser per block (default: the model's own, else 8)"] = None
    solver: Annotated[
        Solver | None,
        "euler varies less than people do, heun evaluates twice a step (default: the model's own, else midpoint)",
    ] = None
    schedule: Annotated[
        Schedule | None, "flow times of the steps (default: the model's own, else fine_end: the last ones are shorter)"
    ] = None
    guidance_audio: Annotated[Scale | None, "scale of the avatar's audio (default: the model's own, else 2)"] = None
    guidance_user: Annotated[Scale | None, "scale of the user's signals (default: the model's own, else 1)"] = None
    guidance_joint: Annotated[
        Scale | None,
        "scale of both together; 1, with the others at 0, is no guidance (default: the model's own, else 0)",
    ] = None

    def over(self, usual: Mapping[str, Any]) -> dict[str, Any]:
        """Steps, solver, schedule and guidance: what was asked for, else the `usual` ones."""
        from af.pipeline.sampling import over

        chosen = over(usual, vars(self))
        return {name: chosen[name] for name in ("steps", "solver", "schedule", "guidance")}


@dataclass(kw_only=True)
class Sampling(Guided):
    """The same, or none, the anchor of a long roll-out, and the dead band."""

    unguided: Annotated[bool, "one branch with all signals, no guidance: how distilled students work"] = False
    anchor_sink: Annotated[
        Whole | None, "frames of the portrait kept in the caches for good (default: the model's own, else 0)"
    ] = None
    anchor_pull: Annotated[
        Scale | None, "pull of the mean pose to the portrait's (default: the model's own, else 0)"
    ] = None
    dead_band: Annotated[
        Scale | None,
        "changes of motion up to this many standard deviations are not shown: 0.05 calms (default: the model's own, else 0)",
    ] = None

    def over(self, usual: Mapping[str, Any]) -> dict[str, Any]:
        """All that `af.pipeline.avatar.Avatar.motion` takes: what was asked for, else the `usual` one."""
        from af.pipeline.sampling import over

        return over(usual, vars(self))
