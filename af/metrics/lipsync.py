"""Lip sync without a network: correlation of mouth opening with the speech envelope and with the true mouth."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from af.clock import FPS, SAMPLES_PER_FRAME
from af.metrics.arrays import as_array
from af.metrics.base import ClipMetric, ClipTable
from af.metrics.coupling import curve_sums, lag_rows, lagged_pearson
from af.metrics.records import EvaluationClip
from af.types import FaceSpec
from af.voice import speech_envelope, voiced_frames

#: Possible names of the mouth-opening parameter, by tracker.
MOUTH_NAMES = ("mouth_open", "jawOpen", "jaw_open")

#: One value per frame, or audio samples: an array or a tensor.
Series = Float[np.ndarray, " N"] | Float[Tensor, " N"]


def lip_curve(mouth: Series, audio: Series, max_lag: int = 10) -> Float[np.ndarray, " L"]:
    """Pearson of mouth[t + lag] with envelope[t] over voiced frames t, lags −max_lag … max_lag; NaN if undefined."""
    mouth = as_array(mouth).ravel()
    if len(mouth) < 2 * max_lag + 3 or not np.isfinite(mouth).all():
        return np.full(2 * max_lag + 1, np.nan)
    envelope = speech_envelope(audio, len(mouth))
    voiced = voiced_frames(envelope)
    return lagged_pearson(envelope[:, None], mouth[:, None], max_lag, valid=voiced)[:, 0]


def mouth_curve(true: Series, generated: Series, max_lag: int = 5) -> Float[np.ndarray, " L"]:
    """Pearson of generated[t + lag] with true[t], mouth openings, for lags −max_lag … max_lag; NaN if undefined."""
    true, generated = as_array(true).ravel(), as_array(generated).ravel()
    if len(true) < max_lag + 3 or not (np.isfinite(true).all() and np.isfinite(generated).all()):
        return np.full(2 * max_lag + 1, np.nan)
    return lagged_pearson(true[:, None], generated[:, None], max_lag)[:, 0]


def shifted(audio: Series, seconds: float | None = None) -> Float[np.ndarray, " S"]:
    """The null: audio rolled by `seconds` (default half its length), rounded to whole frames."""
    audio = as_array(audio).ravel()
    step = SAMPLES_PER_FRAME
    samples = len(audio) // 2 // step * step if seconds is None else round(seconds * FPS) * step
    return np.roll(audio, samples)


class Lips(ClipMetric):
    """`lip` correlates the mouth with the avatar's audio (null: half a clip off), `mouth` with the true mouth.

    `corr` is the height of the mean curve's peak, `lag` its position in frames (positive: the mouth is late). Compare
    it with the null, because the best of several lags is above 0 even for unrelated audio.
    """

    needs: ClassVar = {
        "lip": f"a parameter called {' or '.join(MOUTH_NAMES)}, and the avatar's sound",
        "mouth": f"a parameter called {' or '.join(MOUTH_NAMES)}",
    }
    headline = ("mouth/corr", "lip/corr")
    on_card = ("mouth/corr", "mouth/lag", "lip/corr")

    def __init__(self, max_lag: int = 10, mouth_max_lag: int = 5, **draws: int) -> None:
        super().__init__(**draws)
        self.max_lag, self.mouth_max_lag = max_lag, mouth_max_lag

    def measure(self, clip: EvaluationClip) -> dict[str, Any]:
        """Correlation curves with audio and true mouth, and both mouths for the null; nothing without a mouth."""
        mouth = mouth_column(clip.face)
        if mouth is None:
            return {}
        true, own = (clip.side(side, mouth) for side in ("true", "generated"))
        kept: dict[str, Any] = {"true": true, "generated": own, "heard": clip.avatar_audio is not None}
        # a clip without audio has no curve and does not count
        audio = np.zeros(0) if clip.avatar_audio is None else np.asarray(clip.avatar_audio, np.float64)
        for side, opening, sound in (("true", true, audio), ("generated", own, audio), ("null", own, shifted(audio))):
            kept[f"lip/{side}"] = curve_sums(lip_curve(opening, sound, self.max_lag)[None])[0]
        return kept | {"mouth/true": self._mouth(true, true), "mouth/generated": self._mouth(true, own)}

    def _mouth(self, true: Series, generated: Series) -> Float[np.ndarray, " S"]:
        return curve_sums(mouth_curve(true, generated, self.mouth_max_lag)[None])[0]

    def tabulate(self, table: ClipTable) -> None:
        """`lip/corr`, `lip/lag`, `mouth/corr`, `mouth/lag`."""
        mouth = mouth_column(table.face)
        if mouth is None:
            return
        name, names, late = table.face.names[mouth], ("corr", "lag"), "mouth is late"
        if any(table["heard"]):
            curves = {side: table.sums(f"lip/{side}") for side in ("true", "generated", "null")}
            text = f"{name} vs 0–10 Hz envelope, voiced frames, lags ±{self.max_lag}; null: audio half a clip off"
            lag_rows(table, "lip", curves, names, text, f"the {late}", "higher")
        wrong = table.of_partners(table["true"])
        curves = {side: table.sums(f"mouth/{side}") for side in ("true", "generated")}
        curves["null"] = np.stack([self._mouth(t, g) for t, g in zip(wrong, table["generated"], strict=True)])
        text = f"generated vs true {name}, lags ±{self.mouth_max_lag}; null: mouth of another clip"
        lag_rows(table, "mouth", curves, names, text, f"the generated {late}", "higher")


def mouth_column(face: FaceSpec | None) -> int | None:
    """Index of the mouth-opening parameter; None without one."""
    return next((face.names.index(n) for n in MOUTH_NAMES if n in face.names), None) if face is not None else None
