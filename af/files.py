"""Atomic files: a file under its final name is always complete."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from af.errors import UserError

_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.(?P<host>[^.]+)\.(?P<pid>\d+)\.tmp$")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "host"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`: synced and renamed to `path` on success, removed on any error.

    Its name contains host and process, by which `remove_stale` tells leftovers of killed runs from live files. The file
    gets the permissions of the umask, whatever wrote it (safetensors makes files private).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{_host()}.{os.getpid()}.tmp"
    try:
        mode = _new_file_mode(temporary)
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _new_file_mode(path: Path) -> int:
    """The mode of a new file there. Reading the umask directly would change it for all threads."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        path.unlink()


def require_suffix(path: Path | str, suffixes: Sequence[str], said: str = "", note: str = "") -> Path:
    """`path` if its suffix (in any case) is among `suffixes`. Raises UserError otherwise.

    `said` is the option that named the path, `note` a remark on the allowed suffixes.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        ending = f"the ending {path.suffix!r}" if path.suffix else "no ending"
        allowed = " or ".join(suffixes) + (f" ({note})" if note else "")
        raise UserError(f"{f'{said} {path}'.strip()} has {ending}; the file must end in {allowed}")
    return path


def remove_stale(folder: Path) -> int:
    """Remove temporary files left in `folder` by killed processes of this machine. Returns their number."""
    removed = 0
    for file in folder.glob(".*.tmp") if folder.is_dir() else ():
        match = _TEMPORARY.match(file.name)
        if match and match["host"] == _host() and not _alive(int(match["pid"])):
            file.unlink(missing_ok=True)
            removed += 1
    return removed


def _alive(pid: int) -> bool:
    try:
        with contextlib.suppress(PermissionError):  # of another user
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write `value` as JSON, atomically. NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises UserError when the file is missing or truncated."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); run the command that wrote it again") from error


def claim_folder(
    file: Path, settings: Mapping[str, Any], remedy: str = "", unnamed: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Record the settings of a folder in `file`. Raises UserError if the folder was made with other settings.

    The error names the differences; `remedy` adds a way out besides choosing another folder or deleting this one. `unnamed`
    has the values of settings that older folders do not name.
    """
    with exclusive(file.parent / f".{file.name}.lock"):  # the jobs of an array start simultaneously
        if not file.is_file():
            write_json(file, dict(settings))
            return
    known, wanted = {**unnamed, **flat(read_json(file))}, flat(settings)
    if different := [f"{k}: {known.get(k)} there, {v} asked for" for k, v in wanted.items() if known.get(k) != v]:
        raise UserError(
            f"{file.parent} was made with other settings ({', '.join(different)}); choose another folder with --out, "
            f"or delete that one{remedy}"
        )


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested JSON objects, by dotted name."""
    if not isinstance(settings, Mapping):
        return {prefix.rstrip("."): settings}
    return {key: value for name, inner in settings.items() for key, value in flat(inner, f"{prefix}{name}.").items()}


def append_line(path: Path, line: str) -> None:
    """Append a line to a file shared by several processes: lines never mix, and a truncated line spoils no other."""
    with exclusive(path), open(path, "a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write((line + "\n").encode())


def read_lines(path: Path) -> list[Any]:
    """The JSON values of a file made by `append_line`, without truncated lines; none if there is no file."""
    found = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


@contextlib.contextmanager
def exclusive(file: Path, *, waiting: Callable[[], None] = lambda: None, children: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `file` among processes and threads; `waiting` is called once if it has to wait.

    The lock ends with the block, also for forked copies of this process. With `children` it is held until all processes
    started within the block with `close_fds=False` have ended, even if their parent is killed first.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.set_inheritable(descriptor, children)
        yield
    finally:
        if not children:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
