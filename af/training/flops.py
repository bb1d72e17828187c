"""Counting the work of a network: the floating point operations of its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


class Products(TorchDispatchMode):
    """Counts the floating point operations of matrix products, convolutions and attention while it is entered.

    torch's FlopCounterMode takes some operations apart, and a step counted with it rounds differently from any other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():  # where composed operations (linear) arrive whole
            with self:
                if (out := func.decompose(*args, **(kwargs or {}))) is not NotImplemented:
                    return out
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket
        if name in flop_registry:
            self.flops += flop_registry[name](*args, **(kwargs or {}), out_val=out)
        elif name is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            self.flops += sdpa_flop_count(*(x.shape for x in args[:3]))
        elif name is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self.flops += sdpa_backward_flop_count(*(x.shape for x in args[:4]))
        return out


def flops_of(work: Callable[[], object]) -> int:
    """Floating point operations of the products that `work()` executes."""
    with Products() as counter:
        work()
    return counter.flops
