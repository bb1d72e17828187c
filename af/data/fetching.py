"""Files of a store as local files: a stopped download goes on where it was, and another file than expected is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import unquote

from af.data.stores import RemotePath, StoredFile
from af.errors import UserError
from af.files import atomic_path, exclusive, sha256_of

PIECE_BYTES: Final = 2**20
#: Files of hashes, as `sha256sum` writes them, that describe the files beside and below them.
_HASHES: Final = ("SHA256SUMS", "sha256sums.txt")


def download(file: StoredFile, target: Path, watch: Callable[[int], None] = lambda done: None) -> Path:
    """Fetch a file to `target`, unless one of its size is there; returns `target`. `watch` hears of the bytes so far.

    What an earlier call left goes on only if it is of the same file: by the SHA-256, else by the store's version.

    Raises UserError when the store cannot be read, sends a file with another SHA-256, or another version meanwhile; both
    are deleted.
    """
    part, place = _part(target, file), file.place
    with exclusive(target.with_name(f".{target.name}.lock")):
        if _bytes(target) == file.size:  # perhaps fetched meanwhile by another process
            return target
        name = escape(target.name)
        for other in (*target.parent.glob(f".{name}.????????.part"), target.with_name(f".{target.name}.part")):
            if other != part or not (file.sha256 or file.version):
                other.unlink(missing_ok=True)  # of another version, or nobody knows
        part.touch()
        with open(part, "r+b") as out:
            if out.seek(0, os.SEEK_END) > file.size:
                out.seek(0)
            place.read_into(out, file.size, PIECE_BYTES, watch)
            out.truncate(file.size)
        if file.sha256 is not None and (digest := sha256_of(part)) != file.sha256:
            part.unlink()
            raise UserError(
                f"{place}: SHA-256 is {digest}, expected {file.sha256}; deleted. Try again, and if it differs again, "
                "do not use that file"
            )
        if file.sha256 is None and file.version is not None and place.stored().version != file.version:
            part.unlink()
            raise UserError(f"{place}: the store changed it while it was fetched; deleted. Start again")
        with atomic_path(target) as temporary:
            os.replace(part, temporary)
    return target


def local_copy(
    place: RemotePath,
    folder: Path,
    suffixes: Collection[str],
    watch: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Path:
    """The files with these suffixes of a remote folder, or one remote tar, below `folder`; returns its local path.

    The URL's own folders are kept, since they may tell the split. What is there is not fetched again, unless its size
    differs. Hashes are checked where the store (hf) or a file SHA256SUMS has them. `watch` hears of the file and of the
    bytes so far and in total. Raises UserError when nothing is listed or it cannot be written, and as `download` does.
    """
    protocol, _, path = place.url.partition("://")
    parts = PurePosixPath(unquote(path) if protocol.startswith("http") else path).parts
    whole = folder.joinpath(*(part for part in parts if part not in ("/", "..")))
    if place.name.endswith(".tar"):
        listed, home = {place.name: place.stored()}, whole.parent
    else:
        found, home = place.files(), whole
        known = _hashes({name: file.place for name, file in found.items() if PurePosixPath(name).name in _HASHES})
        listed = {
            name: file if file.sha256 else replace(file, sha256=known.get(name))
            for name, file in found.items()
            if PurePosixPath(name).suffix.lower() in suffixes
        }
    if not listed:
        raise UserError(
            f"{place}: lists no files that end with {', '.join(sorted(suffixes))}; a web server must list its folders, "
            "or give the URL of a .tar"
        )
    try:
        _fetch(place, home, listed, watch)
    except (OSError, ValueError) as error:  # full, read-only, or names that this file system does not take
        raise UserError(f"{place}: cannot be written to {home} ({error})") from error
    return whole


def _fetch(
    place: RemotePath, home: Path, listed: Mapping[str, StoredFile], watch: Callable[[str, int, int], None]
) -> None:
    lacking = {name for name, file in listed.items() if _bytes(home / name) != file.size}
    home.mkdir(parents=True, exist_ok=True)
    need = sum(max(0, listed[name].size - max(0, _bytes(_part(home / name, listed[name])))) for name in lacking)
    if need > (room := shutil.disk_usage(home).free):
        raise UserError(f"{place}: {need / 1e9:.1f} GB are to be fetched, and {home} has room for {room / 1e9:.1f} GB")
    total, done = sum(file.size for file in listed.values()), 0
    for name, file in listed.items():
        if name in lacking:
            note = partial(_note, watch, name, done, total)
            download(file, home / name, note)
        done += file.size
    watch("", total, total)


def _note(watch: Callable[[str, int, int], None], name: str, before: int, total: int, done: int) -> None:
    watch(name, before + done, total)


def _part(target: Path, file: StoredFile) -> Path:
    known = file.sha256 or file.version
    tag = f".{hashlib.sha256(known.encode()).hexdigest()[:8]}" if known else ""
    return target.with_name(f".{target.name}{tag}.part")


def _bytes(path: Path) -> int:
    """A file's size; -1 without one."""
    return path.stat().st_size if path.is_file() else -1


def _hashes(files: Mapping[str, RemotePath]) -> dict[str, str]:
    """{name: SHA-256} of the lines of files of hashes; names count from the file's folder."""
    found = dict[str, str]()
    for name, file in files.items():
        for line in file.read_bytes().decode("utf-8", "replace").splitlines():
            digest, _, described = line.strip().partition(" ")
            if len(digest) == 64 and described.strip():
                found[str(PurePosixPath(name).parent / described.strip().lstrip("*"))] = digest.lower()
    return found
