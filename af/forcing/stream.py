"""The roll-out live: raw samples and user motion come in as they are recorded, blocks go out as soon as they can exist.

The same computation as `rollout` on streaming features, fed block by block: equal output for any way of cutting the
input. The session imports no models: it is given the speech features, the face encoder and the denoiser.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from af.clock import FRAME_MS, SAMPLE_RATE, frames_to_samples, samples_to_frames
from af.errors import UserError
from af.forcing.guidance import Guidance
from af.forcing.rollout import BlockSampler, Denoiser, draw_noise, filled
from af.types import Condition


class Space(Protocol):
    """Motion latents (L dims) to the denoiser's space and back."""

    def to_model(self, motion: Tensor) -> Tensor: ...  # noqa: D102
    def from_model(self, x: Tensor) -> Tensor: ...  # noqa: D102


class LiveDenoiser(Denoiser, Protocol):
    """A denoiser that also makes conditions from raw features and latents (None = dropped)."""

    @property
    def motion_space(self) -> Space: ...  # noqa: D102

    def condition(  # noqa: D102
        self, avatar_audio: Tensor | None, user_audio: Tensor | None, user_motion: Tensor | None
    ) -> Condition: ...


@dataclass(frozen=True)
class SpeechStream:
    """Streaming speech features: `extract` gives the newest `block_frames` frames of a window of sound, `window(i)` the
    samples [start, stop) that feature block i is made of, `right_context_frames` of them after the block's end.
    """

    extract: Callable[[Float[Tensor, "1 S"]], Float[Tensor, "1 t F"]]
    window: Callable[[int], tuple[int, int]]
    block_frames: int
    right_context_frames: int = 0

    def needed_frames(self, stop: int) -> int:
        """Frames of sound that must have arrived before features of the frames up to `stop` exist."""
        return math.ceil(stop / self.block_frames) * self.block_frames + self.right_context_frames


@dataclass(frozen=True)
class Signals:
    """What the session listens to; a signal that is not there is dropped (zeros), as in guidance and training."""

    avatar_audio: bool = True
    user_audio: bool = True
    user_motion: bool = True


@dataclass(frozen=True)
class LiveBlock:
    """Motion of frames [start, start + t) and the time from the push that completed its input to its being there."""

    start: int
    motion: Float[Tensor, "1 t L"]
    computing_ms: float


@dataclass
class Faults:
    """What was wrong with the input and mended: NaN samples (silenced), user frames without a face (last motion held),
    frames filled up because a signal paused.
    """

    bad_samples: int = 0
    frames_without_face: int = 0
    filled_frames: int = 0


