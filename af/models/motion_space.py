"""The denoiser's space: standardised motion, with its statistics kept in the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from af.errors import require_choice
from af.nn.precision import full_precision
from af.values import require_number

Kind = Literal["coefficients", "whitened", "latent", "identity"]


@dataclass(frozen=True)
class MotionStatistics:
    """Mean and covariance of the coefficients λ = Qᵀm over a training set, and the directions Q."""

    mean: Float[Tensor, " K"]
    covariance: Float[Tensor, "K K"]
    basis: Float[Tensor, "D K"]

    @property
    def std(self) -> Float[Tensor, " K"]:
        """Standard deviation of each coefficient."""
        return self.covariance.diagonal().clamp_min(0).sqrt()

    def along_principal_axes(self) -> MotionStatistics:
        """The same along directions in which no two coefficients are correlated, the smallest variance first."""
        variance, axes = torch.linalg.eigh(self.covariance.double())
        basis = self.basis.double() @ axes
        signs = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()[0]  # the solver's are arbitrary
        mean = self.mean.double() @ axes * signs
        return MotionStatistics(mean.float(), variance.clamp_min(0).diag().float(), (basis * signs).float())


def motion_statistics(motions: Iterable[Float[Tensor, "T D"]], basis: Float[Tensor, "D K"]) -> MotionStatistics:
    """Statistics of many motion sequences in one pass (float64 sums). Raises ValueError without any frame."""
    q = basis.double()
    count = 0
    total = torch.zeros(q.shape[1], dtype=torch.float64, device=q.device)
    products = torch.zeros(q.shape[1], q.shape[1], dtype=torch.float64, device=q.device)
    for motion in motions:
        coefficients = motion.to(q) @ q
        count += coefficients.shape[0]
        total += coefficients.sum(0)
        products += coefficients.T @ coefficients
    if count == 0:
        raise ValueError("no motion frames to take statistics of")
    mean = total / count
    covariance = products / count - mean.outer(mean)
    return MotionStatistics(mean.float(), covariance.float(), basis.float())


def pooled(statistics: Sequence[MotionStatistics], weights: Sequence[float]) -> MotionStatistics:
    """Statistics of a mixture of sets with the shares `weights`. Raises ValueError when their directions differ."""
    first = statistics[0]
    if len(statistics) == 1:
        return first
    if not all(torch.equal(s.basis, first.basis) for s in statistics):
        raise ValueError("motion statistics along different directions cannot be pooled")
    shares = [weight / sum(weights) for weight in weights]
    means = [s.mean.double() for s in statistics]
    mean = torch.stack([share * m for share, m in zip(shares, means, strict=True)]).sum(0)
    products = [s.covariance.double() + m.outer(m) for s, m in zip(statistics, means, strict=True)]
    covariance = torch.stack([share * p for share, p in zip(shares, products, strict=True)]).sum(0) - mean.outer(mean)
    return MotionStatistics(mean.float(), covariance.float(), first.basis)


class MotionSpace(nn.Module):
    """Maps motion latents (D) to the denoiser's space and back.

    Kind `coefficients`: K standardised coefficients (Qᵀm − mean) / std; `whitened`: the same along the principal axes
    of the training motion, so that what two directions only show together (the size of a head, say) counts as much as
    what one shows; `latent`: standardised coefficients mapped back to D dims by Q; `identity`: the latent itself
    (released weights). Mean, std and Q are buffers and so part of the checkpoint. Both
    maps run in the buffers' precision, because half precision loses a coordinate whose mean is many deviations from 0.
    Directions that hardly move (std below `floor` of the largest) are not scaled, to avoid amplifying noise.
    """

    mean: Tensor
    std: Tensor
    basis: Tensor

    def __init__(self, kind: Kind, latent_dim: int, directions: int = 20, floor: float = 1e-3) -> None:
        super().__init__()
        require_choice("motion_space.kind", "kind", kind, get_args(Kind))
        require_number("motion_space.directions", directions, least=1, most=latent_dim, whole=True)
        self.kind, self.latent_dim, self.directions, self.floor = kind, latent_dim, directions, floor
        self.fitted = kind == "identity"
        if kind != "identity":
            self.register_buffer("mean", torch.zeros(directions))
            self.register_buffer("std", torch.ones(directions))
            self.register_buffer("basis", torch.eye(latent_dim, directions))

    @property
    def dim(self) -> int:
        """Size of the denoiser's space."""
        return self.latent_dim if self.kind in ("latent", "identity") else self.directions

    def fit(self, statistics: MotionStatistics) -> None:
        """Set the statistics of the training set. Raises ValueError for misfitting shapes or non-finite numbers."""
        if self.kind == "identity":
            return
        if statistics.basis.shape != self.basis.shape:
            raise ValueError(f"directions of shape {tuple(statistics.basis.shape)}, expected {tuple(self.basis.shape)}")
        if not all(torch.isfinite(t).all() for t in vars(statistics).values()):
            raise ValueError("motion statistics contain NaN or infinity")
        if self.kind == "whitened":
            statistics = statistics.along_principal_axes()
        largest = statistics.std.max().clamp_min(torch.finfo(torch.float32).tiny)
        std = torch.where(statistics.std > self.floor * largest, statistics.std, largest)
        self.mean.copy_(statistics.mean)
        self.std.copy_(std)
        self.basis.copy_(statistics.basis)
        self.fitted = True

    def to_model(self, motion: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest M"]:
        """Map motion latents to the denoiser's space (M dims). Raises RuntimeError before `fit` or loading."""
        if self.kind == "identity":
            return motion
        self._check()
        with full_precision(motion.device):
            standard = (motion.to(self.basis.dtype) @ self.basis - self.mean) / self.std
            return standard @ self.basis.T if self.kind == "latent" else standard

    def from_model(self, x: Float[Tensor, "*rest M"]) -> Float[Tensor, "*rest D"]:
        """Map the denoiser's space to motion latents. Raises RuntimeError before `fit` or loading."""
        if self.kind == "identity":
            return x
        self._check()
        with full_precision(x.device):
            x = x.to(self.basis.dtype)
            standard = x @ self.basis if self.kind == "latent" else x
            return (standard * self.std + self.mean) @ self.basis.T

    def _check(self) -> None:
        if not self.fitted:
            raise RuntimeError("motion space without statistics: call fit(motion_statistics(...)) or load a checkpoint")

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.fitted = self.fitted or f"{prefix}std" in state_dict
