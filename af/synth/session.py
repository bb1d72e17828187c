"""Simulated conversations of two people in which every movement has a known cause.

Each movement has one cause: lips and head beats follow the person's own voice; **nods** the end of the partner's phrase
(audible); **smiles back** the partner's silent spontaneous smile, and **head tilts** the partner's tilt (both visible
but inaudible); the gaze turns to the partner when the partner begins to speak; blinks and slow sway are spontaneous.
Reactions cause no further reactions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Final

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy.ndimage import gaussian_filter1d

from af.clock import FPS, frames_to_samples, seconds_to_frames
from af.synth.appearance import Appearance
from af.synth.face import FACE_NAMES, FACE_RANGES
from af.synth.turns import ROLES, Phrase, Seed, plan_phrase, plan_turns, stream
from af.synth.voice import VoiceType, lips, speech
from af.values import require_fraction, require_number

#: Mean delay from cause to reaction, in frames, drawn from `REACTION_RANGE_FRAMES` (both ends included).
REACTION_LAG_FRAMES: Final[Mapping[str, int]] = MappingProxyType({"smile": 11, "tilt": 12, "nod": 8})
REACTION_RANGE_FRAMES: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {"smile": (9, 13), "tilt": (12, 13), "nod": (5, 12)}
)


@dataclass(frozen=True)
class SessionConfig:
    """Settings of a simulated conversation. Rates are means; probabilities are those of reacting at all.

    `expressiveness`, drawn per session and low for a share `low_expressiveness`, scales reactions. Everybody outside
    `speakers` is silent (noise floor only), which changes nothing but speech and its effects.
    """

    seconds: Annotated[float, "length of a session"] = 16.0
    smile_every_s: Annotated[float, "--smile-every", "mean seconds between a person's own smiles"] = 5.0
    tilt_every_s: Annotated[float, "--tilt-every", "mean seconds between a person's own head tilts"] = 6.0
    blink_every_s: float = 3.8
    smile_answer: float = 0.8
    tilt_answer: float = 0.8
    nod_answer: float = 0.85
    low_expressiveness: Annotated[float, "probability of a session with small reactions"] = 0.6
    speakers: tuple[str, ...] = ROLES

    def __post_init__(self) -> None:
        require_number("seconds", self.seconds, above=0)
        if seconds_to_frames(self.seconds) < 1:
            raise ValueError(f"a session lasts at least one frame, got seconds = {self.seconds}")
        for name in ("smile_every_s", "tilt_every_s", "blink_every_s"):
            require_number(name, getattr(self, name), above=0)
        for name in ("smile_answer", "tilt_answer", "nod_answer", "low_expressiveness"):
            require_fraction(name, getattr(self, name))
        if not set(self.speakers) <= set(ROLES):
            raise ValueError(f"speakers are among {ROLES}, got {self.speakers}")


@dataclass(frozen=True)
class Event:
    """A smile, tilt or nod: first frame, peak height, and the frame of its cause (None: spontaneous).

    `rise`, `hold` and `fall` are in frames; a nod repeats `hold` times, down and up in `rise` frames each.
    """

    start: int
    amplitude: float
    rise: int
    hold: int
    fall: int
    cause: int | None = None


@dataclass(frozen=True)
class Side:
    """One of the two people: appearance, movements and speech."""

    appearance: Appearance
    face: Float32[np.ndarray, "T P"]
    audio: Float32[np.ndarray, " S"]
    phrases: tuple[tuple[int, int], ...]  # frames [start, stop) of speech
    smiles: tuple[Event, ...]
    tilts: tuple[Event, ...]
    nods: tuple[Event, ...]

    @property
    def phrase_ends(self) -> tuple[int, ...]:
        """Frames within the session at which phrases of this person end."""
        return tuple(stop for _, stop in self.phrases if stop < len(self.face))


@dataclass(frozen=True)
class Session:
    """A conversation between `a` and `b`, who share an `expressiveness` (0.4 to 1)."""

    a: Side
    b: Side
    expressiveness: float

    @property
    def frames(self) -> int:
        """Length in frames."""
        return len(self.a.face)

    def side(self, role: str) -> Side:
        """The person called "a" or "b"."""
        return {"a": self.a, "b": self.b}[role]


def simulate(seed: Seed, config: SessionConfig = SessionConfig(), *, voices: bool = True) -> Session:
    """Simulate a conversation, deterministic in seed and configuration. Without `voices` both are silent."""
    frames = seconds_to_frames(config.seconds)
    rng = stream(seed, "expressiveness")
    low = rng.uniform() < config.low_expressiveness
    expressiveness = float(rng.uniform(0.4, 0.6) if low else rng.uniform(0.85, 1.0))
    turns = plan_turns(stream(seed, "turns"), config.seconds)
    spoken: dict[str, list[Phrase]] = {}
    for role in ROLES:
        words = stream(seed, "words", role)
        planned = [plan_phrase(words, start, stop) for start, stop in turns[role]]
        spoken[role] = planned if role in config.speakers else []
    phrases = {role: tuple((round(p.start_s * FPS), round(p.stop_s * FPS)) for p in spoken[role]) for role in ROLES}
    speaking = {role: _speaking(spoken[role], frames) for role in ROLES}
    moved: dict[str, dict[str, list[Event]]] = {"smile": {}, "tilt": {}}
    for kind, every_s, answer in (
        ("smile", config.smile_every_s, config.smile_answer),
        ("tilt", config.tilt_every_s, config.tilt_answer),
    ):
        own = {r: _spontaneous(stream(seed, kind, r), kind, every_s, frames, expressiveness) for r in ROLES}
        for role, partner in (ROLES, ROLES[::-1]):
            rng = stream(seed, f"{kind} answers", role)
            moved[kind][role] = own[role] + _answers(rng, kind, own[partner], answer, expressiveness, frames)
    sides: dict[str, Side] = {}
    for role, partner in (ROLES, ROLES[::-1]):
        smiles, tilts = moved["smile"][role], moved["tilt"][role]
        starts, ends = ([phrase[n] for phrase in phrases[partner]] for n in (0, 1))
        nods = _nods(stream(seed, "nods", role), ends, speaking[role], config.nod_answer, expressiveness)
        audio = np.zeros(frames_to_samples(frames), np.float32)
        if voices:
            voice = VoiceType.sample(stream(seed, "voice", role))
            audio = speech(spoken[role], voice, frames, stream(seed, "sound", role))
        sides[role] = Side(
            appearance=Appearance.sample(stream(seed, "appearance", role)),
            face=_face(seed, role, config, spoken[role], speaking[role], starts, smiles, tilts, nods),
            audio=audio,
            phrases=phrases[role],
            smiles=tuple(sorted(smiles, key=lambda e: e.start)),
            tilts=tuple(sorted(tilts, key=lambda e: e.start)),
            nods=tuple(nods),
        )
    return Session(sides["a"], sides["b"], expressiveness)


def _speaking(phrases: Sequence[Phrase], frames: int) -> Bool[np.ndarray, " T"]:
    mask = np.zeros(frames, bool)
    for phrase in phrases:
        mask[max(0, int(phrase.start_s * FPS) - 1) : int(phrase.stop_s * FPS) + 2] = True
    return mask


def _spontaneous(
    rng: np.random.Generator, kind: str, every_s: float, frames: int, expressiveness: float
) -> list[Event]:
    """Spontaneous smiles or tilts, about every `every_s` seconds, never two at once."""
    events = []
    apart = min(2.4, 0.6 * every_s)
    time = float(rng.uniform(0, every_s))
    while (start := seconds_to_frames(time)) < frames:
        if kind == "smile":
            amplitude, hold = rng.uniform(0.6, 1.0) * (0.75 + 0.25 * expressiveness), (5, 12)
        else:
            amplitude, hold = rng.uniform(0.16, 0.28) * rng.choice([-1, 1]), (6, 14)
        events.append(Event(start, float(amplitude), int(rng.integers(6, 9)), int(rng.integers(*hold)), 9))
        time += apart + float(rng.exponential(every_s - apart))
    return events


def _answers(
    rng: np.random.Generator, kind: str, causes: Sequence[Event], probability: float, expressiveness: float, frames: int
) -> list[Event]:
    """Reactions to `causes`: the same movement, later, scaled by `expressiveness`; some causes have no reaction."""
    first, last = REACTION_RANGE_FRAMES[kind]
    answers = []
    for cause in causes:
        answered, lag = rng.uniform() < probability, first + int(rng.binomial(last - first, 0.5))
        amplitude = cause.amplitude * expressiveness * rng.uniform(0.9, 1.05)
        if answered and cause.start + lag < frames:
            start = cause.start + lag
            answers.append(Event(start, float(amplitude), cause.rise, cause.hold, cause.fall, cause.start))
    return answers


def _nods(
    rng: np.random.Generator,
    ends: Sequence[int],
    speaking: Bool[np.ndarray, " T"],
    probability: float,
    expressive: float,
) -> list[Event]:
    """One or two nods after a phrase of the partner, unless this person is speaking."""
    first, last = REACTION_RANGE_FRAMES["nod"]
    nods: list[Event] = []
    for end in ends:
        answered, lag, twice = rng.uniform() < probability, int(rng.integers(first, last + 1)), rng.uniform() < 0.55
        amplitude, length = rng.uniform(0.15, 0.23) * (0.45 + 0.55 * expressive), int(rng.integers(7, 10))
        start = end + lag
        free = start < len(speaking) and not speaking[start : start + 6].any()
        if answered and free and (not nods or start > nods[-1].start + 20):
            nods.append(Event(start, float(amplitude), length, 2 if twice else 1, 0, end))
    return nods


def swell(event: Event, frames: Int[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """An event's course at the given frames: cosine rise, plateau and fall, with height 1."""
    t = frames - event.start
    up, down = t / event.rise, (t - event.rise - event.hold) / event.fall
    return (0.5 - 0.5 * np.cos(np.pi * np.clip(up, 0, 1))) - (0.5 - 0.5 * np.cos(np.pi * np.clip(down, 0, 1)))


