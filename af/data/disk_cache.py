"""Caches on disk with least-recently-used eviction, and local copies of remote shards."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import warnings
from pathlib import Path
from typing import Final

from af.data.checks import ShardError
from af.data.stores import Location, NotInStore, RemotePath, StoreError, StoreSettings
from af.errors import UserError
from af.files import atomic_path, exclusive, remove_stale

_SUFFIX: Final = ".tar"
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
    copy = folder / (name + _SUFFIX)
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
    try:
        if copy.stat().st_size != size:
            return False
        with contextlib.suppress(PermissionError):  # owned by another user of the cache
            os.utime(copy)
    except FileNotFoundError:
        return False
    return True


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
        used = make_room(settings.cache, _SUFFIX, size, settings.cache_bytes)
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
        digest, at = hashlib.sha256(), 0
        with open(temporary, "r+b") as file:
            while at < size:
                piece = _piece(path, at, min(at + path.settings.piece_bytes, size), size)
                file.write(piece)
                digest.update(piece)
                at += len(piece)
        if digest.hexdigest() == sha256:
            return
    remedy = "upload the shard or the index again"
    raise ShardError(path, "", "checksum", f"its SHA-256 differs from the index; {remedy}")


def _piece(path: RemotePath, start: int, stop: int, size: int) -> bytes:
    try:
        return path.read_piece(start, stop, size)
    except NotInStore:
        remedy = "upload it, or index the folder again without it and upload the index"
        raise ShardError(path, "", "missing", f"the index lists it, but the store has no such file; {remedy}") from None
    except StoreError:
        with contextlib.suppress(StoreError):
            if (found := path.size()) != size:
                detail = f"{found} bytes in the store, the index says {size}; upload the shard or the index again"
                raise ShardError(path, "", "truncated", detail) from None
        raise