class LiveSession:
    """One conversation with an avatar. `push` what was recorded, in pieces of any size; take the blocks it returns.

    `reference`, user motion and output are motion latents; `encode_user` turns one user frame into a latent, or None
    when there is no face in it. A block comes when all `signals` have reached its end; with `patience_frames` a signal
    that falls further behind than that is filled up (silence; its last motion) and goes on from there, so that nothing
    waits for ever. Raises UserError for settings or input that cannot work.
    """

    def __init__(
        self,
        denoiser: LiveDenoiser,
        reference: Float[Tensor, "1 L"],
        speech: SpeechStream | None,
        *,
        signals: Signals = Signals(),
        encode_user: Callable[[Any], Float[Tensor, " L"] | None] | None = None,
        steps: int = 8,
        guidance: Guidance = Guidance(),  # noqa: B008 (frozen)
        schedule: str = "uniform",
        generator: torch.Generator | None = None,
        patience_frames: int | None = None,
    ) -> None:
        heard = signals.avatar_audio or signals.user_audio
        if not heard and not signals.user_motion:
            raise UserError("signals: a session needs the avatar's audio, the user's audio or the user's motion")
        if heard and speech is None:
            raise UserError("speech: audio signals need speech features")
        if patience_frames is not None and patience_frames < 0:
            raise UserError(f"patience_frames: {patience_frames}; it must not be negative")
        self._denoiser, self._speech, self._encode_user = denoiser, speech if heard else None, encode_user
        self._generator, self._patience = generator, patience_frames
        with torch.no_grad():
            self._reference = denoiser.motion_space.to_model(reference)
            self._sampler = BlockSampler(denoiser, self._reference, steps=steps, guidance=guidance, schedule=schedule)
            rest = denoiser.motion_space.from_model(torch.zeros_like(self._reference))[0]
        self.faults = Faults()
        self._voices = {
            name: _Voice(speech, reference.device)
            for name in ("avatar_audio", "user_audio")
            if getattr(signals, name) and speech is not None
        }
        self._face = _Face(rest) if signals.user_motion else None
        self._finished = False

    @property
    def frames(self) -> int:
        """Frames that have been returned."""
        return self._sampler.frames

    @property
    def look_ahead_ms(self) -> float:
        """Input after a block's end that its frames depend on: 0 unless the speech features have a right context or
        blocks that do not end with the motion's.
        """
        return max(need - stop for _, stop, need in self._cycle()) * FRAME_MS

    @property
    def waiting_ms(self) -> float:
        """Longest time from an instant of input to the input being there with which its frame can be computed."""
        return max(need - start for start, _, need in self._cycle()) * FRAME_MS

    @torch.no_grad()
    def push(
        self,
        *,
        avatar_audio: Float[np.ndarray | Tensor, " S"] | None = None,
        user_audio: Float[np.ndarray | Tensor, " S"] | None = None,
        user_motion: Float[Tensor, "t L"] | None = None,
        user_frames: Any = None,
        sample_rate: int = SAMPLE_RATE,
    ) -> list[LiveBlock]:
        """New input (mono samples in [-1, 1]; motion latents, or frames for `encode_user`), and the blocks it completes.

        Raises UserError for another sample rate or shape, for integer samples, for a signal the session was not made
        for, and after `finish`; the session is then as before.
        """
        start = time.perf_counter()
        sounds = {"avatar_audio": avatar_audio, "user_audio": user_audio}
        self._check(sounds, user_motion, user_frames, sample_rate)
        self._sampler.commit()  # the block before: there was no time for it when it was due
        for name, sound in sounds.items():
            if sound is not None:
                self.faults.bad_samples += self._voices[name].push(torch.as_tensor(sound))
        if self._face is not None:
            if user_motion is not None:
                self.faults.frames_without_face += self._face.push(user_motion)
            for frame in () if user_frames is None else user_frames:
                self._push_face(frame)
        self._fill_the_late()
        return list(self._ready(start))

    @torch.no_grad()
    def finish(self) -> list[LiveBlock]:
        """The end of the conversation: what is left, up to the longest signal; the others go on as in a pause."""
        start = time.perf_counter()
        if self._finished:
            return []
        self._finished = True
        self._sampler.commit()
        end = max(self._received().values())
        for voice in self._voices.values():
            voice.end_at(end)
            voice.features.cut(end - self._sampler.frames)
        if self._face is not None:
            self._face.fill(end)
        blocks = list(self._ready(start))
        left = end - self._sampler.frames
        if left > 0:
            blocks.append(self._step(left, start))
        return blocks

    def _ready(self, start: float) -> Iterator[LiveBlock]:
        size = self._sampler.layout.block_frames
        while all(queue.frames >= size for queue in self._queues()):
            yield self._step(size, start)

    def _step(self, frames: int, start: float) -> LiveBlock:
        avatar, user = (self._voices.get(name) for name in ("avatar_audio", "user_audio"))
        condition = self._denoiser.condition(
            None if avatar is None else avatar.features.take(frames),
            None if user is None else user.features.take(frames),
            None if self._face is None else self._face.motion.take(frames),
        )
        size, first = self._sampler.layout.block_frames, self._sampler.frames
        noise = draw_noise(self._generator, self._reference, size)
        motion = self._sampler.step(filled(condition, size), noise)[:, :frames]
        latents = self._denoiser.motion_space.from_model(motion)
        return LiveBlock(first, latents, 1000 * (time.perf_counter() - start))

    def _push_face(self, frame: Any) -> None:
        assert self._face is not None
        assert self._encode_user is not None
        motion = self._encode_user(frame)
        if motion is None:
            self.faults.frames_without_face += 1
            self._face.fill(self._face.received + 1)
        else:
            self.faults.frames_without_face += self._face.push(motion[None])

    def _fill_the_late(self) -> None:
        if self._patience is None:
            return
        received = self._received()
        due = max(received.values()) - self._patience
        for name, frames in received.items():
            if frames < due:
                self.faults.filled_frames += due - frames
                if name == "user_motion":
                    assert self._face is not None
                    self._face.fill(due)
                else:
                    self._voices[name].fill(due)

    def _received(self) -> dict[str, int]:
        frames = {name: samples_to_frames(voice.received) for name, voice in self._voices.items()}
        return frames if self._face is None else {**frames, "user_motion": self._face.received}

    def _queues(self) -> list[_Queue]:
        queues = [voice.features for voice in self._voices.values()]
        return queues if self._face is None else [*queues, self._face.motion]

    def _cycle(self) -> list[tuple[int, int, int]]:
        """(start, stop, frames of input needed) of the blocks until motion and feature blocks meet again."""
        size = self._sampler.layout.block_frames
        if self._speech is None:
            return [(0, size, size)]
        stops = range(size, math.lcm(size, self._speech.block_frames) + 1, size)
        return [(stop - size, stop, self._speech.needed_frames(stop)) for stop in stops]

    def _check(self, sounds: dict[str, Any], user_motion: Tensor | None, user_frames: Any, sample_rate: int) -> None:
        if self._finished:
            raise UserError("the session is finished; start a new one")
        if sample_rate != SAMPLE_RATE:
            raise UserError(f"audio at {sample_rate} Hz; a session takes {SAMPLE_RATE} Hz: resample it before")
        for name, sound in sounds.items():
            if sound is None:
                continue
            if name not in self._voices:
                raise UserError(f"{name}: this session was made without it")
            if torch.as_tensor(sound).ndim != 1 or not torch.as_tensor(sound).is_floating_point():
                raise UserError(
                    f"{name}: expected mono floating-point samples (S,) in [-1, 1], got "
                    f"{torch.as_tensor(sound).dtype} {tuple(sound.shape)}"
                )
        if self._face is None and (user_motion is not None or user_frames is not None):
            raise UserError("user_motion: this session was made without it")
        if user_frames is not None and self._encode_user is None:
            raise UserError("user_frames: give the session an encode_user, or push user_motion")
        if user_motion is not None and self._face is not None and user_motion.shape[1:] != self._face.last.shape:
            raise UserError(
                f"user_motion: expected (frames, {self._face.last.shape[0]}), got {tuple(user_motion.shape)}"
            )


