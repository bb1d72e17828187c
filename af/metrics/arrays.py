"""Missing values: NaN with a warning that gives the reason, and means that ignore NaN."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

Array = Float[np.ndarray, "..."]
Clip = Float[np.ndarray, "T D"]


class UndefinedMetricWarning(UserWarning):
    """A metric has no value for this input; the text names the metric and the reason."""


def undefined(metric: str, reason: str) -> float:
    """NaN, after a warning with the reason why `metric` has no value (never a silent 0)."""
    warnings.warn(f"{metric}: {reason}; the value is NaN", UndefinedMetricWarning, stacklevel=3)
    return float("nan")


def as_array(values: np.ndarray | Tensor | Sequence[float]) -> Array:
    """Any array, tensor or list of numbers as float64 NumPy."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()  # bfloat16 has no NumPy type
    return np.asarray(values, dtype=np.float64)


def safe_divide(numerator: Array, denominator: Array, fill: float = np.nan) -> Array:
    """Quotient with NaN (or `fill`) where the denominator is 0, without NumPy's warnings."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.full(shape, fill), where=denominator != 0)


def nan_mean(values: Array) -> Array:
    """Mean over the last axis, ignoring NaN; NaN if there are no values, without a warning."""
    valid = np.isfinite(values)
    count = valid.sum(axis=-1)
    total = np.where(valid, values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def nan_max(values: Array) -> Array:
    """Maximum over the last axis, ignoring NaN; NaN if there are no values, without a warning."""
    best = np.where(np.isnan(values), -np.inf, values).max(axis=-1)
    return np.where(np.isfinite(best), best, np.nan)


def r_squared(true: Float[np.ndarray, "N P"], found: Float[np.ndarray, "N P"]) -> Float[np.ndarray, " P"]:
    """R² of each column: 1 is exact, 0 as good as the mean, below 0 worse. NaN where the truth is constant."""
    spread = true.var(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, 1 - np.square(true - found).mean(0) / spread, np.nan)
