"""Turn-taking with log-normal durations, pauses, gaps and overlaps, and the syllables of each phrase."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROLES = ("a", "b")

Seed = int | Sequence[int]


def stream(seed: Seed, *names: str) -> np.random.Generator:
    """An independent generator for each channel of a session, so that channels do not affect each other."""
    words = [seed] if isinstance(seed, int) else list(seed)
    return np.random.default_rng([*words, zlib.crc32("/".join(names).encode())])


@dataclass(frozen=True)
class Vowel:
    """Formants of a vowel in Hz, for an average voice."""

    f1: float
    f2: float
    f3: float


@dataclass(frozen=True)
class Consonant:
    """A consonant before a vowel: noise between two frequencies, its level and length, and the lips.

    `lips` is their opening (0 closed); `voiced` consonants hum; `locus` is the second formant at the vowel's start.
    """

    low_hz: float
    high_hz: float
    level: float
    length_s: float
    lips: float
    voiced: bool
    locus_hz: float


VOWELS = (
    Vowel(300, 2300, 3000),
    Vowel(430, 2050, 2700),
    Vowel(580, 1800, 2550),
    Vowel(780, 1350, 2500),
    Vowel(700, 1100, 2500),
    Vowel(560, 900, 2450),
    Vowel(430, 820, 2400),
    Vowel(320, 800, 2300),
    Vowel(500, 1450, 2500),
)
CONSONANTS = (
    Consonant(3600, 7200, 0.30, 0.085, 0.12, False, 1800),  # s
    Consonant(1900, 4800, 0.32, 0.085, 0.16, False, 1900),  # sh
    Consonant(1200, 7000, 0.12, 0.070, 0.05, False, 1100),  # f
    Consonant(500, 1800, 0.35, 0.025, 0.0, False, 900),  # p
    Consonant(2500, 6500, 0.35, 0.025, 0.14, False, 1800),  # t
    Consonant(1300, 3000, 0.35, 0.030, 0.18, False, 2200),  # k
    Consonant(200, 900, 0.05, 0.065, 0.0, True, 950),  # m
    Consonant(200, 1100, 0.05, 0.060, 0.14, True, 1700),  # n
    Consonant(200, 1500, 0.04, 0.050, 0.25, True, 1300),  # l
)


@dataclass(frozen=True)
class Syllable:
    """One syllable: start and duration of its vowel (seconds), and loudness (1 if stressed)."""

    start_s: float
    vowel_s: float
    level: float
    stressed: bool
    vowel: Vowel
    consonant: Consonant | None


@dataclass(frozen=True)
class Phrase:
    """A stretch of speech without a pause."""

    start_s: float
    stop_s: float
    syllables: tuple[Syllable, ...]


def plan_turns(rng: np.random.Generator, seconds: float) -> dict[str, list[tuple[float, float]]]:
    """(start, stop) in seconds of every phrase of both people: turns of one to four phrases that change hands."""
    phrases: dict[str, list[tuple[float, float]]] = {role: [] for role in ROLES}
    speaker = int(rng.integers(2))
    time = float(rng.uniform(0.2, 0.9))
    while time < seconds:
        for n in range(int(rng.choice([1, 2, 3, 4], p=[0.3, 0.35, 0.25, 0.1]))):
            if n:
                time += float(np.clip(rng.lognormal(-0.65, 0.3), 0.35, 1.0))
            length = float(np.clip(rng.lognormal(0.35, 0.4), 0.6, 3.2))
            phrases[ROLES[speaker]].append((time, time + length))
            time += length
        overlap = rng.uniform() < 0.15
        time += -float(rng.uniform(0.08, 0.35)) if overlap else float(np.clip(rng.lognormal(-0.7, 0.5), 0.2, 1.6))
        speaker = 1 - speaker
    return phrases


def plan_phrase(rng: np.random.Generator, start_s: float, stop_s: float) -> Phrase:
    """Fill a phrase with about five syllables per second; the last is long, about every third stressed."""
    syllables: list[Syllable] = []
    time = start_s
    since_stress = 9
    while True:
        consonant = CONSONANTS[int(rng.integers(len(CONSONANTS)))] if rng.uniform() < 0.88 else None
        vowel = VOWELS[int(rng.integers(len(VOWELS)))]
        stressed = since_stress >= 2 and rng.uniform() < 0.5
        since_stress = 0 if stressed else since_stress + 1
        length = float(np.clip(rng.lognormal(-2.05, 0.25), 0.07, 0.24)) * (1.3 if stressed else 1.0)
        level = 1.0 if stressed else float(rng.uniform(0.5, 0.75))
        vowel_start = time + (consonant.length_s if consonant else 0.0)
        room = stop_s - vowel_start
        if room < 0.30 or room < length + 0.12:  # the last syllable: long, and soft unless stressed
            last = Syllable(vowel_start, max(0.08, min(room, 0.34)), level, stressed, vowel, consonant)
            return Phrase(start_s, last.start_s + last.vowel_s, (*syllables, last))
        syllables.append(Syllable(vowel_start, length, level, stressed, vowel, consonant))
        time = vowel_start + length + float(rng.uniform(0.0, 0.03))
