"""What a live session has heard and seen and not used yet: samples, their features, the user's motion.

Everything lies on one timeline that the audio counts: sample n is n / 16,000 s after the start, slot n of the motion
n / 25 s. A signal that paused is filled up; what comes of it later replaces what was filled and not used yet. States are
never changed in place, so that a copy of `Voice` or `Face` is as it was whatever happens to the original.
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
    """Streaming speech features: `extract` gives the newest `block_frames` frames of a window of audio, `window(i)` the
    samples [start, stop) that feature block i is made of, `right_context_frames` of them after the block's end.
    """

    extract: Callable[[Float[Tensor, "1 S"]], Float[Tensor, "1 t F"]]
    window: Callable[[int], tuple[int, int]]
    block_frames: int
    right_context_frames: int = 0

    def needed_frames(self, stop: int) -> int:
        """Frames of audio that must have arrived before features of the frames up to `stop` exist."""
        return math.ceil(stop / self.block_frames) * self.block_frames + self.right_context_frames


@dataclass(frozen=True)
class Bounds:
    """Where the clock stands and how far from it a signal may end, in the signal's own units."""

    clock: int
    patience: int

    def shift(self, end: int, late: bool) -> int:
        """How far a piece that would end at `end` is moved to end at the clock: 0 while it is within the patience.

        One that is `late` (its place was filled up) and still ends before that comes of a source that paused and goes
        on; one that ends after it, of a source that gives too many, or what it had kept while it paused.
        """
        away = self.clock - end
        return away if away < -self.patience or (late and away > self.patience) else 0


class Voice:
    """Samples of one speaker and the features they give; keeps the audio that later feature blocks still need."""

    def __init__(self, speech: SpeechStream, rate: int) -> None:
        self.speech = speech
        self.used = 0  # frames
        self.received = 0  # samples, since the start; what was filled up counts
        self.slack = 0  # samples by which it was moved towards the clock, and from which it may be moved back
        self.expected = 0  # where the next samples belong: before `received` when that was filled up
        self._resampler = Resampler(rate)
        self._features: Float[Tensor, "1 t F"] | None = None  # those that wait to be used
        self._sound = torch.zeros(0)
        self._first = 0  # number of the first sample held
        self._blocks = 0
        self._heard = 0  # samples before this one are in features already

    @property
    def ready_frames(self) -> int:
        """Frames of features that wait to be used."""
        return 0 if self._features is None else self._features.shape[1]

    @property
    def received_frames(self) -> int:
        """Frames of audio, since the start; what was filled up counts."""
        return samples_to_frames(self.received)

    @property
    def whole_frames(self) -> int:
        """Frames that the audio lasts (a part of a frame is not a frame)."""
        return self.received_frames

    @property
    def expected_frames(self) -> int:
        """Frames of audio that came, or where the next sample belongs."""
        return samples_to_frames(self.expected)

    @property
    def precedence(self) -> tuple[bool, int, int]:
        """The least of several voices is the one that the others are held to."""
        return self.expected < self.received, self.slack, -self.received

    def copy(self) -> Voice:
        """The same voice, which what happens to this one does not change."""
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
        """Take samples, all of them finite; returns how many came too late to be heard.

        `bounds`: of the other voices, when one of them leads.
        """
        return self._place(self._resampler.push(samples), bounds)

    def fill(self, frames: int) -> None:
        """Silence until `frames` have been received."""
        missing = frames_to_samples(frames) - self.received
        if missing > 0:
            self._sound = torch.cat((self._sound, torch.zeros(missing)))
            self.received += missing
            self._extract()

    def end(self) -> None:
        """No more will come: what the resampler still held is taken."""
        self._place(self._resampler.push(np.zeros(0, np.float32), last=True), None)

    def end_at(self, frames: int) -> None:
        """The end: exactly `frames` of audio, a last feature block being completed with silence."""
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
    """Where the frames of one push belong: `owners` has the frame seen in each slot from `start` on (-1: the one before
    them all). Frames that are seen nowhere need not be encoded, except the newest, which may be held: of those that
    were dropped for their times nothing is shown.
    """

    start: int
    owners: list[int]
    needed: list[int]  # the frames that must be encoded, in order: the last is the newest that counts
    expected: Fraction  # time of the frame after these, if it comes without one
    newest: Fraction | None
    end: int | None = None  # what was known after this slot goes
    dropped: int = 0
    held: int = 0  # slots of a gap


