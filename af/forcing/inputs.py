"""The input buffers of a live session: audio samples, their features, and the user's motion.

The audio is the clock of one timeline: sample n is n / 16,000 s after the start, slot n of the motion n / 25 s. A
signal that pauses is filled up; input that arrives later replaces the filled part not used yet. State is never changed
in place, so a copy of `Voice` or `Face` is independent of the original.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from af.clock import frames_to_samples, samples_to_frames
from af.forcing.pieces import Resampler


@dataclass(frozen=True)
class SpeechStream:
    """Streaming speech features: `extract` computes the newest `block_frames` frames of a window of audio; `window(i)`
    is the range of samples [start, stop) of feature block i, `right_context_frames` of it after the block's end.
    """

    extract: Callable[[Float[Tensor, "1 S"]], Float[Tensor, "1 t F"]]
    window: Callable[[int], tuple[int, int]]
    block_frames: int
    right_context_frames: int = 0

    def needed_frames(self, stop: int) -> int:
        """Frames of audio needed before the features of the frames up to `stop` exist."""
        return math.ceil(stop / self.block_frames) * self.block_frames + self.right_context_frames


@dataclass(frozen=True)
class Bounds:
    """The clock's position, and how far from it a signal may end, in the signal's own units."""

    clock: int
    patience: int

    def shift(self, end: int, late: bool) -> int:
        """The shift that moves a piece ending at `end` to the clock: 0 while it ends within the patience.

        A `late` piece (its place was filled up) that ends too early comes from a source that resumes after a pause; one
        that ends too far ahead, from a source that delivers too much or sends what it kept during a pause.
        """
        away = self.clock - end
        return away if away < -self.patience or (late and away > self.patience) else 0


class Voice:
    """Samples of one speaker and their features; keeps the audio that later feature blocks still need."""

    def __init__(self, speech: SpeechStream, rate: int) -> None:
        self.speech = speech
        self.used = 0  # frames
        self.received = 0  # samples since the start, including filled ones
        self.slack = 0  # samples by which it was moved towards the clock; it may be moved back by as many
        self.expected = 0  # position of the next samples: before `received` if that part was filled up
        self._resampler = Resampler(rate)
        self._features: Float[Tensor, "1 t F"] | None = None  # features not used yet
        self._sound = torch.zeros(0)
        self._first = 0  # index of the first sample held
        self._blocks = 0
        self._heard = 0  # samples before this one already have features

    @property
    def ready_frames(self) -> int:
        """Frames of features not used yet."""
        return 0 if self._features is None else self._features.shape[1]

    @property
    def received_frames(self) -> int:
        """Frames of audio since the start, including filled ones."""
        return samples_to_frames(self.received)

    @property
    def whole_frames(self) -> int:
        """Whole frames in the audio so far."""
        return self.received_frames

    @property
    def expected_frames(self) -> int:
        """Position of the next sample, in frames of audio."""
        return samples_to_frames(self.expected)

    @property
    def precedence(self) -> tuple[bool, int, int]:
        """Sort key of the voices: the smallest leads, the others follow it."""
        return self.expected < self.received, self.slack, -self.received

    def copy(self) -> Voice:
        """An independent copy."""
        other = copy.copy(self)
        other._resampler = copy.copy(self._resampler)
        return other

    def take(self, count: int) -> Float[Tensor, "1 t F"]:
        """The oldest `count` frames of features."""
        assert self._features is not None
        taken, self._features = self._features[:, :count], self._features[:, count:]
        self.used += count
        return taken

    def push(self, samples: Float32[np.ndarray, " S"], bounds: Bounds | None = None) -> int:
        """Add samples, all finite. Returns how many came too late to be used.

        `bounds`: those of the other voice, when it leads.
        """
        return self._place(self._resampler.push(samples), bounds)

    def fill(self, frames: int) -> None:
        """Add silence until `frames` frames have been received."""
        missing = frames_to_samples(frames) - self.received
        if missing > 0:
            self._sound = torch.cat((self._sound, torch.zeros(missing)))
            self.received += missing
            self._extract()

    def end(self) -> None:
        """Take what the resampler still holds: the input has ended."""
        self._place(self._resampler.push(np.zeros(0, np.float32), last=True), None)

    def end_at(self, frames: int) -> None:
        """End at exactly `frames` frames of audio; silence completes the last feature block."""
        excess = self.received - frames_to_samples(frames)  # a part of a frame
        if excess > 0:
            self._sound, self.received = self._sound[: len(self._sound) - excess], self.received - excess
        self.fill(self.speech.needed_frames(frames))
        if self._features is not None:
            self._features = self._features[:, : frames - self.used]

    def _place(self, samples: np.ndarray, bounds: Bounds | None) -> int:
        start = self.expected
        if bounds is not None and len(samples):
            shift = max(-self.slack, bounds.shift(start + len(samples), start < self.received))
            start, self.slack = start + shift, self.slack + shift
        self.expected = start + len(samples)
        late = min(len(samples), max(0, self._heard - start))
        new = torch.from_numpy(samples[late:])
        start = max(start, self._heard) - self._first
        gap = torch.zeros(max(0, start - len(self._sound)))  # moved forward
        self._sound = torch.cat((self._sound[:start], gap, new, self._sound[start + len(new) :]))
        self.received = self._first + len(self._sound)
        self._extract()
        return late

    def _extract(self) -> None:
        start, stop = self.speech.window(self._blocks)
        new: list[Tensor] = []
        while stop <= self.received:
            window = self._sound[start - self._first : stop - self._first]
            new.append(self.speech.extract(window[None]))
            self._blocks, self._heard = self._blocks + 1, stop
            start, stop = self.speech.window(self._blocks)
        if new:
            self._features = torch.cat(new if self._features is None else [self._features, *new], 1)
        drop = min(start - self._first, len(self._sound))
        if drop > 0:
            self._sound, self._first = self._sound[drop:].clone(), self._first + drop


@dataclass(frozen=True)
class Spans:
    """The slots of the frames of one push: `owners` has the frame shown in each slot from `start` on (-1: the frame
    before this push). Frames shown nowhere are not encoded, except the newest accepted one, which may be held later.
    """

    start: int
    owners: list[int]
    needed: list[int]  # frames to encode, in order; the last is the newest accepted one
    expected: Fraction  # time of the next frame, should it come without a time
    newest: Fraction | None
    end: int | None = None  # slots after this one are discarded
    dropped: int = 0
    held: int = 0  # slots in a gap


@dataclass(frozen=True)
class _Placed:
    """Placed frames, before late slots are dropped: (frame, start, stop, end of the frame before)."""

    slots: list[tuple[int, int, int, int]]
    expected: Fraction
    newest: Fraction | None
    last: int  # the newest accepted frame, -1 without any
    dropped: int
    end: int | None = None


class Face:
    """The user's motion, one slot per frame of the clock; times are in frames of the clock, too.

    Each slot shows the frame nearest in time (of two equally near, the earlier one).
    """

    def __init__(self, rest: Float[Tensor, " L"], step: Fraction) -> None:
        self.step = step  # time between two frames
        self.received_frames = 0  # slots since the start, including filled ones
        self.used = 0
        self.last = rest  # until a face is seen: the motion of a dropped signal
        self.expected = Fraction(0)  # time of the next frame, should it come without a time
        self.newest: Fraction | None = None  # time of the last one
        self._rows: Float[Tensor, "t L"] = rest[None][:0]  # slots [used, received)

    def copy(self) -> Face:
        """An independent copy."""
        return copy.copy(self)

    @property
    def ready_frames(self) -> int:
        """Slots not used yet."""
        return self.received_frames - self.used

    @property
    def expected_frames(self) -> int:
        """The slot of the next frame."""
        return math.ceil(self.expected)

    def take(self, count: int) -> Float[Tensor, "1 t L"]:
        """The oldest `count` slots."""
        taken, self._rows = self._rows[:count], self._rows[count:]
        self.used += count
        return taken[None]

    def fill(self, frames: int) -> None:
        """Hold the last motion until `frames` slots have been received."""
        if frames > self.received_frames:
            self._rows = torch.cat((self._rows, self.last.expand(frames - self.received_frames, -1)))
            self.received_frames = frames

    @property
    def whole_frames(self) -> int:
        """Whole frames of the clock covered by the user's frames."""
        return math.floor(self.expected)

    def end_at(self, frames: int) -> None:
        """End at exactly `frames` slots."""
        self._rows = self._rows[: frames - self.used]
        self.received_frames = self.used + len(self._rows)
        self.fill(frames)

    def spans(self, count: int, times: Sequence[Fraction] | None, bounds: Bounds | None) -> Spans:
        """The slots of `count` frames taken at `times`, or one `step` apart. Changes nothing.

        `bounds`: those of the audio, given when the session has a patience. Frames without times that would end out of
        bounds are moved as a whole to end at the clock; frames with times too far ahead are dropped.
        """
        placed = self._in_step(count, bounds) if times is None else self._at_times(times, bounds)
        start, owners, held, dropped = self.received_frames, list[int](), 0, placed.dropped
        for frame, begin, stop, reach in placed.slots:
            dropped += begin < stop <= self.used  # every frame is too late
            begin = max(begin, self.used)
            if begin >= stop:
                continue
            start = start if owners else min(begin, self.received_frames)
            gap = begin - start - len(owners)
            held += max(0, begin - max(start + len(owners), reach))
            owners[begin - start :] = [*[owners[-1] if owners else -1] * gap, *[frame] * (stop - begin)]
        needed = sorted({*owners, placed.last} - {-1})
        return Spans(start, owners, needed, placed.expected, placed.newest, placed.end, dropped, held)

    def _in_step(self, count: int, bounds: Bounds | None) -> _Placed:
        """Place frames one `step` apart, starting where the next one is expected."""
        first, half, dropped, end = self.expected, self.step / 2, 0, None
        if bounds is not None and count:
            start, stop = math.floor(first - half) + 1, math.floor(first + (count - 1) * self.step + half) + 1
            shift = bounds.shift(stop, start < self.received_frames)
            if shift < 0:  # known slots that move to a later time
                dropped = max(0, min(start, self.received_frames) - max(start + shift, self.used))
                end = stop + shift
            first += shift
        times = [first + i * self.step for i in range(count)]
        slots = [(i, math.floor(time - half) + 1, math.floor(time + half) + 1, 0) for i, time in enumerate(times)]
        expected = first + count * self.step
        return _Placed(slots, expected, times[-1] if times else self.newest, count - 1, dropped, end)

    def _at_times(self, times: Sequence[Fraction], bounds: Bounds | None) -> _Placed:
        """Place frames at their own times; drop those not later than the one before, or too far ahead."""
        newest, last, dropped = self.newest, -1, 0
        slots: list[tuple[int, int, int, int]] = []
        limit = None if bounds is None else bounds.clock + bounds.patience
        for i, time in enumerate(times):
            if newest is not None and time <= newest:
                dropped += 1  # repeated, or out of order: the first frame of an instant counts
                continue
            after = time - self.step if newest is None else max((newest + time) / 2, time - self.step)
            start, stop = math.floor(after) + 1, math.floor(time + self.step / 2) + 1
            if limit is not None and start >= limit:
                dropped += 1
                continue
            reach = 0 if newest is None else math.floor(min((newest + time) / 2, newest + self.step)) + 1
            slots.append((i, start, stop if limit is None else min(stop, limit), reach))
            newest, last = time, i
        return _Placed(slots, self.expected if newest is None else newest + self.step, newest, last, dropped)

    def push(self, spans: Spans, rows: Float[Tensor, "n L"], seen: Bool[Tensor, " n"]) -> None:
        """Add the frames `spans.needed`; a frame without a face repeats the last motion before it."""
        known = torch.cat((self.last[None], rows.to(self.last, non_blocking=True)))
        number = torch.arange(1, len(rows) + 1, device=known.device)
        held = torch.where(seen, number, 0).cummax(0).values
        known = torch.cat((known[:1], known[held]))
        place = {frame: n for n, frame in enumerate([-1, *spans.needed])}
        owners = torch.tensor([place[frame] for frame in spans.owners], dtype=torch.long)
        new = known[owners.to(known.device, non_blocking=True)]
        start = spans.start - self.used
        self._rows = torch.cat((self._rows[:start], new, self._rows[start + len(new) :]))
        if spans.end is not None:
            self._rows = self._rows[: max(0, spans.end - self.used)]
        self.received_frames = self.used + len(self._rows)
        self.last, self.expected, self.newest = known[-1], spans.expected, spans.newest
