"""One person's conversation with the avatar: what they and the avatar say, frame by frame, and what became of it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

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
from af.forcing.pieces import Signals
from af.forcing.stream import LiveSession
from af.pipeline.encode import face_crop
from af.pipeline.live import user_encoder
from af.serve.puppet import Puppet
from af.serve.queues import AUDIBLE, Playout, SampleQueue, Seen, Shown
from af.serve.recordings import Recorder
from af.serve.replay import Frame, Replays
from af.serve.settings import USERS, Budget, Model, Settings, User
from af.types import Identity

Image = UInt8[np.ndarray, "Y X 3"]
Samples = Float32[np.ndarray, " S"]
#: What the avatar can be given to say at most.
LONGEST_SPEECH_S: Final = 300
_WATCH_S: Final = 0.004  # how often a late frame is looked for
_BARGE_IN_FRAMES: Final = 5  # the user must be audible for this long to interrupt


class Conversation:
    """A session of `af.forcing.stream` with queues around it. `hear`, `see`, `steer`, `say` and `interrupt` may be called
    at any time by any thread; a `Service` computes it frame by frame and puts what it shows into `playout`.

    `models` are one and, if there is one, its student, which share an autoencoder; `settings` say with which it begins.
    """

    def __init__(
        self,
        models: Sequence[Model],
        portrait: Image,
        puppet: Puppet,
        settings: Settings,
        replays: Replays | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.on_student = settings.student and len(models) > 1
        self._models, self.model, self._portrait = models, models[int(self.on_student)], portrait
        self._size = models[0].avatar.autoencoder.image_size
        self._samplings = [model.sampling for model in models]
        self.settings, self.user = replace(settings, sampling=self.model.sampling), settings.user
        self.puppet, self.replays, self.recorder = puppet, replays, recorder
        self.playout = Playout(4 * max(model.block_frames for model in models))
        cushion, slack = seconds_to_samples(settings.cushion_ms / 1000), seconds_to_samples(0.06)
        self.heard = SampleQueue(2 * SAMPLE_RATE, cushion, slack)
        self.dubbed = SampleQueue(2 * SAMPLE_RATE, cushion, slack)
        self.unsaid = SampleQueue(LONGEST_SPEECH_S * SAMPLE_RATE)
        self.budget, self.skipped_frames, self.faces_lost = Budget(), 0, 0
        #: Called with each block's report, by the service's thread.
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self.closed: str | None = None  # why, once it is
        self.begun_s = self.touched_s = time.monotonic()
        self.view = np.full_like(portrait, 128)  # the user as the model sees them
        self._seen: Image | None = None
        self._replay: Iterator[Frame] | None = None
        self._repeated: Samples | None = None
        self._changes: deque[Callable[[], None]] = deque()
        self._audible_frames = 0
        self.begin()

    def begin(self) -> None:
        """Start anew with the same portrait, signals and settings."""
        avatar = self.model.avatar
        self._identity, reference = avatar.identity(self._portrait)
        self.stream = LiveSession(
            avatar.denoiser,
            reference,
            self.model.speech,
            encode_user=user_encoder(avatar),
            generator=torch.Generator().manual_seed(self.settings.seed),
            **self.settings.sampling,
        )
        self.stream.change(signals=self.settings.signals)
        self.playout.clear()
        self._spoken, self._spoken_from = np.zeros(0, np.float32), 0  # the avatar's voice of frames not shown yet
        self._speaking = False  # up to the end of that voice
        self._interruptions = self._said_after = 0  # until now, and when that voice was taken
        self.voiced_frames = 0  # until the end of the last block with a voice; what is unsaid comes after it
        self._users: list[Seen] = []  # of the block in the making
        self._dubbing: list[Samples] = []

    @property
    def block_frames(self) -> int:
        """Frames per block."""
        return self.model.block_frames

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
        self.heard.push(_clean(samples))

    def dub(self, samples: Samples) -> None:
        """The avatar's voice as somebody says it now: 16 kHz mono, in [-1, 1]; beside it, `say` goes on."""
        self.dubbed.push(_clean(samples))
        if np.abs(samples).max(initial=0) >= AUDIBLE:
            self._repeated = None
            self.touch()

    def see(self, face: Image | None) -> None:
        """The user's newest face crop, None for an image without a face; used once, and only for the user "camera".

        Raises UserError for another size.
        """
        self._seen = None if face is None else face_crop("user_frames", face, self._size)

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
        self.user, self._seen, self._replay, self.faces_lost = user, None, None, 0
        self.puppet.mirror(None)

    def replay(self, number: int) -> None:
        """Begin anew with a recorded conversation: the user is its user, the avatar says what its other person says.

        Raises UserError when there is none with this number (`Replays`).
        """
        if self.replays is None:
            raise UserError("replay: the server was started without recorded conversations (--replay SHARDS)")
        recorded = self.replays.open(number)

        def change() -> None:
            self.user, self._replay, self.faces_lost = "replay", recorded, 0
            self.interrupt()
            self.begin()

        self.later(change)

    def choice(self, student: bool) -> tuple[Model, Mapping[str, Any]]:
        """The student, or the model it learned from, and how it is sampled here. Raises UserError without a student."""
        if student and len(self._models) < 2:
            raise UserError("student: the server was started without one (--student FOLDER)")
        now = self.settings.sampling if student == self.on_student else self._samplings[int(student)]
        return self._models[int(student)], now

    def say(self, samples: Samples) -> None:
        """Let the avatar say more, after what is still unsaid. Raises UserError when that is too much."""
        if self._repeated is not None:
            self.interrupt()
        seconds = samples_to_seconds(len(self.unsaid) + len(samples))
        if seconds > LONGEST_SPEECH_S:
            raise UserError(
                f"say: {seconds:.0f} s of speech are waiting; at most {LONGEST_SPEECH_S} s, so wait or stop"
            )
        self.unsaid.push(_clean(samples))

    def interrupt(self) -> None:
        """Forget what the avatar has not said: it falls silent within a block."""
        self._repeated = None
        self.unsaid.clear()
        self._interruptions += 1
        self.playout.hush(self.block_frames)

    def repeat(self, samples: Samples) -> None:
        """Let the avatar say this again and again, until it is interrupted or given something else to say."""
        self._repeated = _clean(samples)

    def change(
        self,
        *,
        student: bool | None = None,
        signals: Signals | None = None,
        barge_in: bool | None = None,
        **sampling: Any,
    ) -> None:
        """Change settings from the next block on (`af.forcing.stream.LiveSession.change`); another `student` than before
        begins anew, with the student or with the model it learned from.

        Raises UserError without a student, and when too much is waiting; then nothing has changed.
        """
        student = self.on_student if student is None else student
        anew, (model, usual) = student != self.on_student, self.choice(student)

        def change() -> None:
            if anew:
                self.begin()
            elif self.model is model and (signals is not None or sampling):
                self.stream.change(signals=signals, **sampling)

        self._require_room()
        self._samplings[int(self.on_student)] = self.settings.sampling
        self.model, self.on_student = model, student
        self.settings = replace(
            self.settings,
            signals=self.settings.signals if signals is None else signals,
            barge_in=self.settings.barge_in if barge_in is None else barge_in,
            sampling={**usual, **sampling},
        )
        self._changes.append(change)  # last: another thread does it at once, and reads the settings

    def show(self, portrait: Image) -> None:
        """Change the avatar's portrait from the next block on. Raises UserError for another size."""
        portrait = face_crop("portrait", portrait, self._size)

        def change() -> None:
            self._portrait = portrait
            self._identity, reference = self.model.avatar.identity(portrait)
            self.stream.change_reference(reference)

        self.later(change)

    def restart(self) -> None:
        """Begin anew."""
        self.interrupt()
        self.later(self.begin)

    def later(self, change: Callable[[], None]) -> None:
        """Let the service's thread do it before the next frame. Raises UserError when too much is waiting."""
        self._require_room()
        self._changes.append(change)

    def _require_room(self) -> None:
        if len(self._changes) >= 16:
            raise UserError("too many changes at once; wait for a moment")

    # What comes back.

    async def played(self) -> AsyncIterator[tuple[int, Shown | None]]:
        """Numbered turns, 25 a second (`Playout`), each with the frame to show next, or None where it is not there yet;
        until the conversation is closed. A frame that comes late by less than a turn is waited for: it delays those
        after it by no more than that.
        """
        playout, turn = self.playout, 0
        playout.postpone(playout.clock() - playout.due_s)
        while self.closed is None:
            due = playout.due_s
            await asyncio.sleep(max(0.0, due - playout.clock()))
            late = False
            while not len(playout) and playout.clock() < due + frames_to_seconds(1) and self.closed is None:
                late = True
                await asyncio.sleep(_WATCH_S)
            behind, shown = playout.clock() - due, playout.take()
            if (late and shown is not None) or behind > 1:  # after a stall: go on from here
                playout.postpone(behind)
            yield turn, shown
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
        sound, voice = self.heard.take(SAMPLES_PER_FRAME), self.dubbed.take(SAMPLES_PER_FRAME)
        face, image, lost = None, None, False
        replay = self._replay  # clients change it meanwhile
        if self.user == "camera":
            image, self._seen = self._seen, None
            lost = image is None
        elif replay is not None:
            recorded = next(replay)
            image, sound, voice = recorded.image, recorded.user, recorded.avatar
        else:
            face, image, sound = self.puppet.step(sound)
            lost = self.user == "mirror"  # until `mirror` is called
        self.faces_lost = self.faces_lost + 1 if lost else 0
        if image is not None:
            self.view = image
        self._users.append(Seen(self.view, sound, image is not None, face))
        self._dubbing.append(voice)
        audible = replay is None and float(np.abs(sound).max()) >= AUDIBLE
        self._audible_frames = self._audible_frames + 1 if audible else 0
        if audible:
            self.touch()
        if self.settings.barge_in and self._audible_frames == _BARGE_IN_FRAMES:
            self.interrupt()
        given: dict[str, Any] = {"user_audio": sound, "user_frames": [image]}
        lacking = self.stream.waiting_for
        if max((frames for name, frames in lacking.items() if name != "avatar_audio"), default=0) <= 1:
            samples = frames_to_samples(lacking.get("avatar_audio", 0))
            dubbing, self._dubbing = np.concatenate(self._dubbing)[:samples], []
            said = self._next_words(samples) + np.pad(dubbing, (0, samples - len(dubbing)))
            given["avatar_audio"] = np.clip(said, -1, 1)
            self._said_after = self._interruptions
            self._spoken = np.concatenate((self._spoken, given["avatar_audio"]))
            if given["avatar_audio"].any():
                self.voiced_frames = samples_to_frames(self._spoken_from + len(self._spoken))
        return given

    def _next_words(self, count: int) -> Samples:
        """The next `count` samples of the avatar's voice. Speech that has only begun to arrive ends with them, not in a
        gap before the rest of it; an ended one is followed by silence.
        """
        if self._repeated is not None and len(self.unsaid) < count:
            self.unsaid.push(self._repeated)
        voice = self.unsaid.take(min(count, len(self.unsaid)))
        silence = np.zeros(count - len(voice), np.float32)
        parts = (voice, silence) if self._speaking else (silence, voice)
        if count:
            self._speaking = len(voice) > 0 and (not self._speaking or len(voice) == count)
        return np.concatenate(parts)

    def shown(self, start_frame: int, images: UInt8[np.ndarray, "T Y X 3"]) -> list[Shown]:
        """A block's next frames, marked, with their voice."""
        start, stop = (frames_to_samples(n) for n in (start_frame, start_frame + len(images)))
        voice = self._spoken[start - self._spoken_from : stop - self._spoken_from]
        self._spoken, self._spoken_from = self._spoken[stop - self._spoken_from :], stop
        if self._said_after != self._interruptions:  # while the block was computed
            voice = np.zeros_like(voice)
        parts = voice.reshape(len(images), SAMPLES_PER_FRAME)
        seen = map(marked, images) if self.settings.mark else images
        return [Shown(start_frame + n, *both) for n, both in enumerate(zip(seen, parts, strict=True))]

    def user_of_block(self, frames: int) -> list[Seen]:
        """The user in the oldest `frames` frames."""
        users = self._users[:frames]
        del self._users[:frames]
        return users

    def report(self) -> dict[str, Any]:
        """Budget, faults and state, as plain values."""
        faults = asdict(self.stream.faults) | {
            "furthest_behind_frames": 0,  # the avatar's voice is, by design
            "skipped_frames": self.skipped_frames,
            "late_frames": self.playout.late,
            "left_out_frames": self.playout.dropped,
            "missing_samples": self.heard.missing,
            "surplus_samples": self.heard.dropped,
            "unrecorded_frames": 0 if self.recorder is None else self.recorder.left_out,
        }
        return {
            "budget": {name: round(value, 3) for name, value in asdict(self.budget).items()},
            "faults": {name: count for name, count in faults.items() if count},
            "waiting_frames": len(self.playout),
            "unsaid_s": round(samples_to_seconds(len(self.unsaid)), 2),
            "face_lost": self.user != "puppet" and self.faces_lost * FRAME_MS > 1000,
            "seconds": round(time.monotonic() - self.begun_s, 1),
        }


def _clean(samples: Samples) -> Samples:
    return np.clip(np.nan_to_num(samples), -1, 1).astype(np.float32, copy=False)
