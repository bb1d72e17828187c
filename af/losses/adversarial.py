"""Non-saturating adversarial losses and the R1 penalty, on lists of logits (one entry a discriminator scale)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


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
    """E |∇ D(real)|^2 / 2, mean over scales (each scale's logits summed over their positions).

    "Lazy": call it every n-th step and multiply by n. Source: Mescheder et al. 2018; Karras et al. 2020.
    """
    real = real.detach().requires_grad_()
    total = real.new_zeros(())
    logits = discriminator(real)
    for scale in logits:
        (gradient,) = torch.autograd.grad(scale.float().sum(), real, create_graph=True)
        total = total + gradient.square().sum((1, 2, 3)).mean() / 2
    return total / len(logits)
