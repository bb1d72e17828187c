"""Likeness of pictures: identity embeddings, PSNR, SSIM and L1."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from af.metrics.arrays import as_array, safe_divide


def csim(frames: Float[np.ndarray, "N E"], source: Float[np.ndarray, "#N E"]) -> Float[np.ndarray, " N"]:
    """Cosine of identity embeddings, each frame against the source portrait (one, or one per frame); NaN for zeros."""
    frames, source = np.atleast_2d(as_array(frames)), np.atleast_2d(as_array(source))
    return safe_divide((frames * source).sum(-1), np.linalg.norm(frames, axis=-1) * np.linalg.norm(source, axis=-1))


def psnr(
    generated: Float[Tensor, "B 3 Y X"], true: Float[Tensor, "B 3 Y X"], low: float = -1.0, high: float = 1.0
) -> float:
    """Peak signal-to-noise ratio in dB, per image, then mean; values clamped to [low, high]."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    generated, true = generated.clamp(low, high).double(), true.clamp(low, high).double()
    per_image = peak_signal_noise_ratio(generated, true, data_range=high - low, dim=(1, 2, 3), reduction="none")
    return float(per_image.mean())


def ssim(
    generated: Float[Tensor, "B 3 Y X"], true: Float[Tensor, "B 3 Y X"], low: float = -1.0, high: float = 1.0
) -> float:
    """Structural similarity (Gaussian window, σ 1.5), per image, then mean; values clamped to [low, high]."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    generated, true = generated.clamp(low, high).double(), true.clamp(low, high).double()
    value = structural_similarity_index_measure(generated, true, data_range=high - low)
    assert isinstance(value, torch.Tensor)
    return float(value)


def l1(generated: Float[Tensor, "B 3 Y X"], true: Float[Tensor, "B 3 Y X"]) -> float:
    """Mean absolute difference, in the images' own range."""
    return float((generated.double() - true.double()).abs().mean())
