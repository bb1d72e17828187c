"""A bounded disk cache of decoded videos, shared by all processes of a machine, to read single frames of short clips.

Reads use pread, not a memory map: the bytes stay in the page cache and do not count as a process's memory.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8

from af.data.disk_cache import make_room
from af.data.open_files import OpenFiles
from af.errors import UserError
from af.files import atomic_path, exclusive, remove_stale

_OPEN_FILES: Final = 128
_SUFFIX: Final = ".frames"


class FrameCache:
    """Frames as raw bytes, one file per video, at most `max_bytes` in `folder`; evicts the least recently opened.

    Safe for any number of processes: files are written atomically, and an evicted file stays readable for processes
    that have it open. Raises `UserError` when the folder cannot be written.
    """

    def __init__(self, folder: Path | str, max_bytes: int) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_stale(self.folder)
        except OSError as error:
            raise UserError(f"{folder}: the cache of decoded frames cannot be written ({error.strerror})") from None
        self._files = OpenFiles()

    def read(
        self,
        name: str,
        indices: Sequence[int],
        shape: tuple[int, int, int],
        decode: Callable[[], UInt8[np.ndarray, "T Y X 3"]],
    ) -> UInt8[np.ndarray, "N Y X 3"]:
        """Frames `indices` of the video `name` of shape (frames, height, width); calls `decode` if it is not cached."""
        frames, height, width = shape
        size = height * width * 3
        descriptor = self._files.get(name, lambda: self._open(name, frames * size), _OPEN_FILES)
        if descriptor is None:
            whole = decode()
            if whole.shape != (frames, height, width, 3):
                raise ValueError(f"{name}: decoded {whole.shape}, expected {(frames, height, width, 3)}")
            self._store(name, whole)
            return whole[np.asarray(indices)]
        out = np.empty((len(indices), height, width, 3), np.uint8)
        for row, n in zip(out, indices, strict=True):
            if os.preadv(descriptor, [row.data], int(n) * size) != size:
                raise OSError(f"{self.folder / name}: short read")
        return out

    def _open(self, name: str, size: int) -> int | None:
        path = self.folder / (name + _SUFFIX)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size != size:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(PermissionError):  # another user's file
            os.utime(descriptor)
        return descriptor

    def _store(self, name: str, frames: np.ndarray) -> None:
        if frames.nbytes > self.max_bytes:
            return
        try:
            with exclusive(self.folder / ".lock"):
                make_room(self.folder, _SUFFIX, frames.nbytes, self.max_bytes)
                with atomic_path(self.folder / (name + _SUFFIX)) as temporary:
                    frames.tofile(temporary)
        except OSError as error:  # a full disk or a foreign folder costs speed, not the run
            self.max_bytes = 0
            warnings.warn(f"{self.folder}: decoded frames are no longer cached ({error.strerror})", stacklevel=2)
