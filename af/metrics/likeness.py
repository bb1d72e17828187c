"""Image similarity: PSNR, SSIM, L1, sharpness, and identity embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from af.metrics.arrays import as_array, safe_divide
from af.metrics.base import ClipMetric, ClipTable
from af.metrics.bootstrap import bootstrap, finish_mean, mean_sums
from af.metrics.records import Better, EvaluationClip, MetricRow

MOST_PSNR: Final = 100.0  # dB


def csim(frames: Float[np.ndarray, "N E"], source: Float[np.ndarray, "#N E"]) -> Float[np.ndarray, " N"]:
    """Cosine of identity embeddings, each frame against the source portrait (one, or one per frame); NaN for zeros."""
    frames, source = np.atleast_2d(as_array(frames)), np.atleast_2d(as_array(source))
    return safe_divide((frames * source).sum(-1), np.linalg.norm(frames, axis=-1) * np.linalg.norm(source, axis=-1))


def decibels(squared_error: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Peak signal-to-noise ratio in dB of a mean squared error of images in [−1, 1]."""
    return 10 * (4 / squared_error).log10()


def psnr(generated: Float[Tensor, "B 3 Y X"], true: Float[Tensor, "B 3 Y X"]) -> float:
    """Peak signal-to-noise ratio in dB, per image, then mean; values clamped to [−1, 1].

    Equal images have infinite PSNR and would dominate the mean, so each image counts at most `MOST_PSNR`.
    """
    error = generated.clamp(-1, 1).double() - true.clamp(-1, 1).double()
    return float(decibels(error.square().mean((1, 2, 3))).clamp(max=MOST_PSNR).mean())


def ssim(generated: Float[Tensor, "B 3 Y X"], true: Float[Tensor, "B 3 Y X"]) -> float:
    """Structural similarity, per image, then mean; values clamped to [−1, 1].

    Gaussian window of 11 pixels, σ 1.5, edges reflected (K1 0.01, K2 0.03). Equal to torchmetrics, but much faster on a
    CPU, since the window is applied separately along rows and columns.
    """
    x, y = (images.clamp(-1, 1).float() + 1 for images in (generated, true))
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
    c1, c2 = ((k * 2) ** 2 for k in (0.01, 0.03))
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x.clamp_min(0) + variance_y.clamp_min(0) + c2)
    return float((light * structure).double().mean())


def l1(generated: Float[Tensor, "B 3 Y X"], true: Float[Tensor, "B 3 Y X"]) -> float:
    """Mean absolute difference of images in [−1, 1], as a share of that range (0 … 1)."""
    return float((generated.double() - true.double()).abs().mean()) / 2


class ClipValues(ClipMetric):
    """Means over clips of numbers given in `EvaluationClip.values`.

    A number N is stored as "N", or as "N/generated", "N/true" and "N/null".
    """

    #: {number: (better direction, value of a perfect copy, protocol)}.
    rows: ClassVar[Mapping[str, tuple[Better, float | None, str]]]

    of_faces = False

    def takes(self, clip: EvaluationClip) -> bool:
        """Whether the clip has one of the numbers."""
        return bool(self._own(clip))

    def _own(self, clip: EvaluationClip) -> dict[str, float]:
        return {key: value for key, value in clip.values.items() if key.split("/")[0] in self.rows}

    def measure(self, clip: EvaluationClip) -> dict[str, float]:
        """The clip's numbers."""
        return self._own(clip)

    def tag(self, name: str) -> str:
        """The tag of a number's row."""
        return name

    def tabulate(self, table: ClipTable) -> None:
        """One row per number."""

        def column(key: str) -> Float[np.ndarray, " N"]:
            return np.array([record.arrays.get(key, np.nan) for record in table.records], np.float64)

        for record in table.records:
            table.result.per_clip[record.name] |= {key: float(value) for key, value in record.arrays.items()}
        for name, (better, perfect, protocol) in self.rows.items():
            own, true, null = (column(f"{name}/{side}") for side in ("generated", "true", "null"))
            own = column(name) if name in table else own
            sums = mean_sums(own[np.isfinite(own)])
            if not len(sums):
                continue
            truth, broken = (float(finish_mean(mean_sums(side).sum(0))) for side in (true, null))
            table.row(
                MetricRow(
                    self.tag(name),
                    float(finish_mean(sums.sum(0))),
                    bootstrap(sums, finish_mean, None, self.resamples, self.seed),
                    len(sums),
                    truth if np.isfinite(truth) else perfect,
                    broken if np.isfinite(broken) else None,
                    f"{protocol}; mean over clips",
                    better,
                )
            )


class Likeness(ClipValues):
    """`psnr`, `ssim`, `l1` and `sharpness` of generated videos."""

    rows: ClassVar = {
        "psnr": ("higher", None, "dB, frame by frame against the true video, at most 128 px"),
        "ssim": ("higher", 1.0, "frame by frame against the true video, at most 128 px"),
        "l1": ("lower", 0.0, "range 0–1, frame by frame against the true video, at most 128 px"),
        "sharpness": ("true", None, "variance of the Laplacian, grey 0–255, at most 512 px"),
    }
    on_card = ("psnr", "ssim")


class Identity(ClipValues):
    """`csim/<embedder>/vs_source`."""

    needs: ClassVar = {"csim": "videos and an identity embedder"}
    rows: ClassVar = {"csim": ("higher", None, "cosine to the source portrait, else to the first true frame")}
    on_card = ("csim/generated",)

    def __init__(self, embedder: str | None = None, **draws: int) -> None:
        super().__init__(**draws)
        self.embedder = embedder

    def tag(self, name: str) -> str:
        """The tag, with the embedder's name if known."""
        return f"{name}/{self.embedder}/vs_source" if self.embedder else name


_SYNCNET = "SyncNet, 25 fps, 16 kHz, 224 px, offsets ±15; null: audio half a clip off"


class SyncDistances(ClipValues):
    """`lse_d` and `lse_c` of SyncNet (`af.evaluation.syncnet`), and its best offset."""

    needs: ClassVar = dict.fromkeys(("lse_d", "lse_c"), "videos with sound and SyncNet's weights")
    rows: ClassVar = {
        "lse_d": ("lower", None, _SYNCNET),
        "lse_c": ("higher", None, _SYNCNET),
        "lse_offset": ("true", None, f"best offset, frames, as its own program prints it; {_SYNCNET}"),
    }
    on_card = ("lse_d/generated", "lse_c/generated")

    def __init__(self, crop: str = "frames as they are", **draws: int) -> None:
        super().__init__(**draws)
        self.rows = {name: (*row[:2], f"{row[2]}; {crop}") for name, row in type(self).rows.items()}  # type: ignore[misc]
