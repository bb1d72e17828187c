"""Preference losses on velocity errors (method §5): implicit margins of winner over loser, and DPO, IPO or hinge on
them.

Errors come from `af.losses.velocity.VelocityLoss`: L1 (the paper), **mean over dims**. The paper leaves mean or sum
open; the scale of β depends on it: with the sum over D dims the same β would act D times as strongly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from af.errors import require_choice
from af.values import require_number

KINDS: Final = ("dpo", "ipo", "hinge")
UNITS: Final = ("frame", "block", "sequence")
#: A unit is saturated when its sigmoid is outside [1/20, 19/20]. DPO's gradient, β/2 at margin 0, is then below a tenth
#: of β/2 if the winner is preferred, and nearly twice β/2 if the loser is.
SATURATED_AT: Final = math.log(19)


@dataclass(frozen=True)
class PairErrors:
    """Velocity errors per frame of policy and reference on winner and loser, all at the same noise and flow time."""

    policy_winner: Float[Tensor, "B T"]
    policy_loser: Float[Tensor, "B T"]
    reference_winner: Float[Tensor, "B T"]
    reference_loser: Float[Tensor, "B T"]

    def margin(self) -> Float[Tensor, "B T"]:
        """Δ_l − Δ_w with Δ = policy's error − reference's: positive where the policy moved towards the winner."""
        return (self.policy_loser - self.reference_loser) - (self.policy_winner - self.reference_winner)


@dataclass(frozen=True)
class Margins:
    """Margins of the units compared by a loss; `counted` is False for units without a counted frame."""

    values: Float[Tensor, "B U"]
    counted: Bool[Tensor, "B U"]

    def mean(self, values: Float[Tensor, "B U"]) -> Float[Tensor, ""]:
        """Mean of `values` over the counted units; 0 (with zero gradients) when there are none."""
        return values.where(self.counted, values.new_zeros(())).sum() / self.counted.sum().clamp_min(1)


def pooled_margins(
    margin: Float[Tensor, "B T"], counted: Bool[Tensor, "B T"], *, per: str = "frame", block_frames: int = 1
) -> Margins:
    """Margins per `frame`, or their means over the counted frames of a `block` of `block_frames`, or of a `sequence`.

    Frames that do not count have no effect, even if they hold NaN. Raises UserError for an unknown unit.
    """
    require_choice("preference loss", "per", per, UNITS)
    frames = margin.shape[1]
    size = {"frame": 1, "block": block_frames, "sequence": frames}[per]
    short = -frames % size  # a partial last block is padded with frames that do not count
    kept = F.pad(margin.where(counted, margin.new_zeros(())), (0, short)).unflatten(1, (-1, size))
    count = F.pad(counted, (0, short)).unflatten(1, (-1, size)).sum(-1)
    return Margins(kept.sum(-1) / count.clamp_min(1), count > 0)


def preference_losses(margin: Tensor, *, beta: float, kind: str = "dpo") -> Tensor:
    """Loss of every unit from its margin m, as a function of the implicit reward margin β·m.

    `dpo` −log σ(βm): log 2 at m = 0, where its slope is −β/2. `ipo` (βm − ½)²: pulls m to 1/(2β) and not beyond (Azar et
    al. 2023, times β² so that one weight suits all kinds; ¼ and −β at 0). `hinge` max(0, 1 − βm) (SLiC, Zhao et al. 2023;
    1 and −β at 0). UserError for an unknown kind.
    """
    require_choice("preference loss", "kind", kind, KINDS)
    reward = beta * margin
    if kind == "dpo":
        return -F.logsigmoid(reward)
    if kind == "ipo":
        return (reward - 0.5).square()
    return F.relu(1 - reward)


@dataclass(frozen=True)
class PreferenceLoss:
    """The mean loss over units: the mean of log σ, never log σ of the mean.

    `per` is the unit: a frame (as in the paper), a block or the whole window, with the mean margin of its frames.
    `beta` is constant, in units of 1 / velocity error (mean over dims).
    """

    kind: str = "dpo"
    beta: float = 1000.0
    per: str = "frame"

    def __post_init__(self) -> None:
        require_choice("preference loss", "kind", self.kind, KINDS)
        require_choice("preference loss", "per", self.per, UNITS)
        require_number("preference loss: beta", self.beta, above=0)

    def __call__(
        self, errors: PairErrors, counted: Bool[Tensor, "B T"], *, block_frames: int = 1
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss and figures for the log: mean margin, mean reward margin β·m, accuracy (a tie counts half), and the
        share of units with a saturated sigmoid (see `SATURATED_AT`).
        """
        margins = pooled_margins(errors.margin(), counted, per=self.per, block_frames=block_frames)
        loss = margins.mean(preference_losses(margins.values, beta=self.beta, kind=self.kind))
        values = margins.values.detach()
        right = (values > 0).to(values.dtype) + 0.5 * (values == 0).to(values.dtype)
        saturated = ((self.beta * values).abs() > SATURATED_AT).to(values.dtype)
        return loss, {
            "margin": margins.mean(values),
            "reward_margin": margins.mean(self.beta * values),
            "accuracy": margins.mean(right),
            "saturated": margins.mean(saturated),
        }
