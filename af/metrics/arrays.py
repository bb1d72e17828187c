"""What every metric does with its input: clips as float64 arrays, checked against each other; NaN with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

Array = Float[np.ndarray, "..."]
Clip = Float[np.ndarray, "T D"]
#: What callers may pass: a list of (T_i, D) or (T_i,) arrays or tensors, or one such array.
Clips = Sequence[np.ndarray | Tensor] | np.ndarray | Tensor


class UndefinedMetricWarning(UserWarning):
    """A metric has no value for this input; the text says which metric and why."""


def undefined(metric: str, reason: str) -> float:
    """NaN, after a warning that says why `metric` has no value (never a silent 0)."""
    warnings.warn(f"{metric}: {reason}; the value is NaN", UndefinedMetricWarning, stacklevel=3)
    return float("nan")


def as_array(values: np.ndarray | Tensor | Sequence[float]) -> Array:
    """Any array, tensor or list of numbers as float64 NumPy."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()  # bfloat16 has no NumPy type
    return np.asarray(values, dtype=np.float64)


def as_clips(clips: Clips, name: str = "clips") -> list[Clip]:
    """A list of float64 (T_i, D) arrays. A single array is one clip (2-D) or a batch of clips (3-D); 1-D series get D = 1.

    Raises ValueError, naming `name` and the clip, when a clip is not 1-D or 2-D or when D differs between clips.
    """
    if isinstance(clips, np.ndarray | Tensor):
        array = as_array(clips)
        clips = list(array) if array.ndim == 3 else [array]
    result: list[Clip] = []
    for i, clip in enumerate(clips):
        array = as_array(clip)
        if array.ndim == 1:
            array = array[:, None]
        if array.ndim != 2:
            raise ValueError(f"{name}[{i}] must be (frames, dims), got shape {array.shape}")
        if result and array.shape[1] != result[0].shape[1]:
            raise ValueError(f"{name}[{i}] has {array.shape[1]} dims where {name}[0] has {result[0].shape[1]}")
        result.append(array)
    return result


def as_paired(**named: Clips) -> list[list[Clip]]:
    """`as_clips` of several arguments that belong together frame by frame.

    Raises ValueError naming argument and clip when the number of clips or of frames differs.
    """
    lists = {name: as_clips(clips, name) for name, clips in named.items()}
    first, reference = next(iter(lists.items()))
    for name, clips in lists.items():
        if len(clips) != len(reference):
            raise ValueError(f"{name} has {len(clips)} clips where {first} has {len(reference)}")
        for i, (clip, other) in enumerate(zip(clips, reference, strict=True)):
            if len(clip) != len(other):
                raise ValueError(f"{name}[{i}] has {len(clip)} frames where {first}[{i}] has {len(other)}")
    return list(lists.values())


def same_dims(**named: list[Clip]) -> None:
    """Raises ValueError naming the argument whose clips have another number of dims than the first argument's."""
    (first, reference), *others = named.items()
    for name, clips in others:
        if clips and reference and clips[0].shape[1] != reference[0].shape[1]:
            raise ValueError(f"{name} has {clips[0].shape[1]} dims where {first} has {reference[0].shape[1]}")


def left_out(metric: str, missing: int, count: int, reason: str, what: str = "clips") -> None:
    """A warning that the metric's value is that of the others."""
    warnings.warn(f"{metric}: {missing} of {count} {what} left out: {reason}", UndefinedMetricWarning, stacklevel=3)


def mean_of_defined(metric: str, values: Array, reason: str, what: str = "clips") -> float:
    """Mean of the values that are not NaN; a warning says how many are left out, or why there is none at all."""
    values = np.asarray(values, np.float64)
    missing = int(np.isnan(values).sum())
    if missing == len(values):
        return undefined(metric, reason if missing else f"no {what}")
    if missing:
        left_out(metric, missing, len(values), reason, what)
    return float(np.nanmean(values))


def safe_divide(numerator: Array, denominator: Array, fill: float = np.nan) -> Array:
    """Quotient with NaN (or `fill`) where the denominator is 0, without NumPy's warnings."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.full(shape, fill), where=denominator != 0)


def nan_mean(values: Array) -> Array:
    """Mean over the last axis of the values that are not NaN; NaN without one, no warning."""
    valid = np.isfinite(values)
    count = valid.sum(axis=-1)
    total = np.where(valid, values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def nan_max(values: Array) -> Array:
    """Largest value over the last axis, NaN left out; NaN without one, no warning."""
    best = np.where(np.isnan(values), -np.inf, values).max(axis=-1)
    return np.where(np.isfinite(best), best, np.nan)
