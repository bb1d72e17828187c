"""Sizes in the headers of uncompressed audio files, which FFmpeg does not compare with the file."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: By a file's first bytes: start of the first chunk, its header (name, size), header bytes included in the size,
#: alignment of chunks, and start of the name of the chunk with the samples.
_CHUNKS: Final = {
    b"RIFF": (12, "<4sI", 0, 2, b"data"),
    b"riff": (40, "<16sQ", 24, 8, b"data"),  # Sony Wave64
    b"caff": (8, ">4sq", 0, 1, b"data"),
}


def _chunks(path: Path | str) -> Iterator[tuple[bytes, int, bool]]:
    """(name, declared size, whether it holds the samples) of each chunk; the last may have a size below 0, left
    open.
    """
    with open(path, "rb") as file:
        if (kind := file.read(4)) not in _CHUNKS:
            return
        start, header, counted, aligned, wanted = _CHUNKS[kind]
        file.seek(start)
        while len(chunk := file.read(struct.calcsize(header))) == struct.calcsize(header):
            name, size = struct.unpack(header, chunk)
            size = -1 if kind == b"RIFF" and size >= 0x7FFF0000 else size - counted  # written to a pipe
            yield name, size, name.startswith(wanted)
            if size < 0:
                return
            file.seek(size + -size % aligned, 1)


def announced_bytes(path: Path | str) -> int | None:
    """Declared bytes of samples; None without such a header or when it leaves them open (written to a pipe)."""
    size = next((size for _, size, samples in _chunks(path) if samples), 0)
    return size if size > 0 else None


def uncounted_bytes(path: Path | str) -> int:
    """Bytes after the samples of a WAV that belong to no chunk (the header was not updated), otherwise 0."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF":
            return 0
    at, behind = 12, False
    for name, length, samples in _chunks(path):
        if behind and (at + 8 + length > size or not (name.isascii() and name.decode("ascii").isprintable())):
            return size - at
        behind = behind or (samples and length > 0)
        at += 8 + length + length % 2
    return 0
