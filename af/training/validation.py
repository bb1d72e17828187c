"""Numbers of a validation, over all batches and ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class RankMeans:
    """Weighted means by name. Ranks may have seen different names, or no sample at all: one exchange at the end settles it.

    (Metrics that synchronise one by one would have ranks wait for each other when one of them lacks a name.)
    """

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[Tensor | float, Tensor | float]]] = {}

    def reset(self) -> None:
        """Forget everything."""
        self._seen = {}

    def add(self, name: str, value: Tensor | float, weight: Tensor | float) -> None:
        """A mean over `weight` things; one over nothing counts for nothing. Tensors stay on their device until `means`."""
        self._seen.setdefault(name, []).append((_kept(value), _kept(weight)))

    def means(self) -> dict[str, float]:
        """The means over all ranks, the same on each. Every rank must call it."""
        mine = self._sums()
        everybody = [mine]
        if dist.is_initialized() and dist.get_world_size() > 1:
            everybody = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(everybody, mine)
        names = dict.fromkeys(name for sums in everybody for name in sums)
        found = {}
        for name in names:
            total, count = map(sum, zip(*(sums[name] for sums in everybody if name in sums), strict=True))
            found[name] = total / count
        return found

    def _sums(self) -> dict[str, tuple[float, float]]:
        """(sum, weight) of every name that has seen something; summed up in float64, on the host."""
        flat = [number for pairs in self._seen.values() for pair in pairs for number in pair]
        tensors = [number for number in flat if isinstance(number, Tensor)]
        # one copy for all, so that a device is waited for once
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
