"""The autoencoder's losses: pixels, perceptual distance, KL of the posterior, and guidance by face parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from af.errors import UserError
from af.types import PairBatch
from af.values import require_number


class ReconstructionLoss(nn.Module):
    """The autoencoder's objective without a discriminator: a weighted sum of terms.

    `kl` grows linearly from 0 over `kl_warmup_steps` (0: the paper's autoencoder). `perceptual` weights the network
    `distance(prediction, target)`. `guide` weights `face`, which compares the coefficients with the face parameters (0:
    unsupervised, as in the paper). Raises ValueError for a negative weight, and for a weight without its network.
    """

    def __init__(
        self,
        l1: float = 1.0,
        perceptual: float = 0.0,
        perceptual_start: int = 0,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        kl: float = 0.0,
        kl_warmup_steps: int = 0,
        free_bits: float = 0.0,
        guide: float = 0.0,
        face: FaceGuide | None = None,
    ) -> None:
        super().__init__()
        self.l1, self.perceptual, self.perceptual_start, self.distance = l1, perceptual, perceptual_start, distance
        self.kl, self.kl_warmup_steps, self.free_bits = kl, kl_warmup_steps, free_bits
        self.guide, self.face = guide, face
        for name in ("l1", "perceptual", "perceptual_start", "kl", "kl_warmup_steps", "free_bits", "guide"):
            require_number(f"loss.{name}", getattr(self, name), least=0)
        for weight, judge in (("perceptual", "distance"), ("guide", "face")):
            if getattr(self, weight) > 0 and getattr(self, judge) is None:
                raise ValueError(f"loss.{weight} has a weight but needs loss.{judge}, which is not set")

    def forward(
        self,
        image: Float[Tensor, "B 3 Y X"],
        batch: PairBatch,
        *,
        coefficients: Float[Tensor, "B K"],
        log_variance: Float[Tensor, "B K"] | None = None,
        step: int = 0,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of reconstructed images at an optimiser step, and its unweighted terms.

        Raises UserError when `kl` or `guide` has a weight but the model or the batch lacks what it needs.
        """
        terms = {"l1": weighted_l1(image, batch.driving, batch.weight)}
        loss = self.l1 * terms["l1"]
        if self.distance is not None and self.perceptual > 0 and step >= self.perceptual_start:
            terms["perceptual"] = self.distance(image, batch.driving)
            loss = loss + self.perceptual * terms["perceptual"]
        if self.guide > 0:
            terms["guide"] = self.guidance(coefficients, batch)
            loss = loss + self.guide * terms["guide"]
        if log_variance is not None:
            terms["kl"] = kl_to_standard_normal(coefficients, log_variance, self.free_bits)
            loss = loss + self.kl_at(step) * terms["kl"]
        elif self.kl > 0:
            raise UserError("loss.kl needs an autoencoder that samples: set model.variational=true")
        return loss, terms

    def guidance(self, coefficients: Float[Tensor, "B K"], batch: PairBatch) -> Float[Tensor, ""]:
        """The unweighted guiding term. Raises UserError for a batch without face parameters."""
        assert self.face is not None
        if batch.face is None:
            raise UserError("loss.guide needs face parameters in the batches: set data.faces=true")
        return self.face(coefficients, batch.face)

    def kl_at(self, step: int) -> float:
        """Weight of the KL term at an optimiser step."""
        return self.kl * min(1.0, step / self.kl_warmup_steps) if self.kl_warmup_steps else self.kl

    def compile(self, *args: Any, **how: Any) -> None:
        """Compile the networks of the terms, not the sum."""
        if self.face is not None:
            self.face.compile(*args, **how)
        if self.distance is not None:
            self.distance = torch.compile(self.distance, *args, **how)


class FaceGuide(nn.Module):
    """Mean squared difference between the first P coefficients and the P standardised face parameters, for runs too
    short to find expressions unsupervised.

    Lips and lids cover so few pixels that a pixel loss hardly sees them. Standardising (by the batch's mean and
    variance; in evaluation by the running ones) gives all parameters the same weight; coefficients beyond P stay free.
    Used in training only, on shards with face parameters; it is not part of the model. A tracker of real faces reads
    more than fits: `data.faces` groups its parameters.
    """

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.standard = nn.BatchNorm1d(parameters, eps=1e-4, momentum=0.05, affine=False)

    def forward(self, coefficients: Float[Tensor, "B K"], face: Float[Tensor, "B P"]) -> Float[Tensor, ""]:
        """The difference, about 1 for uninformative coefficients. Raises ValueError when K < P, and UserError for another
        number of parameters.
        """
        if coefficients.shape[1] < face.shape[1]:
            raise ValueError(f"{face.shape[1]} face parameters do not fit into {coefficients.shape[1]} coefficients")
        if face.shape[1] != self.standard.num_features:
            wanted = self.standard.num_features
            raise UserError(f"loss.face.parameters is {wanted}, and the batches hold {face.shape[1]} face parameters")
        return (coefficients[:, : face.shape[1]] - self.standard(face)).square().mean()


def weighted_l1(
    prediction: Float[Tensor, "B C Y X"],
    target: Float[Tensor, "B C Y X"],
    weight: Float[Tensor, "B 1 Y X"] | None = None,
) -> Float[Tensor, ""]:
    """Mean absolute difference, weighted per pixel by `weight` (any scale, not all zero); None weights all equally."""
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

    `features` maps images to a list of activations (VGG19 in the LIA recipe); the target gets no gradient.
    """
    total = prediction.new_zeros(())
    for scale in scales:
        a, b = prediction, target.detach()
        if scale != 1:
            resize = {"scale_factor": scale, "mode": "bilinear", "antialias": True, "align_corners": False}
            a, b = F.interpolate(a, **resize), F.interpolate(b, **resize)  # type: ignore[arg-type]
        for x, y in zip(features(a), features(b), strict=True):
            total = (
                total + (x.to(total) - y.detach().to(total)).abs().mean()
            )  # half precision would lose the difference
    return total
