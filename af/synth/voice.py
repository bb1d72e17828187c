"""A source-filter voice and the matching lip movements, both computed from the same syllables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, sosfilt

from af.clock import SAMPLE_RATE, frames_to_samples, frames_to_seconds
from af.synth.turns import CONSONANTS, Consonant, Phrase, Syllable, Vowel

CONTROL_HZ = 200  # grid of the slow curves: envelope, pitch, lips
NOISE_FLOOR = 0.001  # -60 dBFS, on every track
_ATTACK_S, _RELEASE_S = 0.025, 0.045
_WIDTHS = (65, 95, 130, 220, 300)  # of the formants, Hz


@dataclass(frozen=True)
class VoiceType:
    """A person's voice: pitch, length of the vocal tract (formants are multiplied by `formants`), loudness."""

    pitch_hz: float
    formants: float
    peak: float
    breath: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> VoiceType:
        """Draw a voice, low or high."""
        high = rng.uniform() < 0.5
        return cls(
            pitch_hz=float(rng.uniform(165, 230) if high else rng.uniform(88, 135)),
            formants=float(rng.uniform(1.08, 1.22) if high else rng.uniform(0.92, 1.04)),
            peak=float(rng.uniform(0.14, 0.28)),
            breath=float(rng.uniform(0.01, 0.05)),
        )


def openness(vowel: Vowel) -> float:
    """Mouth opening of a vowel, 0–1, from its first formant."""
    return float(np.clip((vowel.f1 - 240) / 540, 0, 1))


def lips(phrases: Sequence[Phrase], frames: int) -> tuple[Float32[np.ndarray, " T"], Float32[np.ndarray, " T"]]:
    """Lip movements per video frame: opening 0–1 (F1 under the vowel's envelope) and width -1–1 (F2)."""
    steps = int(frames_to_seconds(frames) * CONTROL_HZ)
    opening, width, weight = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    for syllable in (syllable for phrase in phrases for syllable in phrase.syllables):
        start, window = _vowel_window(syllable, CONTROL_HZ)
        place, window = _clip(start + 2, window, steps)  # never ahead of the audio
        opening[place] += window * (0.12 + 0.88 * openness(syllable.vowel)) * (0.55 + 0.45 * syllable.level)
        width[place] += window * np.clip((syllable.vowel.f2 - 1400) / 850, -0.85, 1)
        weight[place] += window
        if syllable.consonant is not None:
            length = max(int((syllable.consonant.length_s + 0.02) * CONTROL_HZ), 1)
            place, rest = _clip(start - length + 4, np.ones(length), steps)
            opening[place] = np.where(rest > 0, opening[place] * 0.3 + 0.7 * syllable.consonant.lips, opening[place])
    width /= np.maximum(weight, 1)  # overlapping vowels share
    opening = gaussian_filter1d(np.minimum(opening, 1), 0.018 * CONTROL_HZ)
    width = gaussian_filter1d(width, 0.030 * CONTROL_HZ)
    opening, width = (curve.reshape(frames, -1).mean(1).astype(np.float32) for curve in (opening, width))
    return opening, width


def speech(
    phrases: Sequence[Phrase], voice: VoiceType, frames: int, rng: np.random.Generator
) -> Float32[np.ndarray, " S"]:
    """The audio of the phrases at 16 kHz, peak about `voice.peak`, over a noise floor of -60 dBFS."""
    samples = frames_to_samples(frames)
    noise = rng.standard_normal(samples, dtype=np.float32)
    floor = noise * np.float32(NOISE_FLOOR)
    if not phrases:
        return floor
    source = _source(phrases, voice, samples, rng)
    audio = np.zeros(samples, np.float32)
    for phrase in phrases:
        for n, syllable in enumerate(phrase.syllables):
            fade = 0.75 if n == len(phrase.syllables) - 1 else 1.0
            _add_vowel(audio, source, syllable, voice, fade)
            if syllable.consonant is not None:
                _add_consonant(audio, noise, source, syllable.consonant, syllable.start_s, syllable.level)
    audio *= np.float32(voice.peak / max(float(np.abs(audio).max()), 1e-6))
    return audio + floor


def _vowel_window(syllable: Syllable, rate: int) -> tuple[int, np.ndarray]:
    """First index of a vowel and its level over time, at `rate` per second: quick attack, slower release."""
    attack, release = int(_ATTACK_S * rate), int(_RELEASE_S * rate)
    length = max(int(syllable.vowel_s * rate), attack + release)
    window = np.ones(length, np.float32)
    window[:attack] = 0.5 - 0.5 * np.cos(np.pi * (np.arange(attack) + 0.5) / attack)
    window[-release:] = 0.5 + 0.5 * np.cos(np.pi * (np.arange(release) + 0.5) / release)
    return int(syllable.start_s * rate), window


def _clip(start: int, values: np.ndarray, length: int) -> tuple[slice, np.ndarray]:
    """The part of `values`, placed at `start`, that lies in [0, length)."""
    first, last = max(start, 0), max(0, min(start + len(values), length))
    return slice(first, max(first, last)), values[first - start : max(first, last) - start]


