"""Options of roll-outs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from af.cli.kinds import Count, Scale, Whole

if TYPE_CHECKING:
    from af.forcing.anchor import Anchor
    from af.forcing.guidance import Guidance


#: As `af.forcing.path.SOLVERS`, which imports torch.
Solver = Literal["euler", "heun", "midpoint"]


@dataclass(kw_only=True)
class Guided:
    """Steps, solver and guidance scales."""

    steps: Annotated[Count, "evaluations of the denoiser per block"] = 8
    solver: Annotated[Solver, "euler varies less than people do, heun evaluates twice a step"] = "midpoint"
    guidance_audio: Annotated[Scale, "scale of the avatar's audio"] = 2.0
    guidance_user: Annotated[Scale, "scale of the user's signals"] = 1.0
    guidance_joint: Annotated[Scale, "scale of both together; 1, with the others at 0, is no guidance"] = 0.0

    @property
    def guidance(self) -> Guidance:
        """What the scales make."""
        from af.forcing.guidance import Guidance

        return Guidance(self.guidance_audio, self.guidance_user, self.guidance_joint)

    @property
    def options(self) -> dict[str, Any]:
        """All of it, as `af.pipeline.avatar.Avatar.motion` takes it."""
        return {"steps": self.steps, "solver": self.solver, "guidance": self.guidance}


@dataclass(kw_only=True)
class Sampling(Guided):
    """The same, or none, the anchor of a long roll-out, and the dead band."""

    unguided: Annotated[bool, "one branch with all signals, no guidance: how distilled students work"] = False
    anchor_sink: Annotated[Whole, "frames of the portrait kept in the caches for good"] = 0
    anchor_pull: Annotated[Scale, "pull of the mean pose to the portrait's"] = 0.0
    dead_band: Annotated[Scale, "changes of motion up to this many standard deviations are not shown: 0.05 calms"] = 0.0

    @property
    def guidance(self) -> Guidance:
        """What the scales make, or none."""
        from af.forcing.guidance import Guidance

        return Guidance.conditional() if self.unguided else super().guidance

    @property
    def anchor(self) -> Anchor:
        """The anchor that the options describe."""
        from af.forcing.anchor import Anchor

        return Anchor(self.anchor_sink, self.anchor_pull)

    @property
    def options(self) -> dict[str, Any]:
        """All of it, as `af.pipeline.avatar.Avatar.motion` takes it."""
        return {**super().options, "anchor": self.anchor, "dead_band": self.dead_band}