def _slow(rng: np.random.Generator, frames: int, deviation: float, seconds: float = 1.2) -> np.ndarray:
    """Smooth noise of standard deviation `deviation`: the sway of a person at rest."""
    sigma = seconds * FPS
    noise = gaussian_filter1d(rng.standard_normal(frames + int(8 * sigma)), sigma)[int(4 * sigma) :][:frames]
    return noise * deviation * np.sqrt(2 * np.sqrt(np.pi) * sigma)


def _face(
    seed: Seed,
    role: str,
    config: SessionConfig,
    phrases: Sequence[Phrase],
    speaking: Bool[np.ndarray, " T"],
    partner_starts: Sequence[int],
    smiles: Sequence[Event],
    tilts: Sequence[Event],
    nods: Sequence[Event],
) -> Float32[np.ndarray, "T P"]:
    """Face parameters of every frame, from events and speech."""
    frames = len(speaking)
    at = np.arange(frames)
    rng = stream(seed, "sway", role)
    yaw, pitch, roll = (
        _slow(rng, frames, s) + rng.normal(0, r) for s, r in ((0.05, 0.05), (0.025, 0.02), (0.015, 0.01))
    )
    shift_x, shift_y = (_slow(rng, frames, s, 1.6) + rng.normal(0, r) for s, r in ((0.008, 0.008), (0.004, 0.006)))
    scale = _slow(rng, frames, 0.018, 1.6) + rng.normal(0, 0.03)
    opening, width = lips(phrases, frames)
    beat, lift = _beats(stream(seed, "beats", role), phrases, frames)
    nod = nod_curve(nods, at)
    smile = 1 - np.prod([1 - np.clip(e.amplitude, 0, 0.98) * swell(e, at) for e in smiles], axis=0)
    tilt = sum((e.amplitude * swell(e, at) for e in tilts), np.zeros(frames))
    gaze_x, gaze_y = _gaze(stream(seed, "gaze", role), speaking, partner_starts)
    turn = gaussian_filter1d(gaze_x, 3) * 0.10  # the head follows the eyes slightly
    values = {
        "mouth_open": opening,
        "mouth_width": width,
        "smile": smile + _slow(rng, frames, 0.012),
        "brow": lift + _slow(rng, frames, 0.06, 0.8) + 0.15 * smile,
        "blink": _blinks(stream(seed, "blinks", role), config.blink_every_s, frames),
        # Eyes stay on their target while the head moves.
        "gaze_x": gaze_x - 1.1 * (yaw + turn),
        "gaze_y": gaze_y - 1.0 * (pitch + nod + beat),
        "yaw": yaw + turn,
        "pitch": pitch + nod + beat,
        "roll": roll + 0.36 * np.tanh(tilt / 0.36),
        "shift_x": shift_x + 0.02 * turn,
        "shift_y": shift_y + 0.05 * (nod + beat),
        "scale": scale + 0.15 * nod,
    }
    columns = [np.clip(values[name], *FACE_RANGES[name]) for name in FACE_NAMES]
    return np.stack(columns, axis=1).astype(np.float32)