class _Queue:
    """Frames waiting to be used."""

    def __init__(self) -> None:
        self.frames = 0
        self._pieces: deque[Float[Tensor, "1 t C"]] = deque()

    def put(self, piece: Float[Tensor, "1 t C"]) -> None:
        self._pieces.append(piece)
        self.frames += piece.shape[1]

    def take(self, count: int) -> Float[Tensor, "1 t C"]:
        """The oldest `count` frames."""
        self.frames -= count
        taken = []
        while count:
            piece = self._pieces.popleft()
            taken.append(piece[:, :count])
            if piece.shape[1] > count:
                self._pieces.appendleft(piece[:, count:])
            count -= taken[-1].shape[1]
        return torch.cat(taken, 1)

    def cut(self, count: int) -> None:
        """Keep the oldest `count` frames only."""
        kept = self.take(min(count, self.frames)) if count else None
        self.frames, self._pieces = 0, deque()
        if kept is not None:
            self.put(kept)


class _Voice:
    """Samples of one speaker and the features they give; keeps the sound that later feature blocks still need."""

    def __init__(self, speech: SpeechStream, device: torch.device) -> None:
        self.speech, self.device = speech, device
        self.features = _Queue()
        self.received = 0  # samples, since the start
        self._sound = torch.zeros(0)
        self._first = 0  # number of the first sample held
        self._blocks = 0

    def push(self, samples: Float[Tensor, " S"]) -> int:
        """Take samples; returns how many were not finite (and are silence now)."""
        finite = torch.isfinite(samples)
        self._append(torch.where(finite, samples, torch.zeros_like(samples)).float().cpu())
        self._extract()
        return int((~finite).sum())

    def fill(self, frames: int) -> None:
        """Silence until `frames` have been received."""
        self._append(torch.zeros(max(0, frames_to_samples(frames) - self.received)))
        self._extract()

    def end_at(self, frames: int) -> None:
        """The end: exactly `frames` of sound, a last feature block being completed with silence."""
        excess = self.received - frames_to_samples(frames)  # a part of a frame
        if excess > 0:
            self._sound, self.received = self._sound[: len(self._sound) - excess], self.received - excess
        self.fill(self.speech.needed_frames(frames))

    def _append(self, samples: Tensor) -> None:
        self._sound = torch.cat((self._sound, samples))
        self.received += len(samples)

    def _extract(self) -> None:
        start, stop = self.speech.window(self._blocks)
        while stop <= self.received:
            window = self._sound[start - self._first : stop - self._first]
            self.features.put(self.speech.extract(window[None].to(self.device)))
            self._blocks += 1
            start, stop = self.speech.window(self._blocks)
        drop = min(start - self._first, len(self._sound))
        if drop > 0:
            self._sound, self._first = self._sound[drop:].clone(), self._first + drop


class _Face:
    """The user's motion."""

    def __init__(self, rest: Float[Tensor, " L"]) -> None:
        self.motion = _Queue()
        self.received = 0
        self.last = rest  # until a face is seen: the motion that a dropped signal stands for

    def push(self, motion: Float[Tensor, "t L"]) -> int:
        """Take frames; returns how many were not finite (the last motion before them is held)."""
        bad = ~torch.isfinite(motion).all(-1)
        for start, stop in _runs(bad):
            if bad[start]:
                self.fill(self.received + stop - start)
            else:
                self.motion.put(motion[start:stop].to(self.last)[None])
                self.received += stop - start
                self.last = motion[stop - 1].to(self.last)
        return int(bad.sum())

    def fill(self, frames: int) -> None:
        """The last motion held until `frames` have been received."""
        if frames > self.received:
            self.motion.put(self.last.expand(1, frames - self.received, -1))
            self.received = frames


def _runs(flags: Tensor) -> Iterator[tuple[int, int]]:
    """[start, stop) of stretches of equal flags."""
    start = 0
    for _, group in groupby(flags.tolist()):
        stop = start + len(list(group))
        yield start, stop
        start = stop
