"""Errors that are the user's to mend: the command line prints their text alone, without a traceback."""

from __future__ import annotations

import re


class UserError(Exception):
    """Something outside the program is wrong: the message names the file or key, what is wrong and what to do."""


def user_text(error: Exception) -> str | None:
    """What the user is to read of an error; None when it is not the user's to mend.

    torch's loader raises what its workers raise anew, with their traceback for a text (and as RuntimeError when the
    class wants more than a text): only the worker's own text is left of it.
    """
    wrapped = re.match(r"Caught (\w+) in .*\.\nOriginal Traceback", str(error))
    if wrapped and wrapped[1] in _names(UserError):
        return re.split(rf"^[\w.]+\.{wrapped[1]}: ", str(error), flags=re.MULTILINE)[-1].strip()
    return str(error) if isinstance(error, UserError) else None


def _names(kind: type[Exception]) -> set[str]:
    return {kind.__name__}.union(*(_names(special) for special in kind.__subclasses__()))
