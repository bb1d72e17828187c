"""Floating-point operations executed by a network, and the peak rate of its device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from af.devices import synchronize


class FlopCounter(TorchDispatchMode):
    """Context that counts the operations of matrix products, convolutions and attention.

    torch's FlopCounterMode decomposes some operations, which changes the rounding of the counted step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():  # where composite operations (linear) arrive whole
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
    """Floating-point operations of `work()`."""
    with FlopCounter() as counter:
        work()
    return counter.flops


def seconds_of(work: Callable[[], object], seconds: float, device: torch.device | str = "cpu") -> list[float]:
    """Durations of calls within `seconds` (at least three) after a warm-up call; synchronises `device`."""
    device = torch.device(device)
    work()
    synchronize(device)
    measured: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(measured) < 3:
        start = time.perf_counter()
        work()
        synchronize(device)
        measured.append(time.perf_counter() - start)
    return measured


def matmul_gflops(
    dtype: torch.dtype = torch.float32,
    size: int | None = None,
    seconds: float = 1.0,
    device: torch.device | str = "cpu",
) -> float:
    """Peak rate of a square matrix product on `device`, in GFLOP/s.

    `size` defaults to 2048 (CPU) or 8192, or to the smallest power of two whose product takes 30 ms: on a CPU without
    instructions for `dtype` one of 2048 takes a minute.
    """

    def durations(size: int, seconds: float) -> list[float]:
        a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
        return seconds_of(lambda: a @ b, seconds, a.device)

    if size is None:
        size, largest = 128, 2048 if torch.device(device).type == "cpu" else 8192
        while size < largest and min(durations(size, 0.0)) < 0.03:
            size *= 2
    return 2 * size**3 / min(durations(size, seconds)) / 1e9
