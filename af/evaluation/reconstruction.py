"""Image similarity, and the reconstruction error of a motion autoencoder from another frame."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from af.data.index import Index
from af.data.shards import ShardReader
from af.images import image_array, image_tensor
from af.metrics.likeness import l1, psnr, ssim
from af.metrics.records import MetricRow
from af.models.autoencoder import MotionAutoencoder
from af.pipeline.encode import frames_at_once

Images = UInt8[np.ndarray, "B Y X 3"]
Network = Callable[[Tensor, Tensor], Tensor]
_KINDS: dict[str, tuple[Literal["lower", "higher"], str]] = {
    "psnr": ("higher", "dB, "), "ssim": ("higher", ""), "l1": ("lower", "range 0–1, "), "lpips": ("lower", "AlexNet, ")
}  # fmt: skip


@torch.inference_mode()
def reconstruction_rows(
    autoencoder: MotionAutoencoder,
    index: Index,
    *,
    people: str = "",
    pairs_per_clip: int = 4,
    seed: int = 0,
    lpips: Network | None = None,
) -> list[MetricRow]:
    """Rows `psnr` (dB), `ssim`, `l1` (range 0 … 1) and, with a network, `lpips`, of driving frames reconstructed from
    another frame of the same clip, for all people. Null: the source frame unchanged. `people` describes the people.

    `lpips` takes images in −1 … 1 and returns the mean over a batch.
    """
    reader, rng, batch = ShardReader(index), np.random.default_rng(seed), frames_at_once(autoencoder)
    device = next(autoencoder.parameters()).device
    sources, drivings = [], []
    for i in range(len(index.samples)):
        clip = reader.read(i, {"video"})
        for person in map(clip.person, index.samples[i].roles):
            assert person.video is not None
            for _ in range(pairs_per_clip):
                first, second = rng.choice(len(person.video), 2, replace=False)
                sources.append(person.video[first])
                drivings.append(person.video[second])
    totals: dict[str, dict[str, float]] = {"model": defaultdict(float), "copy": defaultdict(float)}
    for start in range(0, len(sources), batch):
        source, driving = np.stack(sources[start : start + batch]), np.stack(drivings[start : start + batch])
        output = autoencoder(image_tensor(source, device), image_tensor(driving, device)).image
        for side, images in (("model", image_array(output)), ("copy", source)):
            for name, value in likeness(images, driving, lpips, device).items():
                totals[side][name] += value * len(images) / len(sources)
    text = f"cross-frame{people and f', {people}'}; null: the source frame shown unchanged"
    return [
        MetricRow(n, v, n=len(sources), null=totals["copy"][n], protocol=_KINDS[n][1] + text, better=_KINDS[n][0])
        for n, v in totals["model"].items()
    ]


def likeness(
    images: Images, true: Images, lpips: Network | None = None, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """PSNR (dB), SSIM, L1 (range 0 … 1) and, with a network (run on `device`), LPIPS: means over the batch."""
    first, second = (image_tensor(side) for side in (images, true))
    values = {"psnr": psnr(first, second), "ssim": ssim(first, second), "l1": l1(first, second)}
    return values if lpips is None else values | {"lpips": float(lpips(first.to(device), second.to(device)))}


def frame_likeness(generated: Images, true: Images, side: int = 128) -> dict[str, float]:
    """`likeness` of videos of one length, shrunk to at most `side` pixels: means over frames."""
    import cv2

    height, width = true.shape[1:3]
    scale = min(1.0, side / max(height, width))
    size = (max(11, round(width * scale)), max(11, round(height * scale)))
    totals: dict[str, float] = defaultdict(float)
    for start in range(0, len(true), 16):
        both = (frames[start : start + 16] for frames in (generated, true))
        mine, theirs = (np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in part]) for part in both)
        for name, value in likeness(mine, theirs).items():
            totals[name] += value * len(mine) / len(true)
    return dict(totals)
