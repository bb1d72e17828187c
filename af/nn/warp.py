"""Warping one portrait's features by the flow of many frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from af.nn.precision import single


def base_grid(size: int, device: torch.device | None = None) -> Float[Tensor, "Y X 2"]:
    """(x, y) of every pixel, linspace(-1, 1, size) on both axes: the grid that flows are added to."""
    axis = torch.linspace(-1, 1, size, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y), -1)


def warp(features: Float[Tensor, "B C Y X"], grid: Float[Tensor, "N Y2 X2 2"]) -> Float[Tensor, "N C Y2 X2"]:
    """Sample each portrait's features bilinearly at the positions of its N / B frames; zero outside; at least fp32.

    The frames of a portrait are stacked into one tall grid, so its features are not copied per frame. Positions are in
    [-1, 1] with `align_corners=False`; the frames of portrait b start at row b * N/B of `grid`. Raises ValueError if N
    is not a multiple of B.
    """
    portraits, channels = features.shape[:2]
    frames, height, width = grid.shape[:3]
    if frames % portraits:
        raise ValueError(f"{frames} frames cannot be divided evenly among {portraits} portraits")
    tall = grid.reshape(portraits, -1, width, 2)
    # bfloat16 cannot hold a position to a fraction of a pixel, so sampling is never in half precision.
    features = single(features)
    sampled = F.grid_sample(
        features, tall.to(features.dtype), mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return sampled.permute(0, 2, 3, 1).reshape(frames, height, width, channels).permute(0, 3, 1, 2)