def nod_curve(nods: Sequence[Event], frames: Int[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Pitch of the nods at the given frames: raised-cosine dips, the second one smaller."""
    curve = np.zeros(len(frames))
    for nod in nods:
        for n in range(nod.hold):
            t = (frames - nod.start - n * nod.rise) / nod.rise
            curve += np.where((t > 0) & (t < 1), nod.amplitude * 0.7**n * (0.5 - 0.5 * np.cos(2 * np.pi * t)), 0)
    return curve


def _beats(rng: np.random.Generator, phrases: Sequence[Phrase], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Head beats (pitch) and raised brows on stressed syllables."""
    pitch, brow = np.zeros(frames), np.zeros(frames)
    time = (np.arange(frames) + 0.5) / FPS
    for phrase in phrases:
        for syllable in phrase.syllables:
            strength, raised = rng.uniform(0.025, 0.055), rng.uniform() < 0.4
            if syllable.stressed:
                bump = np.exp(-0.5 * ((time - syllable.start_s - 0.08) / 0.075) ** 2)
                pitch += strength * bump
                if raised:
                    brow += 0.55 * np.exp(-0.5 * ((time - syllable.start_s - 0.10) / 0.14) ** 2)
    return pitch, np.minimum(brow, 0.8)


def _blinks(rng: np.random.Generator, every_s: float, frames: int) -> np.ndarray:
    """Blinks of about five frames at irregular intervals."""
    curve = np.zeros(frames)
    time = float(rng.uniform(0.3, every_s))
    while time * FPS < frames:
        centre, half = time * FPS, rng.uniform(2.2, 3.0)
        t = np.arange(frames) - centre
        # closes faster than it opens
        curve = np.maximum(curve, np.clip(1.35 - np.abs(t) / np.where(t < 0, 0.8 * half, 1.2 * half) * 1.2, 0, 1))
        time += float(rng.uniform(0.5, 1.5)) * every_s
    return curve


def _gaze(rng: np.random.Generator, speaking: Bool[np.ndarray, " T"], partner_starts: Sequence[int]):
    """Gaze on the partner (0, 0), with glances away: often while speaking, seldom while listening.

    A glance ends when the partner begins to speak, 5 to 9 frames later.
    """
    frames = len(speaking)
    x, y = np.zeros(frames), np.zeros(frames)
    now = int(rng.uniform(0.5, 3.0) * FPS)
    returns = [start + int(rng.integers(5, 10)) for start in partner_starts]
    while now < frames:
        length = int(rng.uniform(0.5, 1.4) * FPS)
        stop = min([now + length, *(r for r in returns if now < r)])
        x[now:stop] = rng.uniform(0.45, 0.95) * rng.choice([-1, 1])
        y[now:stop] = rng.uniform(-0.45, 0.6)
        mean = 2.2 if speaking[min(stop, frames - 1)] else 6.0
        now = stop + int((0.4 + rng.exponential(mean)) * FPS)
    return gaussian_filter1d(x, 0.6), gaussian_filter1d(y, 0.6)
