"""Caches on disk: room by removing what was used longest ago, local copies of remote shards."""

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
    """Remove the files with `suffix` that were used longest ago until `wanted` more bytes fit into `limit`; returns how
    many seconds ago the last removed one was used. Half-written files count, and stay.
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
    """Where things made from a folder may be kept: the folder itself, or one in the cache for a remote one."""
    if isinstance(folder, Path):
        return folder
    return folder.settings.cache / "beside" / hashlib.sha256(folder.url.encode()).hexdigest()[:32]


def local_copy(path: Location, size: int, sha256: str) -> Path:
    """`path` itself, or a checked copy of a remote file of `size` bytes in the cache, fetched unless it is there.

    Processes of a machine that want the same file fetch it once. The copy can go at any time (others need the room), so
    open it at once, and keep it open. Raises `StoreError` when the store cannot be read, `ShardError` when it has no such
    file, or another one than the index lists.
    """
    if isinstance(path, Path):
        return path
    folder = path.settings.cache
    # the content is part of the name: a shard that was replaced in the store is another file here
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
        remedy = "AF_CACHE names another folder, AF_CACHE_GB its size"
        raise UserError(
            f"{folder}: the cache of shards cannot be written ({error.strerror or error}); {remedy}"
        ) from None
    return copy


def _there(copy: Path, size: int) -> bool:
    try:
        if copy.stat().st_size != size:
            return False
        with contextlib.suppress(PermissionError):  # of another user, who shares the cache
            os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def _reserve(path: RemotePath, temporary: Path, size: int) -> None:
    """Make room and take it, so that several downloads at a time respect the limit together."""
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
    for _ in range(2):  # what is wrong with right lengths may have happened on the way: once again
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
    raise ShardError(path, "", "checksum", f"its SHA-256 is not the one that the index lists; {remedy}")


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
