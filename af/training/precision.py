"""The precision of a training: the name Lightning takes for it, decided by what the machine is fast in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch
from lightning.pytorch.plugins.precision import DoublePrecision
from torch import Tensor

from af.errors import UserError
from af.nn.precision import choose

#: Lightning's precisions that the stages are made for, by the names that it takes for them.
PRECISIONS: Final = {"auto": "auto", "32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"} | {
    name: name for name in ("32-true", "64-true", "16-mixed", "bf16-mixed")
}


def trainer_precision(wanted: str | int, accelerator: str) -> tuple[str, str]:
    """Lightning's name for a precision, and where it is worth a line, the reason: `auto` takes bf16-mixed where the
    accelerator is fast in it and 32-true elsewhere, and bf16-mixed that was asked for may be slow. UserError for others.
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
    except RuntimeError:  # Lightning knows it (tpu), or refuses it by its name
        return "32-true" if name == "auto" else name, ""
    chosen = choose("auto" if name == "auto" else "bf16", device)
    if name == "auto":
        return {"bf16": "bf16-mixed", "fp32": "32-true"}[chosen.name], chosen.reason
    return name, chosen.reason if "slow" in chosen.reason else ""


class Double(DoublePrecision):
    """Lightning's, which cannot convert batches that are frozen records: the data module does (`doubled`)."""

    def convert_input(self, data: Any) -> Any:
        """The batch as it is."""
        return data


def doubled(batch: Any) -> Any:
    """A batch with its floating-point tensors in fp64."""
    tensors = {name: x for name, x in vars(batch).items() if isinstance(x, Tensor) and x.is_floating_point()}
    return replace(batch, **{name: x.double() for name, x in tensors.items()})
