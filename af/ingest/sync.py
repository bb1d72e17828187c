"""How far two recordings of the same instants are apart: lips against a voice, and two sounds that share one.

Estimates are for reports: nothing is shifted by them. None where they are not sure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64
from scipy.fft import irfft, next_fast_len, rfft
from scipy.ndimage import gaussian_filter1d

from af.clock import FPS, SAMPLE_RATE, frames_to_samples, frames_to_seconds

_HZ: Final = 100  # steps a second of the bands
_BANDS: Final = 16
_SHORTEST_S: Final = 6.0
_SHORTEST_LIPS_S: Final = 8.0


@dataclass(frozen=True)
class Lag:
    """`seconds` by which the second recording is late; `sureness` is the height of the peak in standard deviations of
    the correlation at other lags.
    """

    seconds: float
    sureness: float


def voice_changes(sound: Float32[np.ndarray, " S"], frames: int) -> Float64[np.ndarray, " T"]:
    """How much the loudness (log) changes around each frame: syllables begin and end when lips move."""
    fitted = np.pad(sound[: frames_to_samples(frames)], (0, max(0, frames_to_samples(frames) - len(sound))))
    energy = (fitted.reshape(frames, -1).astype(np.float64) ** 2).mean(1)
    return np.abs(np.gradient(np.log10(energy + 1e-6))) if frames > 1 else np.zeros(frames)


def _contours(lips: np.ndarray, voice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    def contour(values: np.ndarray) -> np.ndarray:  # syllables stay, noise and slow changes go
        smooth = gaussian_filter1d(values, 1.5) - gaussian_filter1d(values, 12.0)
        return (smooth - smooth.mean()) / max(float(smooth.std()), 1e-9)

    return contour(np.log(lips + 0.1)), contour(voice)


def _correlation(one: np.ndarray, other: np.ndarray, reach: int) -> Float64[np.ndarray, " L"]:
    """Of frames that both have, with `other` late by -reach..reach steps."""
    n = len(one)
    pairs = (
        (one[max(0, -lag) : n - max(0, lag)], other[max(0, lag) : n - max(0, -lag)]) for lag in range(-reach, reach + 1)
    )
    return np.array([float((x * y).mean()) for x, y in pairs])


def lips_follow(lips: Float64[np.ndarray, " T"], voice: Float64[np.ndarray, " T"]) -> float:
    """Correlation of what moves in a face with `voice_changes`, the best within a quarter of a second; 0 for a still one."""
    if len(lips) < 2 * FPS or not lips.std() or not voice.std():
        return 0.0
    return float(_correlation(*_contours(lips, voice), FPS // 4).max())


def lip_lag(lips: Float64[np.ndarray, " T"], voice: Float64[np.ndarray, " T"]) -> Lag | None:
    """How late the voice is against the lips, up to a second.

    Sure when the whole recording has a clear peak and both of its halves have theirs at the same place.
    """
    if len(lips) < FPS * _SHORTEST_LIPS_S or not lips.std() or not voice.std():
        return None
    contours = _contours(lips, voice)
    reach = FPS
    whole, place, height = _peak(_correlation(*contours, reach), apart=FPS // 4)
    middle = len(lips) // 2
    halves = [
        _correlation(contours[0][half], contours[1][half], reach) for half in (slice(middle), slice(middle, None))
    ]
    agree = all(abs(int(h.argmax()) - reach - place) <= 2 for h in halves)
    return Lag(frames_to_seconds(place), whole) if agree and whole >= 4.5 and height >= 0.2 else None


def _peak(correlation: np.ndarray, apart: int) -> tuple[float, int, float]:
    """(height in standard deviations of what is further away than `apart`, lag, height)."""
    reach = len(correlation) // 2
    at = int(correlation.argmax())
    rest = correlation[np.abs(np.arange(len(correlation)) - at) > apart]
    return float((correlation[at] - rest.mean()) / max(float(rest.std()), 1e-9)), at - reach, float(correlation[at])


def shared_lag(
    one: Float32[np.ndarray, " S"], other: Float32[np.ndarray, " R"], reach_s: float = 10.0
) -> tuple[Lag | None, float | None]:
    """(how late what both sounds hold is in the other, drift): a voice that reached both microphones.

    Drift is the change of the lag per second, from the first and last thirds, where both are sure. Loudness in bands is
    compared, so that codecs, microphones and a slow drift do not matter; to 10 ms.
    """
    bands = [_band_changes(sound) for sound in (one, other)]
    steps = min(map(len, bands))
    if steps < _SHORTEST_S * _HZ:
        return None, None
    bands = [b[:steps] for b in bands]
    lag = _bands_lag(bands[0], bands[1], int(min(reach_s * _HZ, steps // 3)))
    if lag is None:
        return None, None
    third = steps // 3
    ends = [_bands_lag(bands[0][p], bands[1][p], min(third // 3, 2 * _HZ)) for p in (slice(third), slice(-third, None))]
    if ends[0] is None or ends[1] is None or abs(lag.seconds) > min(third // 3, 2 * _HZ) / _HZ:
        return lag, None
    return lag, (ends[1].seconds - ends[0].seconds) / ((steps - third) / _HZ)


def _band_changes(sound: Float32[np.ndarray, " S"]) -> Float32[np.ndarray, "T bands"]:
    """Changes of the log loudness of bands from 100 to 4,000 Hz, of unit variance, a hundred a second."""
    hop, window = SAMPLE_RATE // _HZ, 512
    count = max(0, (len(sound) - window) // hop + 1)
    edges = np.geomspace(100, 4000, _BANDS + 1) * window / SAMPLE_RATE
    out = np.zeros((count, _BANDS), np.float32)
    shape, frames = np.hanning(window).astype(np.float32), np.arange(window)
    for start in range(0, count, 6000):  # a minute at a time
        rows = np.arange(start, min(start + 6000, count))
        power = np.abs(rfft(sound[rows[:, None] * hop + frames] * shape)) ** 2
        for band in range(_BANDS):
            low = round(edges[band])
            out[rows, band] = power[:, low : max(low + 1, round(edges[band + 1]))].mean(1)
    change = np.diff(np.log(out + 1e-7), axis=0)
    spread = np.maximum(change.std(0), 1e-6)
    return np.clip(change / spread, -3, 3)


def _bands_lag(one: np.ndarray, other: np.ndarray, reach: int) -> Lag | None:
    size = next_fast_len(len(one) + reach)
    product = (np.conj(rfft(one, size, axis=0)) * rfft(other, size, axis=0)).sum(1)
    whole = irfft(product, size)
    sureness, place, _ = _peak(np.concatenate([whole[-reach:], whole[: reach + 1]]), apart=_HZ // 5)
    return Lag(place / _HZ, sureness) if sureness >= 8 else None
