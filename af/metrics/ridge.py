"""Ridge regression, also on lagged inputs, by a Gram matrix built without stacking the lags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from af.metrics.arrays import Clip


def fit_ridge(
    x: Float[np.ndarray, "N I"], y: Float[np.ndarray, "N O"], strength: float = 1e-3
) -> tuple[Float[np.ndarray, "I O"], Float[np.ndarray, " O"]]:
    """Weights and offset of the affine map x -> y; the penalty is `strength` times the inputs' mean variance."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    gram = centred.T @ centred / len(x)
    gram += strength * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram, centred.T @ (y - mean_y) / len(x))
    return weights, mean_y - mean_x @ weights


@dataclass(frozen=True)
class LaggedGram:
    """XᵀX, Xᵀy and yᵀy for X[t] = [f(t−1), …, f(t−L)] (lag-major columns) over frames t = L … T−1 of clips.

    Grams can be added and subtracted, so leaving out a fold is one subtraction.
    """

    xx: Float[np.ndarray, "LC LC"]
    xy: Float[np.ndarray, "LC P"]
    yy: float
    frames: int

    @classmethod
    def of_clips(cls, inputs: Sequence[Clip], targets: Sequence[Clip], lags: int) -> LaggedGram:
        """Exact sums over clips of (T_i, C) inputs and (T_i, P) targets, each clip of at least `lags` + 1 frames.

        XᵀX is nearly Toeplitz: block (i+1, j+1) is block (i, j) plus the products at the clip's head minus those at its
        tail. Only the first row is summed over frames, which reduces the cost by a factor L.
        """
        channels, outputs = inputs[0].shape[1], targets[0].shape[1]
        row = np.zeros((lags, channels, channels))  # block (lag 1, lag j)
        xy = np.zeros((lags, channels, outputs))
        yy, frames = 0.0, 0
        heads, tails = [], []
        for f, y in zip(inputs, targets, strict=True):
            last = len(f)
            # windows[s, j] = f(s + L − 1 − j): lag j + 1 before frame s + L
            windows = np.lib.stride_tricks.sliding_window_view(f, lags, axis=0)[: last - lags, :, ::-1]
            lagged = windows.transpose(0, 2, 1).reshape(last - lags, lags * channels)
            row += (f[lags - 1 : last - 1].T @ lagged).reshape(channels, lags, channels).transpose(1, 0, 2)
            xy += (lagged.T @ y[lags:]).reshape(lags, channels, outputs)
            yy += float(np.square(y[lags:]).sum())
            frames += last - lags
            # From lag i to i+1 the summed frames move back by one: f(L−1−i) enters, f(T−1−i) leaves.
            heads.append(f[lags - 2 :: -1][: lags - 1] if lags > 1 else f[:0])
            tails.append(f[last - 2 : last - 1 - lags : -1][: lags - 1] if lags > 1 else f[:0])
        size = lags * channels
        xx = np.zeros((lags, channels, lags, channels))
        xx[0] = row.transpose(1, 0, 2)
        if lags > 1:
            head, tail = (np.stack(part).reshape(len(inputs), -1) for part in (heads, tails))
            change = (head.T @ head - tail.T @ tail).reshape(lags - 1, channels, lags - 1, channels)
            xx[:, :, 0] = row.transpose(0, 2, 1)
            for i in range(lags - 1):
                xx[i + 1, :, 1:] = xx[i, :, :-1] + change[i]
        return cls(xx.reshape(size, size), xy.reshape(size, outputs), yy, frames)

    def __add__(self, other: LaggedGram) -> LaggedGram:
        return LaggedGram(self.xx + other.xx, self.xy + other.xy, self.yy + other.yy, self.frames + other.frames)

    def __sub__(self, other: LaggedGram) -> LaggedGram:
        return LaggedGram(self.xx - other.xx, self.xy - other.xy, self.yy - other.yy, self.frames - other.frames)

    def error(self, weights: Float[np.ndarray, "LC P"]) -> float:
        """Sum of squared errors of `weights` on these clips."""
        return float(self.yy - 2 * np.sum(weights * self.xy) + np.sum(weights * (self.xx @ weights)))


def solve_ridge(gram: LaggedGram, blocks: Sequence[tuple[Int[np.ndarray, " C"], float]]) -> Float[np.ndarray, "LC P"]:
    """Weights over all columns; 0 outside `blocks`.

    Each block of columns has its own penalty, its strength times the mean squared norm of its columns: adding a block
    with a large strength changes nothing.
    """
    from scipy.linalg import cho_factor, cho_solve

    columns = np.concatenate([block for block, _ in blocks])
    norms = np.diagonal(gram.xx)
    penalty = [np.full(len(block), strength * max(float(norms[block].mean()), 1e-12)) for block, strength in blocks]
    xx = gram.xx[np.ix_(columns, columns)]
    xx[np.diag_indices_from(xx)] += np.concatenate(penalty)
    weights = np.zeros_like(gram.xy)
    weights[columns] = cho_solve(cho_factor(xx, lower=True, overwrite_a=True, check_finite=False), gram.xy[columns])
    return weights


def lagged_filter(signal: Clip, weights: Float[np.ndarray, "L C P"]) -> Float[np.ndarray, "T P"]:
    """Σ_j signal(t − 1 − j) · weights[j], wrapping around the clip's end (circular)."""
    lags = len(weights)
    wrapped = np.concatenate([signal[-lags:], signal])[: len(signal) + lags - 1]
    windows = np.lib.stride_tricks.sliding_window_view(wrapped, lags, axis=0)[:, :, ::-1]
    return windows.transpose(0, 2, 1).reshape(len(signal), -1) @ weights.reshape(-1, weights.shape[2])


def fold_of_groups(groups: Sequence[str], folds: int) -> Int[np.ndarray, " N"]:
    """Fold of each clip, with whole groups in one fold; groups are distributed by size, largest first."""
    names, counts = np.unique(list(groups), return_counts=True)
    folds = min(folds, len(names))
    load, fold = np.zeros(folds), {}
    for i in np.argsort(-counts, kind="stable"):
        fold[names[i]] = int(load.argmin())
        load[load.argmin()] += counts[i]
    return np.array([fold[g] for g in groups])
