"""One person's conversation with the avatar: what they and the avatar say, frame by frame, and what became of it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from af.clock import (
    FRAME_MS,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    frames_to_samples,
    frames_to_seconds,
    samples_to_frames,
    samples_to_seconds,
    seconds_to_samples,
)
from af.data.generated import marked
from af.errors import UserError, require_choice
from af.forcing.inputs import SpeechStream
from af.forcing.pieces import Signals
from af.forcing.stream import LiveBlock, LiveSession
from af.pipeline.avatar import Avatar
from af.pipeline.encode import face_crop
from af.pipeline.live import user_encoder
from af.serve.puppet import Puppet
from af.serve.queues import AUDIBLE, Playout, SampleQueue, Shown
from af.types import Identity

Image = UInt8[np.ndarray, "Y X 3"]
Samples = Float32[np.ndarray, " S"]
#: The person: drawn and steered by hand, drawn and moved by a camera, or the face crops of a camera.
User = Literal["puppet", "mirror", "camera"]
USERS: Final = get_args(User)
#: What the avatar can be given to say at most.
LONGEST_SPEECH_S: Final = 300
_BARGE_IN_FRAMES: Final = 5  # the user must be audible for this long to interrupt


@dataclass(frozen=True)
class Settings:
    """What every conversation starts with. `sampling` as in `BlockSampler`; `cushion_ms` of the user's sound is waited
    for before it is used, so that packets may come unevenly; with `barge_in` the user's voice interrupts the avatar's.
    `mark` draws into every frame that it is generated (`af.data.generated`).
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    signals: Signals = field(default_factory=Signals)
    user: User = "puppet"
    cushion_ms: float = 0.0
    barge_in: bool = True
    seed: int = 0
    mark: bool = True


@dataclass
class Budget:
    """Times of the last block in ms: `waiting` for its input (the longest of its frames), computing speech `features`,
    `motion` and images (`decoding`). `load`: time needed over time there is; above 1 the service cannot follow.
    """

    waiting: float = 0.0
    features: float = 0.0
    motion: float = 0.0
    decoding: float = 0.0
    load: float = 0.0


