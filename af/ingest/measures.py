"""What is measured of each person in a clip (`af.data.selection.MEASURES`): the face's image, pose, voice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8
from scipy.signal import lfilter, stft

from af.clock import SAMPLE_RATE, seconds_to_samples
from af.data.schema import other_role
from af.data.selection import Measured
from af.ingest.tracks import crop
from af.voice import speech_envelope, voiced_frames

SHOWN, SHOWN_PX = 6, 72  #: frames of a clip in the report, and their side
_SILENT_LUFS: Final = -70.0  # the absolute gate of BS.1770; nothing below it counts
_SIDE: Final = 128  # pixels of a measured face
_EVERY: Final = 5  # frames from one measured face to the next
_SEGMENT: Final = 4096  # samples: longer than the way of a voice from one microphone to the other
_FEWEST: Final = 16  # segments for an estimate of crosstalk
_LEAST_DB: Final = -60.0  # weaker crosstalk drowns in the estimate's error


class FaceLook:
    """Looks at the face of one person through a clip: some frames are measured, a few are shown."""

    def __init__(self, frames: int) -> None:
        self._shown_at = set(np.linspace(0, frames - 1, SHOWN).astype(int).tolist())
        self._next, self._measured, self._shown = 0, list[dict[str, float]](), list[np.ndarray]()

    def see(
        self, frame: UInt8[np.ndarray, "Y X 3"], box: Float64[np.ndarray, " 3"], face: UInt8[np.ndarray, "S S 3"]
    ) -> None:
        """The next frame, the box (x, y, side) of its crop, and the crop."""
        if self._next % _EVERY == 0:
            self._measured.append(look_at_face(frame, box))
        if self._next in self._shown_at:
            self._shown.append(cv2.resize(face, (SHOWN_PX, SHOWN_PX), interpolation=cv2.INTER_AREA))
        self._next += 1

    def measures(self) -> Measured:
        """Medians over the measured frames."""
        return {name: float(np.median([one[name] for one in self._measured])) for name in self._measured[0]}

    def strip(self) -> UInt8[np.ndarray, "Y X 3"]:
        """The shown frames side by side."""
        return np.concatenate(self._shown, 1)


def look_at_face(frame: UInt8[np.ndarray, "Y X 3"], box: Float64[np.ndarray, " 3"]) -> dict[str, float]:
    """`sharpness`, `brightness`, `contrast` of the middle half of a crop's box (x, y, side), `colour` of the middle of that:
    see `MEASURES`.

    Sharpness is the variance of the Laplacian (Pech-Pacheco et al. 2000) at a fixed size, so that it does not depend on
    the size of the crops; noise counts as sharp, too.
    """
    x, y, side = box
    face = crop(frame, np.array([x + side / 4, y + side / 4, side / 2]), _SIDE)
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    low, middle, high = np.percentile(grey, [5, 50, 95])
    inner = face[_SIDE // 4 : -_SIDE // 4, _SIDE // 4 : -_SIDE // 4]
    return {
        "sharpness": float(cv2.Laplacian(grey, cv2.CV_64F).var()),
        "brightness": float(middle),
        "contrast": float(high - low),
        "colour": float(np.median(np.ptp(inner, axis=2))),
    }


def pose_measures(pose: Float32[np.ndarray, "T 3+"] | None) -> Measured:
    """`yaw_deg`, `pitch_deg` and `roll_deg` of head poses that begin with yaw, pitch and roll in radians."""
    if pose is None or len(pose) == 0:
        return dict.fromkeys(("yaw_deg", "pitch_deg", "roll_deg"))
    degrees = np.degrees(pose[:, :3].astype(np.float64))
    low, high = np.percentile(degrees, [5, 95], axis=0)
    turned = np.percentile(np.abs(degrees[:, 0]), 95)
    return {"yaw_deg": float(turned), "pitch_deg": float(high[1] - low[1]), "roll_deg": float(high[2] - low[2])}


def rounded(measured: Measured) -> Measured:
    """To four digits."""
    return {name: None if value is None else float(f"{value:.4g}") for name, value in measured.items()}


def loudness_lufs(audio: Float32[np.ndarray, " S"]) -> float:
    """Integrated loudness in LUFS of 16 kHz mono (ITU-R BS.1770-4: K weighting, gated blocks of 0.4 s); -70 if silent.

    The filters are the standard's analogue prototypes for this rate (De Man 2018).
    """
    block, hop = seconds_to_samples(0.4), seconds_to_samples(0.1)
    weighted = audio.astype(np.float64)
    for b, a in _k_weighting():
        weighted = lfilter(b, a, weighted)
    weighted = np.pad(weighted, (0, max(0, block - len(weighted))))
    power = np.lib.stride_tricks.sliding_window_view(weighted**2, block)[::hop].mean(1)
    gate = _power_of(_SILENT_LUFS)
    if not (power > gate).any():
        return _SILENT_LUFS
    gate = max(gate, power[power > gate].mean() / 10)
    return float(10 * np.log10(power[power > gate].mean()) - 0.691)


def _power_of(lufs: float) -> float:
    return float(10 ** ((lufs + 0.691) / 10))


def _k_weighting() -> list[tuple[np.ndarray, np.ndarray]]:
    """(numerator, denominator) of the high shelf and the high-pass."""
    k, q, gain = np.tan(np.pi * 1681.974450955533 / SAMPLE_RATE), 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    edge = gain**0.4996667741545416
    shelf = np.array([gain + edge * k / q + k * k, 2 * (k * k - gain), gain - edge * k / q + k * k])
    below = np.array([1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k])
    k, q = np.tan(np.pi * 38.13547087602444 / SAMPLE_RATE), 0.5003270373238773
    low = np.array([1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k])
    return [(shelf / below[0], below / below[0]), (np.array([1.0, -2.0, 1.0]), low / low[0])]


def crosstalk_db(own: Float32[np.ndarray, " S"], other: Float32[np.ndarray, " S"]) -> float | None:
    """Level of the other's voice in `own`, in dB of its level in `other`: the part of `own` that is coherent with
    `other` while the other is the louder one. None where that is too short to tell; -60 at the least. Accurate to 1 dB
    above -30; below, chance likeness of two voices may count.
    """
    if not other.any():
        return None
    short = {"fs": SAMPLE_RATE, "nperseg": _SEGMENT, "boundary": None, "padded": False}
    if len(other) < _SEGMENT:
        return None
    x, y = (stft(audio, **short)[2].T for audio in (other, own))
    heard, back = (np.square(np.abs(spectrum)).sum(1) for spectrum in (x, y))
    louder = (heard >= back) & (heard > 0.01 * np.percentile(heard, 95))
    if (count := int(louder.sum())) < _FEWEST:
        return None
    x, y = x[louder], y[louder]
    source, found = np.square(np.abs(x)).mean(0), np.square(np.abs(y)).mean(0)
    both = np.square(np.abs((x.conj() * y).mean(0)))
    coherence = both / np.maximum(source * found, 1e-30)
    coherence = np.maximum(count * coherence - 1, 0) / (count - 1)  # unrelated segments have 1 / count by chance
    return max(_LEAST_DB, float(10 * np.log10(max((coherence * found).sum() / source.sum(), 1e-30))))


def voice_measures(
    audio: Mapping[str, Float32[np.ndarray, " S"]], role: str, frames: int, lag_s: float = 0.0
) -> Measured:
    """Loudness, voice activity and crosstalk of one person in a clip, from the audio of all by role.

    `lag_s`: how much later the second person's recording hears what both hear.
    """
    own = audio[role]
    other = audio.get(other_role(role))
    crosstalk = None
    if other is not None:
        late = seconds_to_samples(lag_s if role == "b" else -lag_s)
        count = len(own) - abs(late)
        crosstalk = crosstalk_db(own[max(0, late) :][:count], other[max(0, -late) :][:count])
    return {
        "loudness": loudness_lufs(own),
        "voice": float(voiced_frames(speech_envelope(own, frames)).mean()),
        "crosstalk": crosstalk,
    }
