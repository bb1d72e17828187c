"""Frozen networks that a stage compares with: the reference of a preference stage, the teacher of a light decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from af.errors import UserError
from af.models.artifact import load_as, weights_digest
from af.models.denoiser import MotionDenoiser
from af.specs import MotionSpec

Network = TypeVar("Network", bound=nn.Module)


def policy(folder: str | Path) -> MotionDenoiser:
    """The denoiser in a model folder, in training mode. Raises UserError for other models."""
    return load_as(folder, MotionDenoiser)[0].train()


def start_from(model: MotionDenoiser, folder: str | Path) -> MotionSpec | None:
    """Load weights and motion statistics of the denoiser in a model folder into `model`; returns its motion spec.
    Raises UserError for other layers.
    """
    found, artifact = load_as(folder, MotionDenoiser)
    weights, wanted = found.state_dict(), model.state_dict()
    names = dict.fromkeys([*wanted, *weights])
    if wrong := [n for n in names if n not in weights or n not in wanted or weights[n].shape != wanted[n].shape]:
        raise UserError(
            f"start: {folder} has other layers than the model to start (first: {wrong[0]}, {len(wrong)} in all); "
            "take model.* from its model.json"
        )
    model.load_state_dict(weights)
    spec = artifact.info.get("motion_spec")
    return None if spec is None else MotionSpec.from_json(spec)


class FrozenReference(Generic[Network]):
    """A network in eval mode without gradients, identified by the hash of its weights.

    It is not a module, so its weights enter no checkpoint, average or optimiser of its owner.
    """

    def __init__(self, network: Network) -> None:
        self.network = network.eval().requires_grad_(False)
        self.digest = weights_digest(network)

    @classmethod
    def load(cls, folder: str | Path) -> FrozenReference[MotionDenoiser]:
        """The denoiser of a model folder, frozen."""
        return FrozenReference(load_as(folder, MotionDenoiser)[0])

    def to(self, device: torch.device | str) -> None:
        """Move the network."""
        self.network.to(device)

    def check(self) -> None:
        """Raise RuntimeError if the network has changed."""
        if any(m.training for m in self.network.modules()) or any(p.requires_grad for p in self.network.parameters()):
            raise RuntimeError("the reference is no longer frozen: it is in training mode or requires gradients")
        if weights_digest(self.network) != self.digest:
            raise RuntimeError("the reference's weights have changed")
