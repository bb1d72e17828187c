"""What a live session has heard and seen and not used yet: samples, their features, the user's motion."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from af.clock import frames_to_samples


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


class Queue:
    """Frames waiting to be used."""

    def __init__(self) -> None:
        self.frames = 0
        self._pieces: deque[Float[Tensor, "1 t C"]] = deque()

    def put(self, piece: Float[Tensor, "1 t C"]) -> None:
        """Add the newest frames."""
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


class Voice:
    """Samples of one speaker and the features they give; keeps the sound that later feature blocks still need."""

    def __init__(self, speech: SpeechStream, device: torch.device) -> None:
        self.speech, self.device = speech, device
        self.features = Queue()
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


class Face:
    """The user's motion."""

    def __init__(self, rest: Float[Tensor, " L"]) -> None:
        self.motion = Queue()
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
