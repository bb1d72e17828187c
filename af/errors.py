"""Errors that are the user's to mend: the command line prints their text alone, without a traceback."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Collection, Iterable


class UserError(Exception):
    """Something outside the program is wrong: the message names the file or key, what is wrong and what to do."""


class Stopped(Exception):
    """A signal has ended a job in an orderly way: the message says what is kept, and where the same command goes on."""

    def __init__(self, signal: int, text: str) -> None:
        super().__init__(text)
        self.signal = signal


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?` with the nearest of `known`, or nothing when none is near."""
    near = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def require_choice(where: str, what: str, value: object, allowed: Collection[str]) -> None:
    """UserError that names the key and the choices, unless `value` is one of them."""
    if value not in allowed:
        raise UserError(f"{where}: unknown {what} {value!r}; allowed: {', '.join(allowed)}")


def user_text(error: Exception) -> str | None:
    """What the user is to read of an error; None when it is not the user's to mend.

    torch's loader raises what its workers raise anew, with their traceback for a text (and as RuntimeError when the
    class wants more than a text): only the worker's own text is left of it.
    """
    wrapped = re.match(r"Caught (\w+) in .*\.\nOriginal Traceback", str(error))
    if wrapped and wrapped[1] in _names(UserError):
        return re.split(rf"^[\w.]+\.{wrapped[1]}: ", str(error), flags=re.MULTILINE)[-1].strip()
    return str(error) if isinstance(error, UserError) else None


def system_text(error: Exception) -> str | None:
    """A line on what the system refuses (a full disk, a file that may not be written), naming the file; None for others.

    Libraries in C and Rust raise classes of their own, with the system's words.
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
