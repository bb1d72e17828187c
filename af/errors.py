"""Errors that the user can fix: the command line prints only their text, without a traceback."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Collection, Iterable


class UserError(Exception):
    """An error in the user's input or environment. The message names the file or key, what is wrong and what to do."""


class Stopped(Exception):
    """A signal stopped a job cleanly. The message says what was saved and where the same command will continue."""

    def __init__(self, signal: int, text: str) -> None:
        super().__init__(text)
        self.signal = signal


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?` with the closest match in `known`, or an empty string without one."""
    near = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def require_choice(where: str, what: str, value: object, allowed: Collection[str]) -> None:
    """Raise UserError, naming the key and the choices, unless `value` is one of them."""
    if value not in allowed:
        raise UserError(f"{where}: unknown {what} {value!r}; allowed: {', '.join(allowed)}")


def user_text(error: Exception) -> str | None:
    """The text of an error that the user can fix; None for any other.

    torch's loader re-raises a worker's error with the worker's traceback as its text (as RuntimeError if the class
    takes more than a text). This returns only the text of the worker's own error.
    """
    wrapped = re.match(r"Caught (\w+) in .*\.\nOriginal Traceback", str(error))
    if wrapped and wrapped[1] in _names(UserError):
        return re.split(rf"^[\w.]+\.{wrapped[1]}: ", str(error), flags=re.MULTILINE)[-1].strip()
    return str(error) if isinstance(error, UserError) else None


def system_text(error: Exception) -> str | None:
    """One line for an error of the operating system (full disk, missing permission), naming the file; None for others.

    Libraries in C and Rust raise classes of their own with the system's text.
    """
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and number is not None:
        where = f"{error.filename2 or error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror or os.strerror(number)}"
    elif found := re.search(r"\(os error (\d+)\)", str(error)):
        number, text = int(found[1]), " ".join(str(error).split())
    elif "No space left on device" in str(error):
        number, text = errno.ENOSPC, " ".join(str(error).split())
    else:
        return None
    room = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"{text}; make room, then start the same command again" if number in room else text


def _names(kind: type[Exception]) -> set[str]:
    return {kind.__name__}.union(*(_names(special) for special in kind.__subclasses__()))