@dataclass(frozen=True)
class _Placed:
    """Frames before it is known which slots are too late: (frame, start, stop, where the frame before it ends)."""

    slots: list[tuple[int, int, int, int]]
    expected: Fraction
    newest: Fraction | None
    last: int  # the newest frame that counts, -1 when none does
    dropped: int
    end: int | None = None


class Face:
    """The user's motion, a slot for each frame of the clock; times are counted in frames of the clock, too.

    A frame is seen in the slots that it is nearest to in time (between two, the earlier frame).
    """

    def __init__(self, rest: Float[Tensor, " L"], step: Fraction) -> None:
        self.step = step  # time between two frames
        self.received_frames = 0  # slots, since the start; what was filled up counts
        self.used = 0
        self.last = rest  # until a face is seen: the motion that a dropped signal stands for
        self.expected = Fraction(0)  # time of the next frame, if it comes without one
        self.newest: Fraction | None = None  # time of the last one
        self._rows: Float[Tensor, "t L"] = rest[None][:0]  # slots [used, received)

    def copy(self) -> Face:
        """The same motion, which what happens to this one does not change."""
        return copy.copy(self)

    @property
    def ready_frames(self) -> int:
        """Slots that wait to be used."""
        return self.received_frames - self.used

    @property
    def expected_frames(self) -> int:
        """Slot of the next frame."""
        return math.ceil(self.expected)

    def take(self, count: int) -> Float[Tensor, "1 t L"]:
        """The oldest `count` slots."""
        taken, self._rows = self._rows[:count], self._rows[count:]
        self.used += count
        return taken[None]

    def fill(self, frames: int) -> None:
        """The last motion held until `frames` slots have been received."""
        if frames > self.received_frames:
            self._rows = torch.cat((self._rows, self.last.expand(frames - self.received_frames, -1)))
            self.received_frames = frames

    @property
    def whole_frames(self) -> int:
        """Frames of the clock that the user's frames last (a part of a frame is not a frame)."""
        return math.floor(self.expected)

    def end_at(self, frames: int) -> None:
        """The end: exactly `frames` slots."""
        self._rows = self._rows[: frames - self.used]
        self.received_frames = self.used + len(self._rows)
        self.fill(frames)

    def spans(self, count: int, times: Sequence[Fraction] | None, bounds: Bounds | None) -> Spans:
        """Where `count` frames belong, taken at `times` or one `step` after the other; nothing changes yet.

        `bounds`: of the audio, where nothing is waited for. Frames without times are moved as a whole to end at the
        clock when they would end out of bounds; frames with times that are too far ahead are dropped.
        """
        placed = self._in_step(count, bounds) if times is None else self._at_times(times, bounds)
        start, owners, held, dropped = self.received_frames, list[int](), 0, placed.dropped
        for frame, begin, stop, reach in placed.slots:
            dropped += begin < stop <= self.used  # all of it is too late
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
        """Frames one `step` after the other, from where the next one is expected."""
        first, half, dropped, end = self.expected, self.step / 2, 0, None
        if bounds is not None and count:
            start, stop = math.floor(first - half) + 1, math.floor(first + (count - 1) * self.step + half) + 1
            shift = bounds.shift(stop, start < self.received_frames)
            if shift < 0:  # known slots that are known anew, later
                dropped = max(0, min(start, self.received_frames) - max(start + shift, self.used))
                end = stop + shift
            first += shift
        times = [first + i * self.step for i in range(count)]
        slots = [(i, math.floor(time - half) + 1, math.floor(time + half) + 1, 0) for i, time in enumerate(times)]
        expected = first + count * self.step
        return _Placed(slots, expected, times[-1] if times else self.newest, count - 1, dropped, end)

    def _at_times(self, times: Sequence[Fraction], bounds: Bounds | None) -> _Placed:
        """Frames at their own times, those that are not later than the one before or too far ahead dropped."""
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
        """Take `spans.needed` frames; those in which no face was seen show the last motion before them."""
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
