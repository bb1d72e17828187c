"""The roll-out live: raw samples and user motion come in as they are recorded, blocks go out as soon as they can exist.

The same computation as `rollout` on streaming features, fed block by block: equal output for any way of cutting the
input. The session imports no models: it is given the speech features, the face encoder and the denoiser.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, Final, Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from af.clock import FRAME_MS, SAMPLE_RATE, frames_to_samples, frames_to_seconds
from af.devices import synchronize
from af.errors import UserError
from af.forcing import pieces
from af.forcing.batching import commit_batch, step_batch
from af.forcing.inputs import Bounds, Face, SpeechStream, Voice
from af.forcing.pieces import Faults, Rates, Signals
from af.forcing.rollout import draw_noise
from af.forcing.sampler import BlockSampler, Denoiser
from af.types import Condition

SAMPLING: Final = tuple(inspect.signature(BlockSampler).parameters)[2:]


class Space(Protocol):
    """Motion latents (L dims) to the denoiser's space and back."""

    latent_dim: int

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
class LiveBlock:
    """Motion of frames [start, start + t) and the time from the push that completed its input to its being there."""

    start: int
    motion: Float[Tensor, "1 t L"]
    computing_ms: float


class LiveSession:
    """One conversation with an avatar. `push` what was recorded, in pieces of any size; take the blocks it returns.

    The audio is the clock: it counts the time since the session's start, and all signals lie on it. What comes at other
    rates than 16,000 samples and 25 frames a second is declared (`rates`). A block comes when all `signals` have reached
    its end. With `patience_frames` a signal that falls further behind the audio than that is filled up (silence; its
    last motion), so that nothing waits for ever (`waiting_for` says what is waited for): what comes late replaces what
    was filled and not used yet, or is dropped. A source that goes on after a pause without what it missed goes on at
    the clock, and user frames that run ahead by more than the patience are dropped likewise. So push what belongs
    together in one call, or in pieces shorter than the patience, and a synthetic voice as it is played. `faults` counts
    all of it.

    `reference`, user motion and output are motion latents; `encode_user` turns one user frame into a latent, or None
    when there is no face in it. `sampling` as in `BlockSampler`: steps, guidance, schedule, solver, anchor. Raises
    UserError for settings or input that cannot work. Threads may push to one session: each push waits for the others.
    """

    def __init__(
        self,
        denoiser: LiveDenoiser,
        reference: Float[Tensor, "1 L"],
        speech: SpeechStream | None,
        *,
        signals: Signals = Signals(),  # noqa: B008 (frozen)
        rates: Rates = Rates(),  # noqa: B008 (frozen)
        encode_user: Callable[[Any], Float[Tensor, " L"] | None] | None = None,
        generator: torch.Generator | None = None,
        patience_frames: int | None = None,
        **sampling: Any,
    ) -> None:
        pieces.check_settings(signals, rates, encode_user, generator, patience_frames, speech)
        pieces.check_names(sampling, SAMPLING, "a session")
        heard = signals.avatar_audio or signals.user_audio
        self._denoiser, self._speech, self._encode_user = denoiser, speech if heard else None, encode_user
        self._generator, self._patience = generator, patience_frames
        with torch.no_grad():
            width = denoiser.motion_space.latent_dim
            self._reference = denoiser.motion_space.to_model(pieces.checked_reference(reference, width))
            self._sampler = BlockSampler(denoiser, self._reference, **sampling)
            rest = denoiser.motion_space.from_model(torch.zeros_like(self._reference))[0]
        self._faults, self._unseen = Faults(), torch.zeros((), dtype=torch.long, device=rest.device)
        self._signals: dict[str, Voice | Face] = {
            name: Voice(speech, getattr(rates, name))
            for name in ("avatar_audio", "user_audio")
            if getattr(signals, name) and speech is not None
        }
        if signals.user_motion:
            self._signals["user_motion"] = Face(rest, rates.frame_step)
        converting = [pieces.RESAMPLING_S * 1000] * any(getattr(rates, name) != SAMPLE_RATE for name in self._voices)
        if self._face is not None:  # the nearest frame may end after the one that it is shown for
            converting.append(max(0.0, float(1.5 * rates.frame_step - 1)) * FRAME_MS * (rates.frame_step != 1))
        self._converting_ms = max(converting, default=0.0)
        self._width = width
        self._end: int | None = None  # frames that the session has lasted, when it is finished
        self._lock = threading.RLock()  # camera and microphone may have a thread each

    @property
    def _voices(self) -> dict[str, Voice]:
        return {name: signal for name, signal in self._signals.items() if isinstance(signal, Voice)}

    @property
    def _face(self) -> Face | None:
        face = self._signals.get("user_motion")
        return face if isinstance(face, Face) else None

    @property
    def frames(self) -> int:
        """Frames that have been returned."""
        return self._sampler.frames if self._end is None else self._end

    @property
    def clock_frames(self) -> int:
        """Frames that the session has lasted: those of the audio (of the user's motion where there is none)."""
        if self._end is not None:
            return self._end
        return max(signal.received_frames for signal in (self._voices or self._signals).values())

    @property
    def faults(self) -> Faults:
        """What was wrong with the input so far."""
        # counted where the motion is, and only fetched from there when somebody asks
        with self._lock:
            self._faults.frames_without_face += int(self._unseen)
            self._unseen = torch.zeros_like(self._unseen)
            return self._faults

    @property
    def look_ahead_ms(self) -> float:
        """Input after a block's end that its frames depend on: 0 unless the speech features have a right context or
        blocks that do not end with the motion's, or a signal comes at a rate that is converted.
        """
        return max(need - stop for _, stop, need in self._cycle()) * FRAME_MS + self._converting_ms

    @property
    def waiting_ms(self) -> float:
        """Longest time from an instant of input to the input being there with which its frame can be computed."""
        return max(need - start for start, _, need in self._cycle()) * FRAME_MS + self._converting_ms

    @property
    def waiting_for(self) -> dict[str, int]:
        """Frames that each signal still lacks of the next block; a signal that lacks none is not named."""
        if self._end is not None:
            return {}
        stop = self._sampler.frames + self._sampler.layout.block_frames
        heard = stop if self._speech is None else self._speech.needed_frames(stop)
        needed = {name: heard if name in self._voices else stop for name in self._signals}
        lacking = {name: needed[name] - signal.received_frames for name, signal in self._signals.items()}
        return {name: frames for name, frames in lacking.items() if frames > 0}

    def push(self, **signals: Any) -> list[LiveBlock]:
        """New input, and the blocks it completes. All or nothing: after an error the session is what it was before.

        `avatar_audio`, `user_audio`: mono samples, floats in [-1, 1] or integers of 16 or 32 bits; `user_motion`:
        latents, or `user_frames`: what `encode_user` takes, None for a frame without a face; both may come with
        `user_times`, when they were taken, in seconds since the session's start. Arrays, tensors or lists. Raises
        UserError for other shapes and types, floats that are not audio in [-1, 1], a signal the session was not made
        for, and after `finish`.
        """
        return push_batch([self], [signals])[0]

    @torch.no_grad()
    def change_reference(self, reference: Float[Tensor, "1 L"]) -> None:
        """Another portrait: the blocks from the next one on are its motion. Decode them with its identity.

        Raises UserError for a reference of another shape.
        """
        if self._end is not None:
            raise UserError("the session is finished; start a new one")
        reference = pieces.checked_reference(reference, self._width).to(self._reference.device)
        with self._lock:
            self._sampler.change_reference(self._denoiser.motion_space.to_model(reference))

    def _take(self, given: Mapping[str, Any]) -> None:
        """Take what was pushed; whoever calls puts the session back as it was after an error."""
        given = self._checked(given)
        audio = {name: pieces.mono_samples(name, given[name]) for name in self._voices if name in given}
        motion: Tensor | None = None
        frames: list[Any] = []
        if self._face is not None and "user_motion" in given:
            motion = pieces.motion_rows("user_motion", given["user_motion"], len(self._face.last))
        elif "user_frames" in given:
            frames = pieces.frame_list(given["user_frames"])
        times = None
        if self._face is not None and "user_times" in given:
            known = max(self._face.newest or 0, self.clock_frames)
            times = pieces.frame_times(
                given["user_times"], len(frames) if motion is None else len(motion), frames_to_seconds(float(known))
            )
        self._hear(audio)
        if self._face is not None:
            self._see(self._face, frames if motion is None else motion, times)
        self._fill_the_late()

    def _hear(self, audio: Mapping[str, Float32[np.ndarray, " S"]]) -> None:
        # of two voices the one that was filled up follows the other
        leader = min(self._voices, key=lambda n: self._voices[n].precedence, default=None)
        for name in sorted(audio, key=lambda name: name != leader):
            finite = np.isfinite(audio[name])
            self._faults.bad_samples += len(finite) - int(finite.sum())
            bounds = None
            if self._patience is not None and leader is not None and name != leader:
                bounds = Bounds(self._voices[leader].received, frames_to_samples(self._patience))
            samples = np.where(finite, audio[name], np.float32(0))
            self._faults.dropped_samples += self._voices[name].push(samples, bounds)

    def _see(self, face: Face, new: list[Any] | Tensor, times: list[Fraction] | None) -> None:
        bounds = None
        if self._patience is not None and self._voices:
            bounds = Bounds(self.clock_frames, self._patience)
        spans = face.spans(len(new), times, bounds)
        self._faults.dropped_frames += spans.dropped
        self._faults.filled_frames += spans.held
        if isinstance(new, Tensor):
            rows = new.to(face.last, non_blocking=True)
            if len(spans.needed) < len(new):
                rows = rows[torch.tensor(spans.needed, dtype=torch.long).to(rows.device, non_blocking=True)]
            there = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        else:
            self._faults.frames_without_face += sum(frame is None for frame in new)
            found = [None if new[i] is None else self._encoded(new[i], face) for i in spans.needed]
            none = torch.zeros_like(face.last)
            rows = torch.stack([none if row is None else row for row in found]) if found else none[None][:0]
            seen = torch.tensor([row is not None for row in found], dtype=torch.bool)
            there = seen.to(rows.device, non_blocking=True)
        finite = torch.isfinite(rows).all(-1)
        self._unseen = self._unseen + (there & ~finite).sum()
        face.push(spans, rows, there & finite)

    @torch.no_grad()
    def finish(self) -> list[LiveBlock]:
        """The end of the conversation: what is left, up to the longest signal; the others go on as in a pause."""
        with _all_or_nothing([self]):
            return self._finish(time.perf_counter()) if self._end is None else []

    def _finish(self, start: float) -> list[LiveBlock]:
        self._sampler.commit()
        for voice in self._voices.values():
            voice.end()
        end = max(self._sampler.frames, *(signal.whole_frames for signal in self._signals.values()))
        for signal in self._signals.values():
            signal.end_at(end)
        blocks = _ready_blocks([self], start)[0]
        left = end - self._sampler.frames
        if left > 0:
            condition, noise = self._next(left)
            blocks.append(self._block(self._sampler.step(condition, noise)[:, :left], start))
        self._end = end
        return blocks

    def _due(self) -> bool:
        """Whether the input of a whole block is there."""
        return all(signal.ready_frames >= self._sampler.layout.block_frames for signal in self._signals.values())

    def _next(self, frames: int) -> tuple[Condition, Float[Tensor, "1 T D"]]:
        """Condition and noise of the next block, of which `frames` are wanted."""
        taken = {name: signal.take(frames) for name, signal in self._signals.items()}
        condition = self._denoiser.condition(*(taken.get(field.name) for field in fields(Condition)))
        size = self._sampler.layout.block_frames
        return condition.filled(size), draw_noise(self._generator, self._reference, size)

    def _block(self, motion: Float[Tensor, "1 t D"], start: float) -> LiveBlock:
        first = self._sampler.frames - self._sampler.layout.block_frames
        motion = self._denoiser.motion_space.from_model(motion)
        synchronize(motion.device)
        return LiveBlock(first, motion, 1000 * (time.perf_counter() - start))

    def _encoded(self, frame: Any, face: Face) -> Float[Tensor, " L"] | None:
        assert self._encode_user is not None
        motion = self._encode_user(frame)
        if motion is None:
            return None
        if not (isinstance(motion, Tensor) and motion.is_floating_point() and motion.shape == face.last.shape):
            raise pieces.unfit(
                "encode_user", f"a latent {tuple(face.last.shape)} as a floating-point tensor, or None", motion
            )
        return motion.to(face.last, non_blocking=True, copy=True)  # the encoder may write to it again

    def _fill_the_late(self) -> None:
        clock = self.clock_frames
        behind = (clock - signal.expected_frames for signal in self._signals.values())
        self._faults.furthest_behind_frames = max(self._faults.furthest_behind_frames, *behind)
        if self._patience is None:
            return
        due = clock - self._patience
        for signal in self._signals.values():
            if signal.received_frames < due:
                self._faults.filled_frames += due - signal.received_frames
                signal.fill(due)

    def _cycle(self) -> list[tuple[int, int, int]]:
        """(start, stop, frames of input needed) of the blocks until motion and feature blocks meet again."""
        size = self._sampler.layout.block_frames
        if self._speech is None:
            return [(0, size, size)]
        stops = range(size, math.lcm(size, self._speech.block_frames) + 1, size)
        return [(stop - size, stop, self._speech.needed_frames(stop)) for stop in stops]

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What was pushed, without what is None. UserError for what this session does not take."""
        if self._end is not None:
            raise UserError("the session is finished; start a new one")
        found = pieces.pushed(given)
        for name in found:
            if (name if name.endswith("audio") else "user_motion") not in self._signals:
                raise UserError(f"{name}: this session was made without it")
        if "user_frames" in found and self._encode_user is None:
            raise UserError("user_frames: give the session an encode_user, or push user_motion")
        return found

    def _saved(self) -> dict[str, Any]:
        """All that changes, as it is now."""
        return {
            "_faults": replace(self._faults),
            "_unseen": self._unseen,
            "_signals": {name: signal.copy() for name, signal in self._signals.items()},
            "_end": self._end,
            "sampler": self._sampler.saved(),
            "generator": None if self._generator is None else self._generator.get_state(),
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        self._sampler.restore(saved.pop("sampler"))
        if (generator := saved.pop("generator")) is not None and self._generator is not None:
            self._generator.set_state(generator)
        vars(self).update(saved)


@contextlib.contextmanager
def _all_or_nothing(sessions: Sequence[LiveSession]) -> Iterator[None]:
    """What ends with an error (also one of the models', also an interruption) has not changed the sessions; what other
    threads want of them waits.
    """
    with contextlib.ExitStack() as held:
        for session in sorted(sessions, key=id):  # in one order, so that no two threads wait for each other
            held.enter_context(session._lock)
        saved = [session._saved() for session in sessions]
        try:
            yield
        except BaseException:
            for session, state in zip(sessions, saved, strict=True):
                session._restore(state)
            raise


@torch.no_grad()
def push_batch(sessions: Sequence[LiveSession], signals: Sequence[Mapping[str, Any]]) -> list[list[LiveBlock]]:
    """`push` of many sessions, each with its own signals: blocks that are due together are computed in one batch.

    The blocks are those that each session alone would give, up to rounding. After an error all are as they were before.
    """
    start = time.perf_counter()
    with _all_or_nothing(sessions):
        for session, new in zip(sessions, signals, strict=True):
            session._take(new)
        # the blocks before: there was no time for them when they were due
        commit_batch([session._sampler for session in sessions])
        return _ready_blocks(sessions, start)


def _ready_blocks(sessions: Sequence[LiveSession], start: float) -> list[list[LiveBlock]]:
    blocks: list[list[LiveBlock]] = [[] for _ in sessions]
    while due := [i for i, session in enumerate(sessions) if session._due()]:
        inputs = [sessions[i]._next(sessions[i]._sampler.layout.block_frames) for i in due]
        samplers = [sessions[i]._sampler for i in due]
        motions = step_batch(samplers, [c for c, _ in inputs], [noise for _, noise in inputs])
        for i, motion in zip(due, motions, strict=True):
            blocks[i].append(sessions[i]._block(motion, start))
    return blocks
