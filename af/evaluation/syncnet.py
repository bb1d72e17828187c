"""SyncNet's LSE-D and LSE-C: network and protocol, for weights supplied by the user.

Written from the public facts of joonson/syncnet_python (MIT) and the paper (Chung & Zisserman 2016): 25 fps, 16 kHz,
224 px face crops, windows of 5 frames against 20 MFCC steps, offsets ±15, averaged over time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.ndimage import median_filter
from torch import Tensor, nn

from af.clock import SAMPLE_RATE, SAMPLES_PER_FRAME
from af.errors import UserError
from af.evaluation.extractors import require_file, require_state_dict, to_tensor
from af.files import sha256_of
from af.ingest.landmarks import filled
from af.ingest.tracks import crop
from af.mel import mel_edges
from af.metrics.arrays import as_array, undefined

WINDOW, MFCC_WINDOW, MFCC_PER_FRAME, MAX_OFFSET, SIZE = 5, 20, 4, 15, 224


def _conv2d(inputs: int, outputs: int, kernel, padding) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU()]


def _conv3d(inputs: int, outputs: int, kernel, stride=1, padding=(0, 0, 0)) -> list[nn.Module]:
    return [nn.Conv3d(inputs, outputs, kernel, stride, padding), nn.BatchNorm3d(outputs), nn.ReLU()]


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))


class SyncNet(nn.Module):
    """Two towers into one 1024-dim space; parameter names are those of the released `syncnet_v2.model`."""

    version = "0"  # the first digits of the weights' SHA-256

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_conv2d(1, 64, 3, 1),
            nn.MaxPool2d(1, 1),
            *_conv2d(64, 192, 3, 1),
            nn.MaxPool2d(3, (1, 2)),
            *_conv2d(192, 384, 3, 1),
            *_conv2d(384, 256, 3, 1),
            *_conv2d(256, 256, 3, 1),
            nn.MaxPool2d(3, 2),
            *_conv2d(256, 512, (5, 4), 0),
        )
        self.netfcaud = _head()
        self.netcnnlip = nn.Sequential(
            *_conv3d(3, 96, (5, 7, 7), (1, 2, 2)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_conv3d(256, 512, (1, 6, 6)),
        )
        self.netfclip = _head()

    def audio(self, mfcc: Float[Tensor, "B 1 13 20"]) -> Float[Tensor, "B 1024"]:
        """Embedding of 0.2 s of audio."""
        return self.netfcaud(self.netcnnaud(mfcc).flatten(1))

    def lips(self, frames: Float[Tensor, "B 3 5 224 224"]) -> Float[Tensor, "B 1024"]:
        """Embedding of 5 frames: BGR, 0 … 255."""
        return self.netfclip(self.netcnnlip(frames).flatten(1))


def load_syncnet(path: Path | str | None, sha256: str | None = None) -> SyncNet:
    """Load SyncNet with the user's weights. Raises UserError saying what to fetch, or what does not fit."""
    fetch = "fetch syncnet_v2.model, named in download_model.sh of joonson/syncnet_python on GitHub"
    path = require_file(path, "LSE-D/LSE-C", fetch, sha256)
    network, state = SyncNet(), require_state_dict(path, "SyncNet weights")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: not SyncNet weights ({str(error).splitlines()[-1].strip()})") from error
    network.version = sha256_of(path)[:8]
    return network.eval()


def mfcc(audio: Float[np.ndarray, " S"]) -> Float[np.ndarray, "N 13"]:
    """13 mel-frequency cepstra every 10 ms (25 ms windows) of audio in [−1, 1], on the 16-bit scale.

    Pre-emphasis 0.97, 512-point power spectrum without window function, 26 filters 0 – 8 kHz, orthonormal DCT-II,
    liftering 22, the first cepstrum replaced by the log energy: the settings SyncNet was trained with.
    """
    from scipy.fft import dct

    signal = np.round(as_array(audio).ravel() * 32768.0).clip(-32768, 32767)
    if signal.size == 0:
        return np.zeros((0, 13))
    signal = np.append(signal[0], signal[1:] - 0.97 * signal[:-1])
    length, step = SAMPLE_RATE // 40, SAMPLE_RATE // 100
    count = 1 + max(0, int(np.ceil((len(signal) - length) / step)))
    padded = np.concatenate([signal, np.zeros(max(0, (count - 1) * step + length - len(signal)))])
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::step][:count]
    power = np.abs(np.fft.rfft(frames, 512, axis=1)) ** 2 / 512
    tiny = np.finfo(float).eps
    energy = power.sum(axis=1)
    bands = power @ _mel_filters()
    cepstra = dct(np.log(np.where(bands == 0, tiny, bands)), type=2, axis=1, norm="ortho")[:, :13]
    cepstra *= 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    cepstra[:, 0] = np.log(np.where(energy == 0, tiny, energy))
    return cepstra


