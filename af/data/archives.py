"""Files inside tar archives, by paths that treat the archive as a folder: ARCHIVE.tar/MEMBER. Nothing is unpacked."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final

from af.errors import UserError

_SUFFIX: Final = ".tar"


class RangeFile(io.RawIOBase):
    """A range of `size` bytes as a read-only file; `read_at(start, length)` reads some of them."""

    def __init__(self, read_at: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._read_at, self._size, self._at = read_at, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Seek as files do."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Read into `buffer`; returns the number of bytes read."""
        data = self._read_at(self._at, max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _MemberFile(RangeFile):
    def __init__(self, archive: Path, offset: int, size: int) -> None:
        self._archive = open(archive, "rb")  # noqa: SIM115 (closed below)
        super().__init__(lambda at, length: os.pread(self._archive.fileno(), length, offset + at), size)

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()
        super().close()


@dataclass(frozen=True)
class Stamp:
    """Size and modification time (of the archive, for a member), and a place that is the same for all names."""

    size: int
    mtime_ns: int
    place: tuple[int, ...]


def stamp(path: Path | str) -> Stamp:
    """The stamp of a file, also of one in an archive. Raises OSError when it is missing."""
    archive, name = _inside(path)
    found = os.stat(path if archive is None else archive)
    if archive is None:
        return Stamp(found.st_size, found.st_mtime_ns, (found.st_dev, found.st_ino))
    if name not in (inner := members(archive)):
        raise FileNotFoundError(f"{archive} holds no {name}")
    offset, size = inner[name]
    return Stamp(size, found.st_mtime_ns, (found.st_dev, found.st_ino, offset))


def exists(path: Path | str) -> bool:
    """Whether the file is there, also in an archive."""
    archive, name = _inside(path)
    return os.path.exists(path) if archive is None else name in members(archive)


def open_binary(path: Path | str) -> BinaryIO | RangeFile:
    """A file, also one in an archive, to be read. Raises OSError."""
    archive, name = _inside(path)
    return open(path, "rb") if archive is None else _MemberFile(archive, *members(archive)[name])


def is_inside(path: Path | str) -> bool:
    """Whether the path leads into an archive."""
    return _inside(path)[0] is not None


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, in order, those in its archives included; or those in one archive.

    Links to folders are followed, once each; hidden files are left out.
    """
    if folder.suffix == _SUFFIX and folder.is_file():
        yield from (folder / name for name in members(folder))
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for path in (Path(place, name) for name in sorted(names) if not name.startswith(".")):
            if path.suffix == _SUFFIX:
                yield from walk(path)
            else:
                yield path


def members(archive: Path) -> Mapping[str, tuple[int, int]]:
    """(offset, size) of every plain file in a tar, by name. Raises `UserError` for what is no complete tar."""
    found = archive.stat()
    return _scanned(archive, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1024)
def _scanned(archive: Path, size: int, mtime_ns: int) -> dict[str, tuple[int, int]]:
    try:
        with tarfile.open(archive, "r:") as tar:
            plain = [info for info in tar if info.isreg() and not info.issparse()]
    except (tarfile.TarError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{archive}: not a complete tar file ({error}); get it again") from None
    return {os.path.normpath(i.name): (i.offset_data, i.size) for i in plain if i.offset_data + i.size <= size}


def _inside(path: Path | str) -> tuple[Path | None, str]:
    """The archive that the path leads into (None), and the member's name."""
    if f"{_SUFFIX}{os.sep}" not in str(path):
        return None, ""
    whole = Path(path)
    archive = next((p for p in whole.parents if p.suffix == _SUFFIX and p.is_file()), None)
    return archive, "" if archive is None else str(whole.relative_to(archive))
