"""The frozen model that a preference stage measures against."""

from __future__ import annotations

from pathlib import Path

import torch

from af.models.artifact import load_as, weights_digest
from af.models.denoiser import MotionDenoiser


def policy(folder: str | Path) -> MotionDenoiser:
    """The denoiser in a model folder, in training mode. UserError when it is something else."""
    return load_as(folder, MotionDenoiser)[0].train()


class FrozenReference:
    """A denoiser in eval mode without gradients, whose weights are known by their hash.

    It is not a module: what holds it has none of its weights among its own, so they enter no checkpoint, no average and
    no optimiser.
    """

    def __init__(self, denoiser: MotionDenoiser) -> None:
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.digest = weights_digest(denoiser)

    @classmethod
    def load(cls, folder: str | Path) -> FrozenReference:
        """The denoiser of a model folder, frozen."""
        return cls(load_as(folder, MotionDenoiser)[0])

    def to(self, device: torch.device | str) -> None:
        """Move it."""
        self.denoiser.to(device)

    def check(self) -> None:
        """RuntimeError unless it is what it was when it was made."""
        if any(m.training for m in self.denoiser.modules()) or any(p.requires_grad for p in self.denoiser.parameters()):
            raise RuntimeError("the reference is not frozen any more: in training mode, or asking for gradients")
        if weights_digest(self.denoiser) != self.digest:
            raise RuntimeError("the reference's weights have changed")