def _mel_filters(count: int = 26, size: int = 512) -> Float[np.ndarray, "F M"]:
    """Triangles between FFT bins (edges rounded down to bins), 0 … 8 kHz."""
    edges = np.floor((size + 1) * mel_edges(count, 0, SAMPLE_RATE / 2) / SAMPLE_RATE).astype(int)
    filters = np.zeros((size // 2 + 1, count))
    for j in range(count):
        low, middle, high = edges[j : j + 3]
        filters[low:middle, j] = (np.arange(low, middle) - low) / (middle - low)
        filters[middle:high, j] = (high - np.arange(middle, high)) / (high - middle)
    return filters


@dataclass(frozen=True)
class SyncResult:
    """`lse_d` (smaller is better), `lse_c` (larger is better), the best offset in frames, the mean distances ±15."""

    distance: float
    confidence: float
    offset: int
    curve: Float[np.ndarray, " 31"]


def offset_curve(lips: Float[Tensor, "N E"], sound: Float[Tensor, "N E"]) -> Float[np.ndarray, " 31"]:
    """Distance between image and audio embeddings at offsets −15 … 15, averaged over time.

    As in the reference, audio embeddings beyond the ends are zero, and 1e-6 is added to each difference.
    """
    n = len(lips)
    padded = torch.nn.functional.pad(sound, (0, 0, MAX_OFFSET, MAX_OFFSET))
    steps = [
        torch.nn.functional.pairwise_distance(lips, padded[i : i + n]).double().mean()
        for i in range(2 * MAX_OFFSET + 1)
    ]
    return torch.stack(steps).numpy()


def lip_crops(
    frames: UInt8[np.ndarray, "T Y X 3"], boxes: Float[np.ndarray, "T 4"]
) -> UInt8[np.ndarray, "T 224 224 3"]:
    """What SyncNet's own program cuts out around face boxes (left, top, right, bottom; NaN: no face).

    Centre and s, half the longer side, are medians over 13 frames; the square reaches from 1.4 s left to 1.4 s right and
    from 1 s above to 1.8 s below the centre, with grey 110 beyond the frame. Frames without any face stay whole.
    """
    if not np.isfinite(boxes).all(1).any():
        return frames
    left, top, right, bottom = filled(boxes).T
    x, y, half = (
        median_filter(values, 13, mode="nearest")
        for values in ((left + right) / 2, (top + bottom) / 2, np.maximum(right - left, bottom - top) / 2)
    )
    pad = int(np.ceil(1.8 * half.max())) + 1
    padded = np.pad(frames, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=110)
    squares = np.stack([x - 1.4 * half + pad, y - half + pad, 2.8 * half], 1)
    return np.stack([crop(frame, square, SIZE) for frame, square in zip(padded, squares, strict=True)])


def lse(
    network: SyncNet, frames: UInt8[np.ndarray, "T Y X 3"], audio: Float[np.ndarray, " S"], batch: int = 20
) -> SyncResult:
    """LSE-D and LSE-C of one face-crop clip at 25 fps with 16 kHz audio.

    D = min over offsets of the time-averaged distance, C = median − min. Silent clips are uninformative: compare with
    shifted audio. NaN with a warning below 6 frames.
    """
    device = next(network.parameters()).device
    cepstra = torch.from_numpy(mfcc(audio)).float()
    last = min(len(frames), len(np.ravel(audio)) // SAMPLES_PER_FRAME) - WINDOW
    last = min(last, (len(cepstra) - MFCC_WINDOW) // MFCC_PER_FRAME + 1)
    if last < 1:
        undefined("lse", f"fewer than {WINDOW + 1} frames with sound")
        return SyncResult(np.nan, np.nan, 0, np.full(2 * MAX_OFFSET + 1, np.nan))
    images = to_tensor(frames[: last + WINDOW], SIZE).flip(1)  # BGR
    lips, sound = [], []
    with torch.no_grad():
        for start in range(0, last, batch):
            index = range(start, min(start + batch, last))
            seen = torch.stack([images[i : i + WINDOW].transpose(0, 1) for i in index])
            lips.append(network.lips(seen.to(device)).cpu())
            steps = [cepstra[i * MFCC_PER_FRAME : i * MFCC_PER_FRAME + MFCC_WINDOW].T[None] for i in index]
            sound.append(network.audio(torch.stack(steps).to(device)).cpu())
    curve = offset_curve(torch.cat(lips), torch.cat(sound))
    best = int(curve.argmin())
    return SyncResult(float(curve[best]), float(np.median(curve) - curve[best]), MAX_OFFSET - best, curve)
