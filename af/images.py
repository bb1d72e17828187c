"""Conversion between 8-bit images and the models' images in [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_float(images: UInt8[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Values 0 … 255 as float32 in [-1, 1], on the same axes and device."""
    return images.float().div_(127.5).sub_(1)


def to_bytes(images: Float[Tensor, "*B"]) -> UInt8[Tensor, "*B"]:
    """Values in [-1, 1] as 0 … 255, clamped and rounded, on the same axes and device."""
    return images.float().clamp(-1, 1).add_(1).mul_(127.5).round_().byte()


def image_tensor(frames: UInt8[np.ndarray, "T Y X 3"], device: torch.device | str = "cpu") -> Float[Tensor, "T 3 Y X"]:
    """Frames as the models' images on `device`, transferred as bytes."""
    # torch rejects views with negative strides (a camera's BGR as RGB) and warns about read-only ones (Pillow's)
    there = torch.from_numpy(np.require(frames, requirements=("C", "W"))).to(device, non_blocking=True)
    return to_float(there.permute(0, 3, 1, 2))


def image_array(images: Float[Tensor, "T 3 Y X"]) -> UInt8[np.ndarray, "T Y X 3"]:
    """The models' images as 8-bit frames, clamped and rounded."""
    return to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()
