"""The roll-out live: raw samples and user motion come in as they are recorded, blocks go out as soon as they can exist.

The same computation as `rollout` on streaming features, fed block by block: equal output for any way of cutting the
input. The session imports no models: it is given the speech features, the face encoder and the denoiser.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from af.clock import FRAME_MS, SAMPLE_RATE, samples_to_frames
from af.errors import UserError
from af.forcing.inputs import Face, Queue, SpeechStream, Voice
from af.forcing.rollout import draw_noise, filled
from af.forcing.sampler import BlockSampler, Denoiser
from af.forcing.together import commit_together, step_together
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
    waits for ever (`waiting_for` says what is waited for). `sampling` as in `BlockSampler`: steps, guidance, schedule,
    solver, anchor. Raises UserError for settings or input that cannot work.
    """

    def __init__(
        self,
        denoiser: LiveDenoiser,
        reference: Float[Tensor, "1 L"],
        speech: SpeechStream | None,
        *,
        signals: Signals = Signals(),
        encode_user: Callable[[Any], Float[Tensor, " L"] | None] | None = None,
        generator: torch.Generator | None = None,
        patience_frames: int | None = None,
        **sampling: Any,
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
            self._sampler = BlockSampler(denoiser, self._reference, **sampling)
            rest = denoiser.motion_space.from_model(torch.zeros_like(self._reference))[0]
        self.faults = Faults()
        self._voices = {
            name: Voice(speech, reference.device)
            for name in ("avatar_audio", "user_audio")
            if getattr(signals, name) and speech is not None
        }
        self._face = Face(rest) if signals.user_motion else None
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

    @property
    def waiting_for(self) -> dict[str, int]:
        """Frames that each signal still lacks of the next block; a signal that lacks none is not named."""
        size = self._sampler.layout.block_frames
        stop = self._sampler.frames + size
        lacking = {}
        for name, frames in self._received().items():
            voice = self._speech is not None and name != "user_motion"
            needed = self._speech.needed_frames(stop) if voice and self._speech is not None else stop
            lacking[name] = max(0, needed - frames)
        return {name: frames for name, frames in lacking.items() if frames}

    def push(self, **signals: Any) -> list[LiveBlock]:
        """New input, and the blocks it completes.

        `avatar_audio`, `user_audio`: mono samples in [-1, 1] at `sample_rate` (16,000); `user_motion`: latents, or
        `user_frames`: what `encode_user` takes, None for a frame without a face. Raises UserError for another sample
        rate or shape, for integer samples, for a signal the session was not made for, and after `finish`; the session
        is then as before.
        """
        return push_together([self], [signals])[0]

    def _take(
        self,
        *,
        avatar_audio: Float[np.ndarray | Tensor, " S"] | None = None,
        user_audio: Float[np.ndarray | Tensor, " S"] | None = None,
        user_motion: Float[Tensor, "t L"] | None = None,
        user_frames: Any = None,
        sample_rate: int = SAMPLE_RATE,
    ) -> None:
        sounds = {"avatar_audio": avatar_audio, "user_audio": user_audio}
        self._check(sounds, user_motion, user_frames, sample_rate)
        # what cannot be encoded is refused before anything is taken
        frames = () if user_frames is None else user_frames
        seen = [None if frame is None else self._encoded(frame) for frame in frames]
        for name, sound in sounds.items():
            if sound is not None:
                self.faults.bad_samples += self._voices[name].push(torch.as_tensor(sound))
        if self._face is not None:
            if user_motion is not None:
                self.faults.frames_without_face += self._face.push(user_motion)
            for motion in seen:
                self._push_face(motion)
        self._fill_the_late()

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
        blocks = _ready_blocks([self], start)[0]
        left = end - self._sampler.frames
        if left > 0:
            condition, noise = self._next(left)
            blocks.append(self._block(self._sampler.step(condition, noise)[:, :left], start))
        return blocks

    def _due(self) -> bool:
        """Whether the input of a whole block is there."""
        return all(queue.frames >= self._sampler.layout.block_frames for queue in self._queues())

    def _next(self, frames: int) -> tuple[Condition, Float[Tensor, "1 T D"]]:
        """Condition and noise of the next block, of which `frames` are wanted."""
        avatar, user = (self._voices.get(name) for name in ("avatar_audio", "user_audio"))
        condition = self._denoiser.condition(
            None if avatar is None else avatar.features.take(frames),
            None if user is None else user.features.take(frames),
            None if self._face is None else self._face.motion.take(frames),
        )
        size = self._sampler.layout.block_frames
        return filled(condition, size), draw_noise(self._generator, self._reference, size)

    def _block(self, motion: Float[Tensor, "1 t D"], start: float) -> LiveBlock:
        first = self._sampler.frames - self._sampler.layout.block_frames
        return LiveBlock(first, self._denoiser.motion_space.from_model(motion), 1000 * (time.perf_counter() - start))

    def _encoded(self, frame: Any) -> Float[Tensor, " L"] | None:
        assert self._encode_user is not None
        return self._encode_user(frame)

    def _push_face(self, motion: Float[Tensor, " L"] | None) -> None:
        assert self._face is not None
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

    def _queues(self) -> list[Queue]:
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


@torch.no_grad()
def push_together(sessions: Sequence[LiveSession], signals: Sequence[Mapping[str, Any]]) -> list[list[LiveBlock]]:
    """`push` of many sessions, each with its own signals: blocks that are due together are computed in one batch.

    The blocks are those that each session alone would give, up to rounding. A session's UserError leaves it and the
    ones after it as they were.
    """
    start = time.perf_counter()
    for session, new in zip(sessions, signals, strict=True):
        session._take(**new)
    # the blocks before: there was no time for them when they were due
    commit_together([session._sampler for session in sessions])
    return _ready_blocks(sessions, start)


def _ready_blocks(sessions: Sequence[LiveSession], start: float) -> list[list[LiveBlock]]:
    blocks: list[list[LiveBlock]] = [[] for _ in sessions]
    while due := [i for i, session in enumerate(sessions) if session._due()]:
        inputs = [sessions[i]._next(sessions[i]._sampler.layout.block_frames) for i in due]
        samplers = [sessions[i]._sampler for i in due]
        motions = step_together(samplers, [c for c, _ in inputs], [noise for _, noise in inputs])
        for i, motion in zip(due, motions, strict=True):
            blocks[i].append(sessions[i]._block(motion, start))
    return blocks
