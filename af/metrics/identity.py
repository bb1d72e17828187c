"""Likeness of pictures: identity embeddings, PSNR, SSIM and L1."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from af.metrics.arrays import as_array, safe_divide

MOST_PSNR: Final = 100.0  # dB


def csim(frames: Float[np.ndarray, "N E"], source: Float[np.ndarray, "#N E"]) -> Float[np.ndarray, " N"]:
    """Cosine of identity embeddings, each frame against the source portrait (one, or one per frame); NaN for zeros."""
    frames, source = np.atleast_2d(as_array(frames)), np.atleast_2d(as_array(source))
    return safe_divide((frames * source).sum(-1), np.linalg.norm(frames, axis=-1) * np.linalg.norm(source, axis=-1))


def decibels(squared_error: Float[Tensor, "*B"], data_range: float = 2.0) -> Float[Tensor, "*B"]:
    """Peak signal-to-noise ratio in dB of a mean squared error of images whose values span `data_range`."""
    return 10 * (data_range**2 / squared_error).log10()


def psnr(
    generated: Float[Tensor, "B 3 Y X"], true: Float[Tensor, "B 3 Y X"], low: float = -1.0, high: float = 1.0
) -> float:
    """Peak signal-to-noise ratio in dB, per image, then mean; values clamped to [low, high].

    That of equal images is infinite, and one pair would decide the mean: no image counts more than `MOST_PSNR`.
    """
    error = generated.clamp(low, high).double() - true.clamp(low, high).double()
    return float(decibels(error.square().mean((1, 2, 3)), high - low).clamp(max=MOST_PSNR).mean())


def ssim(
    generated: Float[Tensor, "B 3 Y X"], true: Float[Tensor, "B 3 Y X"], low: float = -1.0, high: float = 1.0
) -> float:
    """Structural similarity, per image, then mean; values clamped to [low, high].

    Gaussian window of 11 pixels, σ 1.5, edges reflected (K1 0.01, K2 0.03): equal to torchmetrics, but the window is
    applied along rows and columns in turn, many times faster on a CPU.
    """
    x, y = (images.clamp(low, high).float() - low for images in (generated, true))
    taps = torch.exp(-0.5 * ((torch.arange(11, device=x.device) - 5) / 1.5) ** 2)
    taps = taps / taps.sum()

    def blur(images: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(images, (5, 5, 5, 5), mode="reflect")
        rows = sum(tap * padded[..., i : i + images.shape[-1]] for i, tap in enumerate(taps.tolist()))
        assert isinstance(rows, Tensor)
        return sum(
            (tap * rows[..., i : i + images.shape[-2], :] for i, tap in enumerate(taps.tolist())), rows.new_zeros(())
        )

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = ((k * (high - low)) ** 2 for k in (0.01, 0.03))
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x.clamp_min(0) + variance_y.clamp_min(0) + c2)
    return float((light * structure).double().mean())


def l1(generated: Float[Tensor, "B 3 Y X"], true: Float[Tensor, "B 3 Y X"]) -> float:
    """Mean absolute difference, in the images' own range."""
    return float((generated.double() - true.double()).abs().mean())
