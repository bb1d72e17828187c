"""Caches on disk, bounded by removing what was used longest ago: copies of remote shards, decoded videos."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from jaxtyping import UInt8

from af.data.checks import ShardError
from af.data.stores import Location, NotInStore, RemotePath, StoreError, StoreSettings
from af.errors import UserError
from af.files import atomic_path, exclusive, remove_stale, sha256_of

_TAR, _FRAMES = ".tar", ".frames"  # suffixes of the files of both caches
_LOCKS: Final = 256
_JUST_USED_S: Final = 60.0


def make_room(folder: Path, suffix: str, wanted: int, limit: int) -> float | None:
    """Remove the least recently used files with `suffix` until `wanted` more bytes fit into `limit`. Returns the age,
    in seconds since its last use, of the last one removed. Half-written files count but are kept.
    """
    found, total = [], 0
    for entry in os.scandir(folder):
        if entry.name.endswith((suffix, ".tmp")):
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                total += stat.st_size
                if entry.name.endswith(suffix):
                    found.append((stat.st_mtime, stat.st_size, entry.path))
    used: float | None = None
    for used_at, size, path in sorted(found):
        if total + wanted <= limit:
            break
        Path(path).unlink(missing_ok=True)
        total, used = total - size, time.time() - used_at
    return used


def scratch_folder(folder: Location) -> Path:
    """Where to keep files derived from a folder: in the folder itself, or in the cache for a remote one."""
    if isinstance(folder, Path):
        return folder
    return folder.settings.cache / "beside" / hashlib.sha256(folder.url.encode()).hexdigest()[:32]


def local_copy(path: Location, size: int, sha256: str) -> Path:
    """`path` itself, or a checked copy of a remote file of `size` bytes, fetched into the cache if necessary.

    Processes of a machine fetch a file once. The copy may be evicted at any time, so open it immediately and keep it
    open. Raises `StoreError` when the store cannot be read, `ShardError` when the file is missing or not the one
    indexed.
    """
    if isinstance(path, Path):
        return path
    folder = path.settings.cache
    # the hash is part of the name: a shard replaced in the store becomes another file here
    name = hashlib.sha256(f"{path.url}\n{sha256}".encode()).hexdigest()[:40]
    copy = folder / (name + _TAR)
    if _there(copy, size):
        return copy
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / f".lock-{int(name[:8], 16) % _LOCKS}"):
            if not _there(copy, size):
                with atomic_path(copy) as temporary:
                    _reserve(path, temporary, size)
                    _fetch(path, temporary, size, sha256)
    except OSError as error:
        remedy = "AF_CACHE sets another folder, AF_CACHE_GB its size"
        raise UserError(
            f"{folder}: the cache of shards cannot be written ({error.strerror or error}); {remedy}"
        ) from None
    return copy


def _there(copy: Path, size: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        if copy.stat().st_size == size:
            with contextlib.suppress(PermissionError):  # owned by another user of the cache
                os.utime(copy)
            return True
    return False


def _reserve(path: RemotePath, temporary: Path, size: int) -> None:
    """Make and reserve room, so that simultaneous downloads respect the limit together."""
    settings: StoreSettings = path.settings
    if size > settings.cache_bytes:
        raise UserError(
            f"{path}: {size / 1e9:.3g} GB, more than the whole cache of shards ({settings.cache_bytes / 1e9:.3g} GB); set "
            "AF_CACHE_GB higher, or make smaller shards with: af shards reshard"
        )
    with exclusive(settings.cache / ".room"):
        remove_stale(settings.cache)
        used = make_room(settings.cache, _TAR, size, settings.cache_bytes)
        with open(temporary, "wb") as file:
            file.truncate(size)
    if used is not None and used < _JUST_USED_S:
        warnings.warn(
            f"{settings.cache}: a shard that was used {used:.0f} s ago had to make room; the cache of "
            f"{settings.cache_bytes / 1e9:.3g} GB is too small for what is read at a time (AF_CACHE_GB)",
            stacklevel=3,
        )


def _fetch(path: RemotePath, temporary: Path, size: int, sha256: str) -> None:
    for _ in range(2):  # a wrong hash at the right length may be a transmission error: try again
        with open(temporary, "r+b") as file:
            _read(path, file, size)
        if sha256_of(temporary) == sha256:
            return
    remedy = "upload the shard or the index again"
    raise ShardError(path, "", "checksum", f"its SHA-256 differs from the index; {remedy}")


def _read(path: RemotePath, file: BinaryIO, size: int) -> None:
    try:
        path.read_into(file, size, path.settings.piece_bytes)
    except NotInStore:
        remedy = "upload it, or index the folder again without it and upload the index"
        raise ShardError(path, "", "missing", f"the index lists it, but the store has no such file; {remedy}") from None
    except StoreError:
        with contextlib.suppress(StoreError):
            if (found := path.size()) != size:
                detail = f"{found} bytes in the store, the index says {size}; upload the shard or the index again"
                raise ShardError(path, "", "truncated", detail) from None
        raise


class OpenFiles:
    """Descriptors by name; the least recently used are closed first. Forked and spawned copies open their own, since
    each process must close only what it opened.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[Hashable, int] = OrderedDict()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": OrderedDict(), "_pid": -1}

    def get(self, name: Hashable, opened: Callable[[], int | None], limit: int) -> int | None:
        """The descriptor of `name`, opened by `opened` (None: no such file); at most `limit` stay open."""
        if self._pid != os.getpid():
            self._files, self._pid = OrderedDict(), os.getpid()
        if name not in self._files:
            if (descriptor := opened()) is None:
                return None
            if len(self._files) >= limit:
                os.close(self._files.popitem(last=False)[1])
            self._files[name] = descriptor
        self._files.move_to_end(name)
        return self._files[name]

    def close(self) -> None:
        """Close the files of this process."""
        if self._pid == os.getpid():
            for descriptor in self._files.values():
                os.close(descriptor)
        self._files.clear()

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()


_OPEN_FILES: Final = 128


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
        path = self.folder / (name + _FRAMES)
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
                make_room(self.folder, _FRAMES, frames.nbytes, self.max_bytes)
                with atomic_path(self.folder / (name + _FRAMES)) as temporary:
                    frames.tofile(temporary)
        except OSError as error:  # a full disk or a foreign folder costs speed, not the run
            self.max_bytes = 0
            warnings.warn(f"{self.folder}: decoded frames are no longer cached ({error.strerror})", stacklevel=2)
