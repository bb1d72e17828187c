"""The live roll-out: takes audio and user motion as they are recorded and returns blocks as soon as possible.

The same computation as `rollout` on streaming features: the output does not depend on how the input is cut. The session
imports no models; speech features, face encoder and denoiser are passed in.
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
from typing import Any, Final

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
from af.forcing.sampler import BlockSampler, LiveDenoiser, continued, sampler_of
from af.types import Condition

SAMPLING: Final = tuple(inspect.signature(BlockSampler).parameters)[2:]


@dataclass(frozen=True)
class LiveBlock:
    """Motion of frames [start, start + t), and the time it took after the push that completed its input."""

    start: int
    motion: Float[Tensor, "1 t L"]
    computing_ms: float


class LiveSession:
    """One conversation with an avatar: `push` recorded input in pieces of any size; it returns the finished blocks.

    The audio is the clock of all signals. Declare rates other than 16,000 samples and 25 frames per second in `rates`.
    A block is computed when all `signals` have reached its end; `waiting_for` names what is missing. With
    `patience_frames`, a signal further behind the audio is filled up (with silence or its last motion): late input
    replaces the filled part not used yet, or is dropped. A source that resumes after a pause without the missed input
    continues at the clock, and user frames that are ahead by more than the patience are dropped. Push simultaneous
    input in one call, or in pieces shorter than the patience, and a synthetic voice at playing speed. `faults` counts
    all corrections.

    `reference`, user motion and output are motion latents; `encode_user` turns a user frame into a latent, or None if
    it shows no face. `sampling` as in `BlockSampler`: steps, guidance, schedule, solver, anchor, dead_band. Raises UserError for
    settings or input that cannot work. Several threads may push to one session; pushes run one at a time.
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
        self._used, self._sampling = signals, sampling
        #: Condition, with all signals, and motion of the last window's blocks.
        self._recent: tuple[tuple[Condition, Tensor], ...] = ()
        with torch.no_grad():
            width = denoiser.motion_space.latent_dim
            self._reference = denoiser.motion_space.to_model(pieces.checked_reference(reference, width))
            self._sampler = sampler_of(denoiser, self._reference, **sampling)
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
        if self._face is not None:  # the nearest frame may end after the slot that shows it
            converting.append(max(0.0, float(1.5 * rates.frame_step - 1)) * FRAME_MS * (rates.frame_step != 1))
        self._converting_ms = max(converting, default=0.0)
        self._width = width
        self._end: int | None = None  # length of a finished session
        self._lock = threading.RLock()  # camera and microphone may use separate threads

    @property
    def _voices(self) -> dict[str, Voice]:
        return {name: signal for name, signal in self._signals.items() if isinstance(signal, Voice)}

    @property
    def _face(self) -> Face | None:
        face = self._signals.get("user_motion")
        return face if isinstance(face, Face) else None

    @property
    def frames(self) -> int:
        """Number of frames returned so far."""
        return self._sampler.frames if self._end is None else self._end

    @property
    def clock_frames(self) -> int:
        """Length of the session so far, by its audio (by the user's motion without audio)."""
        if self._end is not None:
            return self._end
        return max(signal.received_frames for signal in (self._voices or self._signals).values())

    @property
    def faults(self) -> Faults:
        """Faults of the input so far."""
        # counted on the motion's device, and fetched only here
        with self._lock:
            self._faults.frames_without_face += int(self._unseen)
            self._unseen = torch.zeros_like(self._unseen)
            return self._faults

    @property
    def look_ahead_ms(self) -> float:
        """How much input after a block's end its frames depend on: 0 unless the speech features have a right context or
        blocks that end apart from the motion's, or a signal's rate is converted.
        """
        return max(need - stop for _, stop, need in self._cycle()) * FRAME_MS + self._converting_ms

    @property
    def waiting_ms(self) -> float:
        """Longest time from an instant of input until the input that its frame needs has arrived."""
        return max(need - start for start, _, need in self._cycle()) * FRAME_MS + self._converting_ms

    @property
    def waiting_for(self) -> dict[str, int]:
        """Frames that each signal still lacks for the next block; complete signals are left out."""
        if self._end is not None:
            return {}
        stop = self._sampler.frames + self._sampler.layout.block_frames
        heard = stop if self._speech is None else self._speech.needed_frames(stop)
        needed = {name: heard if name in self._voices else stop for name in self._signals}
        lacking = {name: needed[name] - signal.received_frames for name, signal in self._signals.items()}
        return {name: frames for name, frames in lacking.items() if frames > 0}

    def push(self, **signals: Any) -> list[LiveBlock]:
        """Take new input and return the blocks it completes. After an error the session is unchanged.

        Arguments are arrays, tensors or lists. `avatar_audio`, `user_audio`: mono samples, floats in [-1, 1] or
        integers of 16 or 32 bits. `user_motion`: latents; or `user_frames`: input of `encode_user`, None for a frame
        without a face. `user_times`: their times in seconds since the session's start. Raises UserError for other
        shapes and types, floats beyond [-1, 1], a signal the session was not made for, and after `finish`.
        """
        return push_batch([self], [signals])[0]

    @torch.no_grad()
    def change_reference(self, reference: Float[Tensor, "1 L"]) -> None:
        """Change the portrait from the next block on; decode those blocks with its identity.

        Raises UserError for a reference of another shape.
        """
        self._require_open()
        reference = pieces.checked_reference(reference, self._width).to(self._reference.device)
        with self._lock:
            self._sampler.change_reference(self._denoiser.motion_space.to_model(reference))

    @torch.no_grad()
    def change(self, *, signals: Signals | None = None, **sampling: Any) -> None:
        """Change settings from the next block on; the motion so far is kept, and settings not named stay.

        A signal that is switched off is dropped with its past, as if the session had been made without it, but is still
        taken; switched on again, its past is back. Raises UserError for unknown settings and signals, and
        after `finish`.
        """
        self._require_open()
        pieces.check_names(sampling, SAMPLING, "a session")
        with self._lock:
            used, sampling = signals or self._used, self._sampling | sampling
            for field in fields(Signals):
                if getattr(used, field.name) and field.name not in self._signals:
                    raise UserError(f"{field.name}: this session was made without it")
            recent = ((used.of(condition), motion) for condition, motion in self._recent)
            self._sampler = continued(self._sampler, recent, **sampling)
            self._used, self._sampling = used, sampling

    def _take(self, given: Mapping[str, Any]) -> None:
        """Take the pushed input. After an error, the caller restores the session."""
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
        # of two voices, the one that was filled up follows the other
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
        """End the conversation: the remaining blocks up to the end of the longest signal, the others filled up."""
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
            blocks.append(self._block(self._sampler.step(self._used.of(condition), noise)[:, :left], start))
        self._end = end
        return blocks

    def _due(self) -> bool:
        """Whether the input of the next block is complete."""
        return all(signal.ready_frames >= self._sampler.layout.block_frames for signal in self._signals.values())

    def _next(self, frames: int) -> tuple[Condition, Float[Tensor, "1 T D"]]:
        """Condition and noise of the next block, of which `frames` frames are needed."""
        taken = {name: signal.take(frames) for name, signal in self._signals.items()}
        condition = self._denoiser.condition(*(taken.get(field.name) for field in fields(Condition)))
        size = self._sampler.layout.block_frames
        return condition.filled(size), draw_noise(self._generator, self._reference, size)

    def _remember(self, condition: Condition, motion: Float[Tensor, "1 T D"]) -> None:
        layout = self._sampler.layout
        kept = layout.window_frames // layout.block_frames
        self._recent = (*self._recent, (condition, motion))[-kept:]

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
        return motion.to(face.last, non_blocking=True, copy=True)  # the encoder may reuse its output buffer

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
        """(start, stop, frames of input needed) of the blocks until motion and feature blocks coincide again."""
        size = self._sampler.layout.block_frames
        if self._speech is None:
            return [(0, size, size)]
        stops = range(size, math.lcm(size, self._speech.block_frames) + 1, size)
        return [(stop - size, stop, self._speech.needed_frames(stop)) for stop in stops]

    def _require_open(self) -> None:
        if self._end is not None:
            raise UserError("the session is finished; start a new one")

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The pushed input without Nones, checked. Raises UserError for input that this session does not take."""
        self._require_open()
        found = pieces.pushed(given)
        for name in found:
            if (name if name.endswith("audio") else "user_motion") not in self._signals:
                raise UserError(f"{name}: this session was made without it")
        if "user_frames" in found and self._encode_user is None:
            raise UserError("user_frames: give the session an encode_user, or push user_motion")
        return found

    def _saved(self) -> dict[str, Any]:
        """A snapshot of the session's mutable state."""
        return {
            "_faults": replace(self._faults),
            "_unseen": self._unseen,
            "_signals": {name: signal.copy() for name, signal in self._signals.items()},
            "_end": self._end,
            "_recent": self._recent,
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
    """Lock the sessions, and restore them if the block ends with an error or an interruption."""
    with contextlib.ExitStack() as held:
        for session in sorted(sessions, key=id):  # locked in one order, to avoid deadlocks
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
    """`push` to many sessions, each with its own signals; blocks due together are computed in one batch.

    Blocks equal those of separate pushes up to rounding. After an error all sessions are unchanged.
    """
    start = time.perf_counter()
    with _all_or_nothing(sessions):
        for session, new in zip(sessions, signals, strict=True):
            session._take(new)
        # blocks not committed yet, for lack of idle time
        commit_batch([session._sampler for session in sessions])
        return _ready_blocks(sessions, start)


def _ready_blocks(sessions: Sequence[LiveSession], start: float) -> list[list[LiveBlock]]:
    blocks: list[list[LiveBlock]] = [[] for _ in sessions]
    while due := [i for i, session in enumerate(sessions) if session._due()]:
        inputs = [sessions[i]._next(sessions[i]._sampler.layout.block_frames) for i in due]
        samplers = [sessions[i]._sampler for i in due]
        used = [sessions[i]._used.of(condition) for i, (condition, _) in zip(due, inputs, strict=True)]
        motions = step_batch(samplers, used, [noise for _, noise in inputs])
        for i, (condition, _), motion in zip(due, inputs, motions, strict=True):
            sessions[i]._remember(condition, motion)
            blocks[i].append(sessions[i]._block(motion, start))
    return blocks
