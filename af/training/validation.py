"""Numbers of a validation, over all batches and ranks."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


class RankMeans:
    """Weighted means by name. Ranks may have seen different names, or no sample at all: one exchange at the end settles it.

    (Metrics that synchronise one by one would have ranks wait for each other when one of them lacks a name.)
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def reset(self) -> None:
        """Forget everything."""
        self._sums = {}

    def add(self, name: str, value: Tensor | float, weight: Tensor | float) -> None:
        """A mean over `weight` things; nothing happens at weight 0."""
        if float(weight) == 0:
            return
        total, count = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = total + float(value) * float(weight), count + float(weight)

    def means(self) -> dict[str, float]:
        """The means over all ranks, the same on each. Every rank must call it."""
        everybody = [self._sums]
        if dist.is_initialized() and dist.get_world_size() > 1:
            everybody = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(everybody, self._sums)
        names = dict.fromkeys(name for sums in everybody for name in sums)
        found = {}
        for name in names:
            total, count = map(sum, zip(*(sums[name] for sums in everybody if name in sums), strict=True))
            found[name] = total / count
        return found
