"""Bounded queues between a session's clock and its client: a slow client loses input or frames, never memory."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float32, UInt8

from af.clock import FPS, frames_to_seconds

Samples = Float32[np.ndarray, " S"]
#: Peak of a frame's samples from which somebody is speaking (-40 dBFS).
AUDIBLE: Final = 0.01
#: Takes over which a queue's least level is measured before it is shortened.
_WATCHED: Final = 5 * FPS
#: Parts of blocks over which the time that they come early is measured before it is made less, and what is left of it.
_PARTS_WATCHED: Final = 20
_MARGIN_S: Final = 0.006


class SampleQueue:
    """Samples between two clocks: the oldest are dropped when it is full, silence replaces what is missing.

    `cushion` samples must be there before the first is taken, and again after the queue has run dry. A queue that never
    falls to `cushion` plus `slack` samples in five seconds is shortened: its sender's clock is faster, or it once sent
    too much. `dropped` and `missing` count samples.
    """

    def __init__(self, capacity: int, cushion: int = 0, slack: int | None = None) -> None:
        self.capacity, self.cushion, self._slack = capacity, cushion, slack
        self.dropped = self.missing = 0
        self._pieces: deque[Samples] = deque()
        self._level = 0
        self._flows = False
        self._least, self._takes = capacity, 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._level

    def push(self, samples: Samples) -> None:
        """Add samples."""
        if not len(samples):  # a piece that no take would ever use up
            return
        with self._lock:
            samples = samples[max(0, len(samples) - self.capacity) :]
            self._pieces.append(samples)
            self._level += len(samples)
            self.dropped += len(self._cut(self._level - self.capacity))

    def take(self, count: int) -> Samples:
        """The oldest `count` samples, completed with silence."""
        with self._lock:
            if self.cushion and not self._flows:
                if self._level < max(count, self.cushion):
                    return np.zeros(count, np.float32)
                self._flows = True
            found = self._cut(count)
            missing = count - len(found)
            if self.cushion:
                self.missing += missing
                self._flows = not missing
                self._shorten()
            return np.pad(found, (0, missing))

    def clear(self) -> None:
        """Forget all samples."""
        with self._lock:
            self._cut(self._level)
            self._flows = False

    def _shorten(self) -> None:
        self._least, self._takes = min(self._least, self._level), self._takes + 1
        if self._takes == _WATCHED:
            if self._slack is not None and self._least > self.cushion + self._slack:
                self.dropped += len(self._cut(self._least - self.cushion))
            self._least, self._takes = self.capacity, 0

    def _cut(self, count: int) -> Samples:
        parts = [np.zeros(0, np.float32)]
        count = min(max(0, count), self._level)
        self._level -= count
        while count:
            piece = self._pieces.popleft()
            if len(piece) > count:
                self._pieces.appendleft(piece[count:])
            parts.append(piece[:count])
            count -= len(parts[-1])
        return np.concatenate(parts)


@dataclass(frozen=True)
class Shown:
    """A frame of the avatar and its 40 ms of voice; `index` counts frames from the conversation's start."""

    index: int
    image: UInt8[np.ndarray, "Y X 3"]
    voice: Samples


@dataclass(frozen=True)
class Seen:
    """A frame of the user: the image, the sound, and whether there was a face in it; face parameters if it is drawn."""

    image: UInt8[np.ndarray, "Y X 3"]
    sound: Samples
    face_found: bool
    parameters: Float32[np.ndarray, " P"] | None = None


class Playout:
    """Finished frames on their way to a client that shows one every 40 ms, the next one at `due_s` on `clock`.

    Blocks come in bursts, sometimes late. `late` counts the times when a client found nothing and showed the last frame
    again, which delays all later ones (`postpone`). When blocks keep coming earlier than they are needed, turns follow each
    other a fortieth faster until a margin of 6 ms is left; of more than `spare` frames, those without voice are left out,
    and counted in `dropped`, as are those of a client that takes none.
    """

    def __init__(self, capacity: int, spare: int = 2, clock: Callable[[], float] = time.monotonic) -> None:
        self.late = self.dropped = 0
        self.clock, self.due_s = clock, clock()
        self._capacity, self._spare = capacity, spare
        self._frames: deque[Shown] = deque()
        self._early: deque[float] = deque(maxlen=_PARTS_WATCHED)  # seconds from their coming until they are needed
        self._begun = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frames: Sequence[Shown]) -> None:
        """Add frames of a block."""
        with self._lock:
            self._early.append(frames_to_seconds(len(self._frames)) + self.due_s - self.clock())
            self._frames.extend(frames)
            while len(self._frames) > self._capacity:
                self._frames.popleft()
                self.dropped += 1

    def take(self) -> Shown | None:
        """The next frame, or None if it is not there yet."""
        with self._lock:
            early = min(self._early) if len(self._early) == self._early.maxlen else 0.0
            while early > (self._spare + 0.5) / FPS and len(self._frames) > 1 and _silent(self._frames[0]):
                self._frames.popleft()
                self.dropped += 1
                early -= frames_to_seconds(1)
                self._shift(-frames_to_seconds(1))
            self.due_s += frames_to_seconds(1)
            faster = min(max(0.0, early - _MARGIN_S), frames_to_seconds(1) / 40)
            self.due_s -= faster
            self._shift(-faster)
            if self._frames:
                self._begun = True
                return self._frames.popleft()
            self.late += self._begun
            return None

    def take_all(self) -> list[Shown]:
        """All frames there are, for a client that plays them itself; nothing is late for it."""
        with self._lock:
            frames = list(self._frames)
            self._frames.clear()
            self._early.clear()
            return frames

    def postpone(self, seconds: float) -> None:
        """All later frames are due later by so much."""
        with self._lock:
            self.due_s += seconds
            self._shift(seconds)

    def _shift(self, seconds: float) -> None:
        self._early = deque((early + seconds for early in self._early), self._early.maxlen)

    def hush(self, after: int) -> None:
        """Take the voice from all but the next `after` frames; then they can be left out."""
        with self._lock:
            for n in range(after, len(self._frames)):
                shown = self._frames[n]
                self._frames[n] = replace(shown, voice=np.zeros_like(shown.voice))

    def clear(self) -> None:
        """Forget all frames: another conversation begins."""
        with self._lock:
            self._frames.clear()
            self._early.clear()
            self._begun = False


def _silent(frame: Shown) -> bool:
    return float(np.abs(frame.voice).max(initial=0)) < AUDIBLE
