"""Checkpoints released with the paper (your own copies), read into our modules by `read_released`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from af.errors import UserError
from af.models.released import autoencoder, denoiser
from af.models.released.files import Source, read_state

LICENCE_NOTE: Final = (
    "The released weights are licensed CC BY-NC 4.0 (non-commercial, attribution). A converted file is the same weights "
    "under the same licence."
)


@dataclass(frozen=True)
class Released:
    """A released checkpoint: `kind` "denoiser" or "autoencoder", the module, and the constructor call that makes it."""

    kind: str
    model: nn.Module
    config: dict[str, Any]


def read_released(source: Source) -> Released:
    """The checkpoint in `flow_transformer.pth` or `motion_autoencoder.pth`, which of them its keys say.

    Evaluation mode, fp32. UserError for another file, or listing every missing, unexpected and misshapen key.
    """
    state = read_state(source)
    if any(key.startswith(denoiser.PREFIX) for key in state):
        return Released("denoiser", denoiser.read_denoiser(state), denoiser.ReleasedSizes().config())
    if any(key.startswith(autoencoder.PREFIX) for key in state):
        return Released("autoencoder", autoencoder.read_autoencoder(state), dict(autoencoder.CONFIG))
    name = "state dict" if isinstance(source, Mapping) else source
    raise UserError(
        f"{name}: neither flow_transformer.pth nor motion_autoencoder.pth (its first key: {next(iter(state), None)})"
    )
