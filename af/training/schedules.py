"""Optimisers and learning-rate schedules for `optimizer:` and `scheduler:`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, Final

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from af.values import require_fraction, require_number

#: Devices whose optimisers are fused.
FUSED_ON: Final = ("cuda",)
_WAYS: Final = ("fused", "foreach", "capturable", "differentiable")
#: An optimiser without its parameters (`_partial_` in a configuration).
MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]
#: A schedule without its optimiser; it is stepped after every optimiser step.
MakeScheduler = Callable[[Optimizer], LRScheduler]


def constant(optimizer: Optimizer, *, warmup_steps: int = 0) -> LambdaLR:
    """The learning rate rises linearly over `warmup_steps`, then stays. Raises ValueError for a negative number."""
    return cosine(optimizer, total_steps=1, warmup_steps=warmup_steps, final_ratio=1.0)


def cosine(optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0, final_ratio: float = 0.0) -> LambdaLR:
    """The learning rate rises linearly over `warmup_steps`, then falls along a cosine to the share `final_ratio` at
    `total_steps`. Raises ValueError for values out of range.
    """
    require_number("total_steps", total_steps, least=1, whole=True)
    require_number("warmup_steps", warmup_steps, least=0, whole=True)
    require_fraction("final_ratio", final_ratio)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if final_ratio == 1.0 or total_steps <= warmup_steps:
            return 1.0
        progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
        return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def optimization(
    parameters: Iterable[Tensor], optimizer: MakeOptimizer, scheduler: MakeScheduler, *, fuse: bool = False
) -> dict[str, Any]:
    """The result of Lightning's `configure_optimizers` for one optimiser with a schedule over its steps.

    With `fuse` torch's optimisers take a step in one kernel where all parameters are on a GPU, unless it is said how.
    """
    found = list(parameters)
    options = inspect.signature(optimizer).parameters
    ways = [options[name].default for name in _WAYS if name in options]
    fused = fuse and len(ways) == len(_WAYS) and not any(ways) and all(p.device.type in FUSED_ON for p in found)
    made = optimizer(found, fused=True) if fused else optimizer(found)  # type: ignore[call-arg]
    return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler(made), "interval": "step"}}
