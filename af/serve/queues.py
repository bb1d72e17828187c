"""Bounded queues between a session's clock and its client: a slow client loses input or frames, never memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float32, UInt8

from af.clock import FPS

Samples = Float32[np.ndarray, " S"]
#: Peak of a frame's samples from which somebody is speaking (-40 dBFS).
AUDIBLE: Final = 0.01
#: Takes over which a queue's least level is measured before it is shortened.
_WATCHED: Final = 5 * FPS


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
    """Finished frames on their way to a client that shows one every 40 ms.

    Blocks come in bursts, sometimes late. `late` counts the times when a client found nothing and showed the last frame
    again, which delays all later ones; when blocks keep coming more than `spare` frames before they are needed, frames
    without voice are left out until the delay is back, and counted in `dropped`, as are those of a client that takes
    none.
    """

    def __init__(self, capacity: int, spare: int = 2) -> None:
        self.late = self.dropped = 0
        self._capacity, self._spare = capacity, spare
        self._frames: deque[Shown] = deque()
        self._left: deque[int] = deque(maxlen=8)  # frames left when the last blocks came
        self._begun = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frames: Sequence[Shown]) -> None:
        """Add a block's frames."""
        with self._lock:
            self._left.append(len(self._frames))
            self._frames.extend(frames)
            while len(self._frames) > self._capacity:
                self._frames.popleft()
                self.dropped += 1

    def take(self) -> Shown | None:
        """The next frame, or None if it is not there yet."""
        with self._lock:
            excess = min(self._left) - self._spare if len(self._left) == self._left.maxlen else 0
            while excess > 0 and len(self._frames) > 1 and _silent(self._frames[0]):
                self._frames.popleft()
                self.dropped += 1
                excess -= 1
                self._left = deque((left - 1 for left in self._left), self._left.maxlen)
            if self._frames:
                self._begun = True
                return self._frames.popleft()
            self.late += self._begun
            return None

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
            self._left.clear()
            self._begun = False


def _silent(frame: Shown) -> bool:
    return float(np.abs(frame.voice).max(initial=0)) < AUDIBLE
