"""The mel scale, 2595 log10(1 + f/700), and its triangular filters."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from af.clock import SAMPLE_RATE


def mel_edges(bands: int, low_hz: float, high_hz: float) -> Float[np.ndarray, " E"]:
    """The corner frequencies of `bands` triangles, evenly spaced on the mel scale: bands + 2 values, in Hz."""
    low, high = 2595 * np.log10(1 + np.array([low_hz, high_hz]) / 700)
    return 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)


def mel_filters(bands: int, size: int, low_hz: float, high_hz: float = 7600.0) -> Float[np.ndarray, "F M"]:
    """Triangular filters of unit peak over the bins of an rfft of `size` samples at 16 kHz."""
    edges, bins = mel_edges(bands, low_hz, high_hz), np.fft.rfftfreq(size, 1 / SAMPLE_RATE)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0.0)
