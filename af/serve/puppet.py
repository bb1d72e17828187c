"""A drawn person steered by hand: the user of models of drawn people, whose smile, nod or phrase the avatar answers."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from typing import Final

import numpy as np
from jaxtyping import Float32, UInt8

from af.clock import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, samples_to_frames
from af.errors import UserError, require_choice
from af.serve.queues import SampleQueue
from af.synth.face import FACE_INDEX, FACE_RANGES
from af.synth.render import render
from af.synth.session import Event, SessionConfig, nod_curve, simulate, swell
from af.synth.turns import plan_phrase
from af.synth.voice import VoiceType, lips, speech
from af.values import require_number

#: Sliders and the face parameters they move, with the values at their ends.
SLIDERS: Final[Mapping[str, tuple[str, float, float]]] = {
    "smile": ("smile", 0.0, 1.0),
    "tilt": ("roll", -0.3, 0.3),
    "nod": ("pitch", -0.25, 0.25),
    "mouth": ("mouth_open", 0.0, 1.0),
}
#: Single movements, as large and as quick as those that models were trained on (`af.synth.session`).
ACTIONS: Final = ("smile", "nod", "tilt left", "tilt right", "blink", "talk")
_FOLLOW = 0.35  # share of the way to a slider's value that a face moves in a frame
_MIRRORED = 0.6  # share of the way to a camera's parameters that a face moves with each of its frames
_PHRASE_S = 2.2
_AHEAD = 4  # faces drawn ahead: five in one go take little longer than one
_REST = SessionConfig(seconds=60, smile_every_s=1e6, tilt_every_s=1e6, speakers=())


class Puppet:
    """The person drawn from `seed`, one frame at a time: at rest they sway, look around and blink.

    Their mouth moves with their own phrases (`act("talk")`), else with the loudness of a microphone.
    """

    def __init__(self, seed: int, size: int) -> None:
        person = simulate([seed, 0], _REST, voices=False).a
        self.appearance, self.size = person.appearance, size
        self._rest = np.concatenate((person.face, person.face[::-1]))  # without a jump where it starts again
        self._values = dict.fromkeys(SLIDERS, 0.0)
        self._sliders = dict.fromkeys(SLIDERS, 0.0)
        self._events: dict[str, list[Event]] = {kind: [] for kind in ("smile", "tilt", "nod", "blink")}
        self._rng = np.random.default_rng(seed)
        self._type = VoiceType.sample(self._rng)
        self._speech = SampleQueue(10 * SAMPLE_RATE)
        self._lips: list[tuple[float, float]] = []
        self._loudness = 0.0
        self._mirrored: dict[str, float] = {}
        self._ahead: deque[tuple[np.ndarray, UInt8[np.ndarray, "Y X 3"]]] = deque()  # faces to come, if nothing happens
        self.frame = 0

    def mirror(self, parameters: Mapping[str, float] | None) -> None:
        """Take these face parameters from a camera in place of those of rest, smoothed; None: rest again."""
        before = self._mirrored
        self._mirrored = {
            name: value + (1 - _MIRRORED) * (before.get(name, value) - value)
            for name, value in (parameters or {}).items()
        }

    def steer(self, sliders: Mapping[str, float]) -> None:
        """Set sliders: smile and mouth from 0 to 1, tilt and nod (pitch) from -1 to 1. Raises UserError for others."""
        for name, value in sliders.items():
            require_choice("steer", "slider", name, tuple(SLIDERS))
            require_number(name, value, least=-1 if SLIDERS[name][1] < 0 else 0, most=1)
        self._sliders |= sliders

    def act(self, action: str) -> None:
        """One movement (`ACTIONS`) or a phrase, from the next frame on. Raises UserError for others."""
        require_choice("act", "movement", action, ACTIONS)
        n = self.frame - 1  # a movement is at rest in its first frame; the next one already moves
        if action == "smile":
            self._events["smile"].append(Event(n, 0.9, 7, 9, 9))
        elif action == "nod":
            self._events["nod"].append(Event(n, 0.2, 8, 2, 0))
        elif action == "blink":
            self._events["blink"].append(Event(n, 1.0, 2, 1, 3))
        elif action == "talk":
            self._say_phrase()
        else:
            self._events["tilt"].append(Event(n, 0.24 if action == "tilt right" else -0.24, 7, 10, 9))
        for kind, events in self._events.items():
            self._events[kind] = [e for e in events[-8:] if n < e.start + 60]

    def step(self, microphone: Float32[np.ndarray, " S"]) -> tuple[np.ndarray, UInt8[np.ndarray, "Y X 3"], np.ndarray]:
        """The next frame: face parameters, image, and the sound of both the puppet's phrase and the microphone."""
        face = self._face(microphone)
        if not (self._ahead and np.array_equal(self._ahead[0][0], face)):
            self._draw_ahead(face, 0 if self._ahead else _AHEAD)
        return face, self._ahead.popleft()[1], np.clip(microphone + self._speech.take(len(microphone)), -1, 1)

    def _draw_ahead(self, face: np.ndarray, more: int) -> None:
        """Draw this face, and with it, for little more, those that follow in silence if nobody moves anything."""
        to_come = copy.copy(self)
        to_come._values, to_come._lips = dict(self._values), list(self._lips)
        silence = np.zeros(SAMPLES_PER_FRAME, np.float32)
        faces = np.stack((face, *(to_come._face(silence) for _ in range(more))))
        self._ahead = deque(zip(faces, render(faces, self.appearance, self.size), strict=True))

    def _face(self, microphone: Float32[np.ndarray, " S"]) -> np.ndarray:
        """The next frame's face parameters."""
        face = self._rest[self.frame % len(self._rest)].copy()
        for name, value in self._mirrored.items():
            face[FACE_INDEX[name]] = value
        now = np.array([self.frame])
        for name, (_, low, high) in SLIDERS.items():
            goal = self._sliders[name] * (high if self._sliders[name] > 0 else -low)
            self._values[name] += _FOLLOW * (goal - self._values[name])
        smile, tilt, blink = (
            [event.amplitude * float(swell(event, now)[0]) for event in self._events[kind]]
            for kind in ("smile", "tilt", "blink")
        )
        raised = 1 - (1 - self._values["smile"]) * np.prod([1 - min(a, 0.98) for a in smile])
        nod = float(nod_curve(self._events["nod"], now)[0]) + self._values["nod"]
        opening, width = (
            self._lips.pop(0) if self._lips else (0.0 if self._mirrored else self._follow_loudness(microphone), 0.0)
        )
        # what moves with a smile and a nod: as in af.synth.session
        for name, change in {
            "smile": raised,
            "brow": 0.15 * raised,
            "roll": 0.36 * np.tanh((sum(tilt) + self._values["tilt"]) / 0.36),
            "pitch": nod,
            "gaze_y": -nod,
            "shift_y": 0.05 * nod,
            "scale": 0.15 * nod,
            "mouth_open": max(opening, self._values["mouth"]),
            "mouth_width": width,
            "blink": max(blink, default=0.0),
        }.items():
            face[FACE_INDEX[name]] = np.clip(face[FACE_INDEX[name]] + change, *FACE_RANGES[name])
        self.frame += 1
        return face

    def _say_phrase(self) -> None:
        if len(self._lips) > 3 * FPS:
            raise UserError("talk: a phrase is still being said")
        phrase = [plan_phrase(self._rng, 0.0, _PHRASE_S)]
        frames = round((_PHRASE_S + 0.4) * FPS)
        sound = speech(phrase, self._type, frames, self._rng)
        self._speech.push(sound)
        self._lips += zip(*(curve.tolist() for curve in lips(phrase, samples_to_frames(len(sound)))), strict=True)

    def _follow_loudness(self, sound: np.ndarray) -> float:
        level = 20 * np.log10(max(float(np.sqrt(np.mean(np.square(sound)))), 1e-6))
        self._loudness += 0.5 * (0.8 * float(np.clip((level + 45) / 30, 0, 1)) - self._loudness)
        return self._loudness if self._loudness > 0.02 else 0.0


def portrait(seed: int, size: int) -> UInt8[np.ndarray, "Y X 3"]:
    """A drawn person looking ahead, as the avatar."""
    face = np.zeros((1, len(FACE_INDEX)))
    return render(face, simulate([seed, 1], _REST, voices=False).b.appearance, size)[0]