def _source(phrases: Sequence[Phrase], voice: VoiceType, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Glottal pulses under a pitch contour that declines over a phrase, rises on stress and falls at the end."""
    source = np.zeros(samples, np.float32)
    for phrase in phrases:
        first = max(0, int((phrase.start_s - 0.1) * SAMPLE_RATE))
        last = min(samples, int((phrase.stop_s + 0.1) * SAMPLE_RATE))
        if first >= last:
            continue
        time = np.arange(first / SAMPLE_RATE, last / SAMPLE_RATE + 2 / CONTROL_HZ, 1 / CONTROL_HZ)
        done = (time - phrase.start_s) / max(phrase.stop_s - phrase.start_s, 0.1)
        log_pitch = 0.10 - 0.20 * done - 0.22 * np.clip((time - phrase.stop_s + 0.30) / 0.30, 0, 1)
        for syllable in phrase.syllables:
            if syllable.stressed:
                log_pitch += 0.16 * np.exp(-(((time - syllable.start_s - 0.06) / 0.07) ** 2))
        log_pitch += gaussian_filter1d(rng.standard_normal(len(time)), 0.05 * CONTROL_HZ) * 0.08
        pitch = voice.pitch_hz * np.exp(log_pitch) * (len(_GLOTTIS) / SAMPLE_RATE)
        steps = np.interp(np.arange(first, last) * (1 / SAMPLE_RATE), time, pitch)
        phase = np.cumsum(steps).astype(np.int64) % len(_GLOTTIS)
        flow = _GLOTTIS[phase]
        breath = rng.standard_normal(last - first, dtype=np.float32)
        pulses = np.diff(flow, prepend=flow[:1])
        source[first:last] = pulses
        source[first + 1 : last] -= np.float32(0.6) * pulses[:-1]  # lips radiate high frequencies more
        source[first:last] += flow * breath * np.float32(0.1 * voice.breath)
    return source


def _glottis(steps: int = 1 << 13) -> np.ndarray:
    """Air flow over one period: the glottis opens for 42 % of it and closes within 14 %."""
    phase = np.arange(steps) / steps
    rising = 0.5 - 0.5 * np.cos(np.pi / 0.42 * np.minimum(phase, 0.42))
    falling = np.cos(np.pi / 2 / 0.14 * np.clip(phase - 0.42, 0, 0.14))
    return np.where(phase < 0.42, rising, falling).astype(np.float32)


_GLOTTIS = _glottis()


def _resonators(formants: Sequence[float], widths: Sequence[float]) -> np.ndarray:
    """Second-order sections with one resonance each and gain 1 at 0 Hz."""
    radius = np.exp(-np.pi * np.asarray(widths) / SAMPLE_RATE)
    angle = 2 * np.pi * np.minimum(np.asarray(formants), 7200) / SAMPLE_RATE
    sections = np.zeros((len(formants), 6))
    sections[:, 3] = 1
    sections[:, 4] = -2 * radius * np.cos(angle)
    sections[:, 5] = radius**2
    sections[:, 0] = sections[:, 3:].sum(1)
    return sections


def _add_vowel(audio: np.ndarray, source: np.ndarray, syllable: Syllable, voice: VoiceType, fade: float) -> None:
    """Source × envelope through the formants; the second formant starts at the consonant's locus.

    Open vowels are louder than close ones, as in real speech.
    """
    start, window = _vowel_window(syllable, SAMPLE_RATE)
    place, window = _clip(start, window, len(audio))
    if len(window) < 100:
        return
    excited = source[place] * window
    f1, f2, f3 = (f * voice.formants for f in (syllable.vowel.f1, syllable.vowel.f2, syllable.vowel.f3))
    high = (f3, 3600 * voice.formants, 4600 * voice.formants)
    length = min(len(window) + 320, len(audio) - place.start)  # the resonances ring on
    vowel = np.zeros(length, np.float32)
    glide = min(int(0.05 * SAMPLE_RATE), len(window))
    if syllable.consonant is not None:
        cross = np.zeros(len(window), np.float32)
        cross[:glide] = np.linspace(1, 0, glide, dtype=np.float32)
        locus = 0.5 * f2 + 0.5 * syllable.consonant.locus_hz * voice.formants
        early = sosfilt(_resonators((0.75 * f1, locus, *high), _WIDTHS), (excited * cross)[: glide + 200])
        vowel[: len(early)] += early
        excited *= 1 - cross
    padded = np.zeros(length, np.float32)
    padded[: len(excited)] = excited
    vowel += sosfilt(_resonators((f1, f2, *high), _WIDTHS), padded)
    loudness = syllable.level * fade * (0.45 + 0.55 * openness(syllable.vowel))
    vowel *= np.float32(loudness / max(float(np.sqrt(np.mean(vowel**2))), 1e-6))
    audio[place.start : place.start + length] += vowel


def _add_consonant(
    audio: np.ndarray, noise: np.ndarray, source: np.ndarray, kind: Consonant, vowel_start_s: float, level: float
) -> None:
    length = int(kind.length_s * SAMPLE_RATE)
    bump = np.sin(np.pi * (np.arange(length, dtype=np.float32) + 0.5) / length) ** 0.6
    place, bump = _clip(int(vowel_start_s * SAMPLE_RATE) - length, bump, len(audio))
    if len(bump) == 0:
        return
    if kind.voiced:
        hum = sosfilt(_resonators((280, kind.locus_hz), (90, 300)), source[place] * bump)
        audio[place] += (hum * (level * 0.25 / max(float(np.sqrt(np.mean(hum**2))), 1e-6))).astype(np.float32)
    hiss = sosfilt(_BANDS[kind], noise[place] * bump)
    audio[place] += (hiss * (kind.level * level * 2.0)).astype(np.float32)


_BANDS = {c: butter(2, (c.low_hz, c.high_hz), "band", fs=SAMPLE_RATE, output="sos") for c in CONSONANTS}
