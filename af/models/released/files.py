"""Safe reading of a released file: only tensors, nothing is executed, every key and shape is checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from af.errors import UserError
from af.models.artifact import require_finite
from af.models.building import layout_faults

#: A released checkpoint: the path of a .pth or .safetensors file, or its flat state dict.
Source = str | os.PathLike[str] | Mapping[str, Tensor]


def read_state(source: Source) -> Mapping[str, Tensor]:
    """The flat state dict of `source`. Raises UserError when there is none, or for non-finite numbers."""
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read safely as a checkpoint ({type(error).__name__}); is it whole?"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path}: not a flat state dict (names to tensors)")
    require_finite(state, str(path))
    return state


def check_layout(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], source: Source) -> None:
    """Raise UserError, listing every missing, unexpected and misshapen key of `state`, read from `source`."""
    if faults := layout_faults({key: tensor.shape for key, tensor in state.items()}, expected):
        name = "state dict" if isinstance(source, Mapping) else source
        raise UserError(
            f"{name}: not the released layout ({len(faults)} differences); is it the file you meant?\n  "
            + "\n  ".join(faults)
        )
