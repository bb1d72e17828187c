"""Recorded conversations in a user's place, with the voice of the person whose part the avatar takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, UInt8

from af.clock import frames_to_samples, frames_to_seconds
from af.data.codecs import CodecError, decode_audio, decode_frames
from af.data.shards import ShardReader
from af.errors import UserError

#: Samples that a client can choose from.
MOST: Final = 200
_PIECE: Final = 12  # frames decoded at a time


@dataclass(frozen=True)
class Frame:
    """40 ms of a recorded conversation."""

    image: UInt8[np.ndarray, "Y X 3"]
    user: Float32[np.ndarray, " S"]
    avatar: Float32[np.ndarray, " S"]


class Replays:
    """The conversations of two people in a split folder. Raises UserError unless there are some at `image_size`."""

    def __init__(self, folder: Path, image_size: int) -> None:
        self._reader = ShardReader(folder)
        index = self._reader.index
        whole = {f"{role}.{part}" for role in "ab" for part in ("mp4", "flac")} - {"b.mp4"}
        self._samples = [i for i, sample in enumerate(index.samples) if whole <= sample.members.keys()][:MOST]
        if not self._samples:
            raise UserError(f"--replay {folder}: no conversation there has the user's video and both voices")
        if index.image_size != image_size:
            raise UserError(f"--replay {folder}: its images have {index.image_size} px, the model's {image_size}")

    @property
    def listed(self) -> list[dict[str, Any]]:
        """Name and seconds of each, as a client chooses it by its place."""
        entries = (self._reader.index.samples[i] for i in self._samples)
        return [{"name": entry.key, "seconds": frames_to_seconds(entry.frames)} for entry in entries]

    def open(self, number: int) -> Iterator[Frame]:
        """The frames of one, again and again. Raises UserError when there is no such number, or it is broken."""
        if not 0 <= number < len(self._samples):
            raise UserError(f"replay: there are conversations 0 to {len(self._samples) - 1}, but no {number}")
        i = self._samples[number]
        return self._frames(i, *(self._voice(i, f"{role}.flac") for role in "ab"))

    def _voice(self, i: int, field: str) -> Float32[np.ndarray, " S"]:
        try:
            return decode_audio(self._reader.read_bytes(i, field))
        except CodecError as error:
            raise self._reader.error(i, field, "bad_member", str(error)) from None

    def _frames(self, i: int, user: np.ndarray, avatar: np.ndarray) -> Iterator[Frame]:
        video, frames = self._reader.read_bytes(i, "a.mp4"), self._reader.index.samples[i].frames
        while True:
            for first in range(0, frames, _PIECE):
                images = decode_frames(video, range(first, min(first + _PIECE, frames)))
                for n, image in enumerate(images, first):
                    now = slice(frames_to_samples(n), frames_to_samples(n + 1))
                    yield Frame(image, user[now], avatar[now])
