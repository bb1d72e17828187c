"""The precision of a training: Lightning's name for it, chosen by the machine's speed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch
from lightning.pytorch.plugins.precision import DoublePrecision
from torch import Tensor

from af.errors import UserError
from af.nn.precision import choose

#: Precisions supported by the stages, by Lightning's names.
PRECISIONS: Final = {"auto": "auto", "32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"} | {
    name: name for name in ("32-true", "64-true", "16-mixed", "bf16-mixed")
}


def trainer_precision(wanted: str | int, accelerator: str) -> tuple[str, str]:
    """Lightning's name for a precision and, if worth a line, the reason: `auto` is bf16-mixed where the accelerator is
    fast in it, else 32-true; a requested bf16-mixed may be slow. Raises UserError for other precisions.
    """
    if str(wanted) not in PRECISIONS:
        raise UserError(f"trainer.precision: {wanted!r}; allowed: auto, 32-true, bf16-mixed, 16-mixed, 64-true")
    name = PRECISIONS[str(wanted)]
    if name not in ("auto", "bf16-mixed"):
        return name, ""
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device("cuda" if accelerator == "gpu" else accelerator)
    except RuntimeError:  # Lightning supports it (tpu) or refuses it by name
        return "32-true" if name == "auto" else name, ""
    chosen = choose("auto" if name == "auto" else "bf16", device)
    if name == "auto":
        return {"bf16": "bf16-mixed", "fp32": "32-true"}[chosen.name], chosen.reason
    return name, chosen.reason if "slow" in chosen.reason else ""


class Double(DoublePrecision):
    """Lightning's fp64, without its conversion of batches, which fails on frozen records (see `doubled`)."""

    def convert_input(self, data: Any) -> Any:
        """The unchanged batch."""
        return data


def doubled(batch: Any) -> Any:
    """A batch with its floating-point tensors in fp64."""
    tensors = {name: x for name, x in vars(batch).items() if isinstance(x, Tensor) and x.is_floating_point()}
    return replace(batch, **{name: x.double() for name, x in tensors.items()})
