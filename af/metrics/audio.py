"""Log-mel energies by video frame for the reaction gain: small, NumPy only, no relation to any model's features."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float

from af.clock import SAMPLE_RATE, SAMPLES_PER_FRAME
from af.metrics.arrays import as_array


@functools.cache
def _mel_filters(bands: int, size: int, low_hz: float = 80.0, high_hz: float = 7600.0) -> Float[np.ndarray, "F M"]:
    """Triangular filters, evenly spaced on the mel scale (2595 log10(1 + f/700)), over rfft bins."""
    to_mel, to_hz = (lambda f: 2595 * np.log10(1 + f / 700)), (lambda m: 700 * (10 ** (m / 2595) - 1))
    edges = to_hz(np.linspace(to_mel(low_hz), to_mel(high_hz), bands + 2))
    bins = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0.0)


def log_mel(audio: Float[np.ndarray, " S"], frames: int, bands: int = 8) -> Float[np.ndarray, "T M"]:
    """ln(mel energy + 1e-6) of each video frame's own 640 samples (Hann, 1024-point FFT), 80 – 7600 Hz.

    Audio is cut, or padded with silence, to `frames`. A frame's value uses no sample outside the frame.
    """
    padded = np.zeros(frames * SAMPLES_PER_FRAME)
    audio = as_array(audio).ravel()[: len(padded)]
    padded[: len(audio)] = audio
    windowed = padded.reshape(frames, SAMPLES_PER_FRAME) * np.hanning(SAMPLES_PER_FRAME)
    power = np.abs(np.fft.rfft(windowed, 1024, axis=1)) ** 2 / SAMPLES_PER_FRAME
    return np.log(power @ _mel_filters(bands, 1024) + 1e-6)
