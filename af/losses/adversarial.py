"""Non-saturating adversarial losses and the R1 penalty, on lists of logits (one entry per discriminator scale)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from af.values import require_number


@dataclass(frozen=True)
class AdversarialLoss:
    """Adversarial training from step `start` on: `weight` of the autoencoder's loss, and `r1` of the penalty, which is
    applied every `r1_every` steps and multiplied by `r1_every`. Raises ValueError for a negative weight.
    """

    weight: float = 1.0
    start: int = 0
    r1: float = 10.0
    r1_every: int = 16

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require_number(f"adversarial.{name}", value, least=1 if name == "r1_every" else 0)

    def plays(self, step: int) -> bool:
        """Whether the discriminator takes part at an optimiser step."""
        return step >= self.start

    def generator(self, fake: Sequence[Float[Tensor, " B"]]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The autoencoder's loss, and its unweighted terms."""
        terms = {"adversarial": generator_loss(fake)}
        return self.weight * terms["adversarial"], terms

    def discriminator(
        self,
        discriminator: Callable[[Tensor], Sequence[Tensor]],
        real: Float[Tensor, "B 3 Y X"],
        fake: Float[Tensor, "B 3 Y X"],
        step: int,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The discriminator's loss at an optimiser step, and its unweighted terms."""
        loss = discriminator_loss(discriminator(real), discriminator(fake))
        terms = {"discriminator": loss}
        if self.r1 > 0 and step % self.r1_every == 0:
            # not `__call__`: a compiled module has no second derivative
            terms["r1"] = r1_penalty(getattr(discriminator, "forward", discriminator), real)
            loss = loss + self.r1 * self.r1_every * terms["r1"]
        return loss, terms


def generator_loss(fake: Sequence[Float[Tensor, " B"]]) -> Float[Tensor, ""]:
    """E softplus(-D(fake)), mean over scales. Source: Goodfellow et al. 2014, the non-saturating form."""
    return torch.stack([F.softplus(-logits.float()).mean() for logits in fake]).mean()


def discriminator_loss(real: Sequence[Float[Tensor, " B"]], fake: Sequence[Float[Tensor, " B"]]) -> Float[Tensor, ""]:
    """E softplus(-D(real)) + E softplus(D(fake)), mean over scales."""
    terms = [F.softplus(-r.float()).mean() + F.softplus(f.float()).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).mean()


def r1_penalty(
    discriminator: Callable[[Tensor], Sequence[Tensor]], real: Float[Tensor, "B 3 Y X"]
) -> Float[Tensor, ""]:
    """E |∇ D(real)|^2 / 2, mean over scales; each scale's logits are summed over their positions.

    Lazy regularisation: call it every n-th step and multiply by n. Source: Mescheder et al. 2018; Karras et al.
    2020.
    """
    real = real.detach().requires_grad_()
    total = real.new_zeros(())
    logits = discriminator(real)
    for scale in logits:
        (gradient,) = torch.autograd.grad(scale.float().sum(), real, create_graph=True)
        total = total + gradient.square().sum((1, 2, 3)).mean() / 2
    return total / len(logits)
