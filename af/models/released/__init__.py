"""Import of checkpoints released with the paper (your own copies), by `read_released`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from af.errors import UserError
from af.models.released import autoencoder, denoiser
from af.models.released.files import Source, read_state

LICENCE: Final = "CC-BY-NC-4.0"
LICENCE_NOTE: Final = (
    "The released weights are licensed CC BY-NC 4.0 (non-commercial, attribution). A converted file holds the same weights "
    "under the same licence."
)


@dataclass(frozen=True)
class Released:
    """A released checkpoint: `kind` "denoiser" or "autoencoder", the module, and its constructor call."""

    kind: str
    model: nn.Module
    config: dict[str, Any]


def read_released(source: Source) -> Released:
    """Read `flow_transformer.pth` or `motion_autoencoder.pth`; the keys decide which of them it is.

    The module is in evaluation mode, fp32. Raises UserError for other files, listing all wrong keys.
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
