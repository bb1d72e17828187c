"""What the autoencoder is asked for: pixels, perceived likeness, and a posterior that carries no more than needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class ReconstructionWeights:
    """Weight of every term of the autoencoder's objective, and the optimiser step it begins at.

    `kl` grows linearly from 0 over `kl_warmup_steps`; 0 is the paper's autoencoder. `guide` weighs the face parameters
    read from the coefficients (`FaceGuide`; 0: unsupervised, the paper). R1 is applied every `r1_every`
    steps, times `r1_every`. Raises ValueError for a negative weight.
    """

    l1: float = 1.0
    perceptual: float = 0.0
    perceptual_start: int = 0
    kl: float = 0.0
    kl_warmup_steps: int = 0
    free_bits: float = 0.0
    guide: float = 0.0
    adversarial: float = 0.0
    adversarial_start: int = 0
    r1: float = 10.0
    r1_every: int = 16

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (name == "r1_every" and value < 1):
                raise ValueError(f"{name} must not be {value}")

    def kl_at(self, step: int) -> float:
        """KL weight at an optimiser step."""
        return self.kl * min(1.0, step / self.kl_warmup_steps) if self.kl_warmup_steps else self.kl


def weighted_l1(
    prediction: Float[Tensor, "B C Y X"],
    target: Float[Tensor, "B C Y X"],
    weight: Float[Tensor, "B 1 Y X"] | None = None,
) -> Float[Tensor, ""]:
    """Mean absolute difference; pixels count by `weight` (any scale, not all zero), None counts all alike."""
    difference = (prediction - target).abs()
    if weight is None:
        return difference.mean()
    return (difference.mean(1, keepdim=True) * weight).sum() / weight.sum()


def kl_to_standard_normal(
    mean: Float[Tensor, "B K"], log_variance: Float[Tensor, "B K"], free_bits: float = 0.0
) -> Float[Tensor, ""]:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats, exact, summed over K, mean over the batch.

    A coefficient whose KL (mean over the batch) is below `free_bits` nats counts as `free_bits` and gets no gradient
    (Kingma et al. 2016).
    """
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(0)
    return kl.clamp(min=free_bits).sum() if free_bits > 0 else kl.sum()


def feature_pyramid_l1(
    prediction: Float[Tensor, "B 3 Y X"],
    target: Float[Tensor, "B 3 Y X"],
    *,
    features: Callable[[Tensor], Sequence[Tensor]],
    scales: Sequence[float] = (1.0, 0.5, 0.25, 0.125),
) -> Float[Tensor, ""]:
    """Perceptual distance: mean absolute differences of a network's features, summed over layers and image scales.

    `features` maps images to a list of activations (VGG19 in the LIA recipe); the target's get no gradient.
    """
    total = prediction.new_zeros(())
    for scale in scales:
        a, b = prediction, target.detach()
        if scale != 1:
            resize = {"scale_factor": scale, "mode": "bilinear", "antialias": True, "align_corners": False}
            a, b = F.interpolate(a, **resize), F.interpolate(b, **resize)  # type: ignore[arg-type]
        for x, y in zip(features(a), features(b), strict=True):
            total = total + (x.to(total) - y.detach().to(total)).abs().mean()  # nearly equal: not in half precision
    return total
