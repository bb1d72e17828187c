"""Voice activity from the envelope of speech, without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from af.clock import SAMPLE_RATE, SAMPLES_PER_FRAME

if TYPE_CHECKING:  # the runtime of exports has no torch
    from torch import Tensor

    #: Audio samples: an array, or a tensor on the host.
    Audio = Float[np.ndarray, " S"] | Float[Tensor, " S"]

#: A frame is voiced when its envelope is at least this share of the clip's 95th percentile (−20 dB).
VOICED_SHARE = 0.1
#: ... and above this absolute level (−60 dB of full scale): a silent clip has no voiced frames.
SILENCE = 1e-3


def speech_envelope(audio: Audio, frames: int, cutoff_hz: float = 10.0) -> Float[np.ndarray, " T"]:
    """0 – `cutoff_hz` amplitude envelope of 16 kHz speech, sampled at the middle of each of `frames` video frames.

    Rectified, then low-passed forwards and backwards (4th-order Butterworth, no delay). Audio is cut or padded with
    silence to `frames`.
    """
    from scipy.signal import butter, sosfiltfilt

    samples = frames * SAMPLES_PER_FRAME
    padded = np.zeros(samples)
    audio = np.asarray(audio, np.float64).ravel()[:samples]
    padded[: len(audio)] = np.abs(audio)
    if frames == 0:
        return padded
    # Rates: 16 kHz -> 400 Hz by boxcar means (16 a frame), so that the low-pass is well conditioned and cheap.
    step = SAMPLES_PER_FRAME // 16
    coarse = padded.reshape(-1, step).mean(axis=1)
    sos = butter(4, cutoff_hz, fs=SAMPLE_RATE / step, output="sos")
    smooth = sosfiltfilt(sos, coarse, padtype="constant", padlen=min(len(coarse) - 1, 48))
    return np.maximum(smooth, 0.0).reshape(frames, 16)[:, 7:9].mean(axis=1)


def voiced_frames(envelope: Float[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    """Frames with speech: at least a tenth (−20 dB) of the clip's 95th percentile, and above −60 dB of full scale."""
    if envelope.size == 0:
        return np.zeros(0, bool)
    return envelope >= max(VOICED_SHARE * float(np.percentile(envelope, 95)), SILENCE)


def listening_frames(audio: Audio, frames: int, margin_frames: int = 12) -> Bool[np.ndarray, " T"]:
    """Frames in which the owner of the voice listens: no speech within `margin_frames` (half a second)."""
    from scipy.ndimage import binary_dilation

    return ~binary_dilation(voiced_frames(speech_envelope(audio, frames)), iterations=margin_frames)
