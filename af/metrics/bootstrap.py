"""Bootstrap intervals for metrics that are functions of sums over clips.

A metric is two small functions: from a clip to a vector of sums, and from summed vectors to a value. Resampling clips
(or whole identities) is then one matrix product, and ranks of a distributed run add up the same sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval with the bootstrap standard error."""

    low: float
    high: float
    standard_error: float


def group_sums(
    sums: Float[np.ndarray, "N S"], groups: Sequence[str] | None
) -> tuple[Float[np.ndarray, "G S"], list[str]]:
    """Sums per group (identity), in order of first appearance; None = every clip is a group."""
    if groups is None:
        return sums, [str(i) for i in range(len(sums))]
    names = list(dict.fromkeys(groups))
    index = {name: i for i, name in enumerate(names)}
    total = np.zeros((len(names), sums.shape[1]))
    np.add.at(total, [index[g] for g in groups], sums)
    return total, names


def bootstrap_values(
    sums: Float[np.ndarray, "N S"],
    finish: Callable[[Float[np.ndarray, "... S"]], Float[np.ndarray, ...]],
    groups: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, " R"]:
    """Values of `finish` for `resamples` draws, with replacement, of clips (or groups). Same seed, same draws."""
    grouped, names = group_sums(sums, groups)
    n = len(names)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.asarray(finish(counts @ grouped), dtype=np.float64)


def bootstrap(
    sums: Float[np.ndarray, "N S"],
    finish: Callable[[Float[np.ndarray, "... S"]], Float[np.ndarray, ...]],
    groups: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval | None:
    """95 % percentile interval; None with fewer than two clips (groups), or if too few resamples have a value."""
    if len(set(groups) if groups is not None else sums) < 2:
        return None
    return interval_of(bootstrap_values(sums, finish, groups, resamples, seed))


def interval_of(values: Float[np.ndarray, " R"]) -> Interval | None:
    """Interval of bootstrap values; None if fewer than half of them are numbers."""
    finite = values[np.isfinite(values)]
    if len(finite) < max(2, len(values) // 2):
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return Interval(float(low), float(high), float(finite.std(ddof=1)))


def mean_sums(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
    """Per-clip values as (sum, count); clips without a value count 0."""
    values = np.asarray(values, np.float64)
    valid = np.isfinite(values)
    return np.stack([np.where(valid, values, 0.0), valid.astype(np.float64)], axis=-1)


def finish_mean(sums: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, ...]:
    """Mean from (sum, count); NaN without clips."""
    from af.metrics.arrays import safe_divide

    return safe_divide(sums[..., 0], sums[..., 1])
