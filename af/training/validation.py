"""Validation means over all batches and ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def of_all_ranks(mine: Any) -> list[Any]:
    """A small value of every rank, in their order. Every rank must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [mine]
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, mine)
    return everybody


class RankMeans:
    """Weighted means by name, exchanged once at the end; ranks may have different names, or no samples.

    (If metrics synchronised one by one, ranks would hang when one of them lacked a name.)
    """

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[Tensor | float, Tensor | float]]] = {}

    def reset(self) -> None:
        """Forget everything."""
        self._seen = {}

    def add(self, name: str, value: Tensor | float, weight: Tensor | float) -> None:
        """Add a mean over `weight` items; weight 0 has no effect. Tensors stay on their device until `means`."""
        self._seen.setdefault(name, []).append((_kept(value), _kept(weight)))

    def means(self) -> dict[str, float]:
        """The means over all ranks. Every rank must call it."""
        everybody = of_all_ranks(self._sums())
        names = dict.fromkeys(name for sums in everybody for name in sums)
        found = {}
        for name in names:
            total, count = map(sum, zip(*(sums[name] for sums in everybody if name in sums), strict=True))
            found[name] = total / count
        return found

    def _sums(self) -> dict[str, tuple[float, float]]:
        """(sum, weight) of every name with data; in float64, on the host."""
        flat = [number for pairs in self._seen.values() for pair in pairs for number in pair]
        tensors = [number for number in flat if isinstance(number, Tensor)]
        # a single copy, to wait for the device once
        read = iter(torch.stack(tensors).cpu().double().tolist() if tensors else [])
        numbers = iter([next(read) if isinstance(number, Tensor) else number for number in flat])
        sums = {}
        for name, pairs in self._seen.items():
            known = [(value, weight) for value, weight in ((next(numbers), next(numbers)) for _ in pairs) if weight]
            if known:
                sums[name] = sum(value * weight for value, weight in known), sum(weight for _, weight in known)
        return sums


def _kept(number: Tensor | float) -> Tensor | float:
    return number.detach().float().reshape(()) if isinstance(number, Tensor) else float(number)
