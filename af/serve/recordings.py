"""Live sessions written to disk, on request only: shards of two people that `af train` reads like others."""

from __future__ import annotations

import logging
import queue
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from af.clock import FPS, frames_to_seconds
from af.data.codecs import VideoEncoder, encode_audio
from af.data.generated import STATEMENT
from af.data.index import INDEX_NAME, Index, build_index
from af.data.schema import ClipMeta, spans
from af.data.shards import write_shard
from af.errors import UserError
from af.files import remove_stale
from af.serve.queues import Seen, Shown

#: Longest sample in frames, which bounds the memory of a recorder; longer sessions are several samples of a shard.
LONGEST_FRAMES: Final = 60 * FPS
_MOST_WAITING: Final = 64  # blocks


class Recordings:
    """A data folder of sessions: `begin` gives each a `Recorder`. Raises UserError for a folder of another image size, and
    for one that cannot be written.
    """

    def __init__(self, folder: Path, image_size: int) -> None:
        self._folder, self._size = Path(folder) / "train", image_size
        self._indexing, self._listing = threading.Lock(), threading.Lock()
        self._recorders: list[Recorder] = []
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            raise UserError(f"--record {folder}: it cannot be written ({error.strerror or error})") from None
        remove_stale(self._folder)
        if (self._folder / INDEX_NAME).is_file():
            there = Index.load(self._folder).image_size
            if there not in (None, image_size):
                raise UserError(
                    f"--record {folder}: its images have {there} px, the model's {image_size}: take another"
                )

    def begin(self) -> Recorder:
        """A recorder for a new session."""
        name = f"live-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        recorder = Recorder(self._folder / f"{name}.tar", self._size, self._index)
        with self._listing:
            self._recorders = [*(other for other in self._recorders if other.busy), recorder]
        return recorder

    def wait(self) -> None:
        """Wait until all sessions that have ended are on disk."""
        for recorder in self._recorders:
            recorder.wait()

    def _index(self) -> None:
        with self._indexing:
            build_index(self._folder)


class Recorder:
    """Writes one session's blocks in a thread of its own as they come: what it received of the user, and what the avatar
    sent. The shard gets its name when the session ends. `left_out` counts frames that came faster than they were written.
    """

    def __init__(self, path: Path, image_size: int, written: Any) -> None:
        self._path, self._size, self._written = path, image_size, written
        self._blocks: queue.SimpleQueue[tuple[int, Sequence[Seen], Sequence[Shown]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended, self._lock = False, threading.Lock()
        self.left_out = 0

    @property
    def busy(self) -> bool:
        """Whether there is more to write, now or later."""
        return not self._ended or (self._thread is not None and self._thread.is_alive())

    def add(self, start: int, user: Sequence[Seen], avatar: Sequence[Shown]) -> None:
        """A block's frames, from frame `start` on."""
        with self._lock:
            if self._ended:
                return
            if self._blocks.qsize() >= _MOST_WAITING:
                self.left_out += len(avatar)
                return
            self._blocks.put((start, user, avatar))
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="af live recorder")
                self._thread.start()

    def end(self) -> None:
        """The session is over: what is added from now on is not written."""
        with self._lock:
            self._ended = True
            self._blocks.put(None)

    def wait(self) -> None:
        """Wait until it is written, after `end`."""
        if self._thread is not None:
            self._thread.join()

    def _write(self) -> None:
        try:
            write_shard(self._path, self._samples())
            self._written()
        except Exception:
            logging.getLogger(__name__).exception("%s was not recorded", self._path)

    def _samples(self) -> Iterator[tuple[str, ClipMeta, dict[str, bytes]]]:
        number, sample = 0, _Sample()
        while True:
            block = self._blocks.get()
            if sample.frames and (block is None or block[0] != sample.stop or sample.frames >= LONGEST_FRAMES):
                yield self._finished(number, sample)
                number, sample = number + 1, _Sample()
            if block is None:
                return
            sample.add(*block)

    def _finished(self, number: int, sample: _Sample) -> tuple[str, ClipMeta, dict[str, bytes]]:
        name = self._path.stem
        meta = ClipMeta(
            dataset="af live",
            licence="unknown",
            split="train",
            session=name,
            participants=(f"{name}-user", f"{name}-avatar"),
            frames=sample.frames,
            image_size=self._size,
            valid={"a": spans(np.array(sample.found)), "b": ((0, sample.frames),)},
            source={"b": STATEMENT},
            time_range_s=(frames_to_seconds(sample.stop - sample.frames), frames_to_seconds(sample.stop)),
        )
        return f"{name}-{number:03d}", meta, sample.members()


class _Sample:
    """The sample in the making: both videos as bytes, the sounds as they came."""

    def __init__(self) -> None:
        self._videos = (VideoEncoder(), VideoEncoder())
        self._sounds: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self.found: list[bool] = []
        self.stop = 0

    @property
    def frames(self) -> int:
        return len(self.found)

    def add(self, start: int, user: Sequence[Seen], avatar: Sequence[Shown]) -> None:
        for seen, shown in zip(user, avatar, strict=True):
            for person, (image, sound) in enumerate(((seen.image, seen.sound), (shown.image, shown.voice))):
                self._videos[person].write(image)
                self._sounds[person].append(sound)
            self.found.append(seen.face_found)
        self.stop = start + len(user)

    def members(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for role, video, sounds in zip("ab", self._videos, self._sounds, strict=True):
            found |= {f"{role}.mp4": video.finish(), f"{role}.flac": encode_audio(np.concatenate(sounds))}
        return found