class Conversation:
    """A session of `af.forcing.stream` with queues around it. `hear`, `see`, `steer`, `say` and `interrupt` may be called
    at any time by any thread; a `Service` computes it frame by frame and puts what it shows into `playout`.
    """

    def __init__(
        self, avatar: Avatar, speech: SpeechStream, portrait: Image, puppet: Puppet, settings: Settings
    ) -> None:
        self._avatar, self._speech, self._portrait = avatar, speech, portrait
        self.settings, self.user = settings, settings.user
        self.puppet = puppet
        self.block_frames = avatar.denoiser.layout.block_frames
        self.playout = Playout(4 * self.block_frames)
        self.heard = SampleQueue(
            2 * SAMPLE_RATE, seconds_to_samples(settings.cushion_ms / 1000), seconds_to_samples(0.06)
        )
        self.unsaid = SampleQueue(LONGEST_SPEECH_S * SAMPLE_RATE)
        self.budget, self.skipped_frames, self.faces_lost = Budget(), 0, 0
        #: Called with each block's report, by the service's thread.
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self.closed: str | None = None  # why, once it is
        self.begun_s = self.touched_s = time.monotonic()
        self.view = np.full_like(portrait, 128)  # the user as the model sees them
        self._seen: Image | None = None
        self._changes: deque[Callable[[], None]] = deque()
        self._audible_frames = 0
        self.begin()

    def begin(self) -> None:
        """Start anew with the same portrait, signals and settings."""
        self._identity, reference = self._avatar.identity(self._portrait)
        self.stream = LiveSession(
            self._avatar.denoiser,
            reference,
            self._speech,
            encode_user=user_encoder(self._avatar),
            generator=torch.Generator().manual_seed(self.settings.seed),
            **self.settings.sampling,
        )
        self.stream.change(signals=self.settings.signals)
        self.playout.clear()
        self._spoken, self._spoken_from = np.zeros(0, np.float32), 0  # the avatar's voice of frames not shown yet
        self._speaking = False  # up to the end of that voice
        self.voiced_frames = 0  # until the end of the last block with a voice; what is unsaid comes after it
        self._faces: list[Float32[np.ndarray, " P"] | None] = []  # of the block in the making
        self._views: list[Image] = []

    @property
    def identity(self) -> Identity:
        """The portrait, encoded."""
        return self._identity

    def touch(self) -> None:
        """The client did something: it is not idle."""
        self.touched_s = time.monotonic()

    # What the client gives, at any time.

    def hear(self, samples: Samples) -> None:
        """The user's voice: 16 kHz mono, in [-1, 1]."""
        self.heard.push(np.clip(np.nan_to_num(samples), -1, 1).astype(np.float32, copy=False))

    def see(self, face: Image | None) -> None:
        """The user's newest face crop, None for an image without a face; used once, and only for the user "camera".

        Raises UserError for another size.
        """
        self._seen = None if face is None else face_crop("user_frames", face, self._avatar.autoencoder.image_size)

    def mirror(self, parameters: Mapping[str, float] | None) -> None:
        """Let a camera's face move the puppet (`Puppet.mirror`), for the user "mirror"; None for a frame without one."""
        if parameters is not None and self.user == "mirror":
            self.puppet.mirror(parameters)
            self.faces_lost = 0
            self.touch()

    def steer(self, sliders: Mapping[str, float]) -> None:
        """Set the puppet's sliders (`Puppet.steer`)."""
        self.puppet.steer(sliders)

    def act(self, action: str) -> None:
        """Let the puppet do something (`Puppet.act`)."""
        self.puppet.act(action)

    def be(self, user: User) -> None:
        """Choose who the user is (`USERS`)."""
        require_choice("user", "user", user, USERS)
        self.user, self._seen, self.faces_lost = user, None, 0
        self.puppet.mirror(None)

    def say(self, samples: Samples) -> None:
        """Let the avatar say more, after what is still unsaid. Raises UserError when that is too much."""
        seconds = samples_to_seconds(len(self.unsaid) + len(samples))
        if seconds > LONGEST_SPEECH_S:
            raise UserError(
                f"say: {seconds:.0f} s of speech are waiting; at most {LONGEST_SPEECH_S} s, so wait or stop"
            )
        self.unsaid.push(np.clip(np.nan_to_num(samples), -1, 1).astype(np.float32, copy=False))

    def interrupt(self) -> None:
        """Forget what the avatar has not said: it falls silent with the next block."""
        self.unsaid.clear()

    def change(self, *, signals: Signals | None = None, barge_in: bool | None = None, **sampling: Any) -> None:
        """Change settings from the next block on (`af.forcing.stream.LiveSession.change`)."""
        self.settings = replace(
            self.settings,
            signals=self.settings.signals if signals is None else signals,
            barge_in=self.settings.barge_in if barge_in is None else barge_in,
            sampling={**self.settings.sampling, **sampling},
        )
        if signals is not None or sampling:
            self.later(lambda: self.stream.change(signals=signals, **sampling))

    def show(self, portrait: Image) -> None:
        """Change the avatar's portrait from the next block on. Raises UserError for another size."""
        portrait = face_crop("portrait", portrait, self._avatar.autoencoder.image_size)

        def change() -> None:
            self._portrait = portrait
            self._identity, reference = self._avatar.identity(portrait)
            self.stream.change_reference(reference)

        self.later(change)

    def restart(self) -> None:
        """Begin anew."""
        self.interrupt()
        self.later(self.begin)

    def later(self, change: Callable[[], None]) -> None:
        """Let the service's thread do it before the next frame. Raises UserError when too much is waiting."""
        if len(self._changes) >= 16:
            raise UserError("too many changes at once; wait for a moment")
        self._changes.append(change)

    # What comes back.

    async def played(self) -> AsyncIterator[tuple[int, Shown | None]]:
        """Numbered turns, 25 a second, each with the frame to show next, or None where it is not there yet; until the
        conversation is closed.
        """
        time_of = asyncio.get_running_loop().time
        start, turn = time_of(), 0
        while self.closed is None:
            behind = time_of() - start - frames_to_seconds(turn)
            if behind < 0:
                await asyncio.sleep(-behind)
            elif behind > 1:  # a stall: go on from here
                start += behind
            yield turn, self.playout.take()
            turn += 1

    # What the service does, frame by frame.

    def make_changes(self) -> bool:
        """Do what waits to be done. Returns whether the conversation has begun, which it does with a block."""
        while self._changes:
            self._changes.popleft()()
        return self.stream.clock_frames > 0

    def step(self) -> dict[str, Any]:
        """The next frame's input for `stream.push`: what there is now of the user, and the avatar's voice when the
        user's part of a block is complete, so that it can be interrupted until then.
        """
        sound, face, image = self.heard.take(SAMPLES_PER_FRAME), None, None
        if self.user == "camera":
            image, self._seen = self._seen, None
            lost = image is None
        else:
            face, image, sound = self.puppet.step(sound)
            lost = self.user == "mirror"  # until `mirror` is called
        self.faces_lost = self.faces_lost + 1 if lost else 0
        if image is not None:
            self.view = image
        self._faces.append(face)
        self._views.append(self.view)
        audible = float(np.abs(sound).max()) >= AUDIBLE
        self._audible_frames = self._audible_frames + 1 if audible else 0
        if audible:
            self.touch()
        if self.settings.barge_in and self._audible_frames == _BARGE_IN_FRAMES:
            self.interrupt()
        given: dict[str, Any] = {"user_audio": sound, "user_frames": [image]}
        lacking = self.stream.waiting_for
        if max((frames for name, frames in lacking.items() if name != "avatar_audio"), default=0) <= 1:
            given["avatar_audio"] = self._next_words(frames_to_samples(lacking.get("avatar_audio", 0)))
            self._spoken = np.concatenate((self._spoken, given["avatar_audio"]))
            if given["avatar_audio"].any():
                self.voiced_frames = samples_to_frames(self._spoken_from + len(self._spoken))
        return given

    def _next_words(self, count: int) -> Samples:
        """The next `count` samples of the avatar's voice. Speech that has only begun to arrive ends with them, not in a
        gap before the rest of it; an ended one is followed by silence.
        """
        voice = self.unsaid.take(min(count, len(self.unsaid)))
        silence = np.zeros(count - len(voice), np.float32)
        parts = (voice, silence) if self._speaking else (silence, voice)
        if count:
            self._speaking = len(voice) > 0 and (not self._speaking or len(voice) == count)
        return np.concatenate(parts)

    def shown(self, block: LiveBlock, images: UInt8[np.ndarray, "T Y X 3"]) -> list[Shown]:
        """A block's frames, marked, with their voice."""
        start, stop = (frames_to_samples(n) for n in (block.start, block.start + len(images)))
        voice = self._spoken[start - self._spoken_from : stop - self._spoken_from]
        self._spoken, self._spoken_from = self._spoken[stop - self._spoken_from :], stop
        parts = voice.reshape(len(images), SAMPLES_PER_FRAME)
        seen = map(marked, images) if self.settings.mark else images
        return [Shown(block.start + n, *both) for n, both in enumerate(zip(seen, parts, strict=True))]

    def user_of_block(self, frames: int) -> tuple[list[Float32[np.ndarray, " P"] | None], list[Image]]:
        """The puppet's face parameters (None of a camera) and the images of the user in the oldest `frames` frames."""
        faces, views = self._faces[:frames], self._views[:frames]
        del self._faces[:frames], self._views[:frames]
        return faces, views

    def report(self) -> dict[str, Any]:
        """Budget, faults and state, as plain values."""
        faults = asdict(self.stream.faults) | {
            "furthest_behind_frames": 0,  # the avatar's voice is, by design
            "skipped_frames": self.skipped_frames,
            "late_frames": self.playout.late,
            "left_out_frames": self.playout.dropped,
            "missing_samples": self.heard.missing,
            "surplus_samples": self.heard.dropped,
        }
        return {
            "budget": {name: round(value, 3) for name, value in asdict(self.budget).items()},
            "faults": {name: count for name, count in faults.items() if count},
            "waiting_frames": len(self.playout),
            "unsaid_s": round(samples_to_seconds(len(self.unsaid)), 2),
            "face_lost": self.user != "puppet" and self.faces_lost * FRAME_MS > 1000,
            "seconds": round(time.monotonic() - self.begun_s, 1),
        }
