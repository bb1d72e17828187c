"""Verbs are functions: their parameters are what the command line takes, their annotations say how.

A parameter without a default is an argument (before `*`) or a required option; a dataclass without notes stands for its
fields. Within `Annotated` a text is the help (one that begins with - names the option), a function parses, and `More`
has the rest of argparse's settings. The last of each counts, so that an alias can be explained anew where it is used.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from af.errors import UserError
from af.values import WrongValue


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the lines of its texts and reports wrong usage in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **settings})

    def error(self, message: str) -> NoReturn:
        """Print it and end with 2."""
        self.exit(2, f"{self.prog}: {message} (`{self.prog} --help` explains)\n")


class More(dict[str, Any]):
    """Further settings of `add_argument`."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # as all within annotations


def add_parameters(parser: argparse.ArgumentParser, function: Callable[..., Any]) -> None:
    """Add the arguments and options that `function` takes."""
    for parameter, kind, notes in _parameters(function):
        if not notes:
            add_parameters(parser, kind)
            continue
        how: dict[str, Any] = {}
        item, default = get_args(kind)[0] if get_origin(kind) is list else kind, parameter.default
        if kind is bool:
            how["action"] = "store_true"
        elif get_origin(kind) is Literal:
            how["choices"] = get_args(kind)
        elif item in (int, float, Path):
            how["type"] = item
        for note in notes:
            if isinstance(note, str):
                how |= {} if note.startswith("-") else {"help": note.replace("%", "%%")}
            else:
                how |= note if isinstance(note, More) else {"type": note}
        if isinstance(default, str | int | float) and kind is not bool and "default" not in how["help"]:
            how["help"] += f" (default {default:g})" if isinstance(default, float) else f" (default {default})"
        if default is Parameter.empty and parameter.kind is not Parameter.KEYWORD_ONLY:
            parser.add_argument(parameter.name, **how)
            continue
        flags = _flags(parameter, notes)
        if not how.keys() & {"action", "choices"}:
            how.setdefault("metavar", flags[0][2:].upper().replace("-", "_"))
        more = {"required": True} if default is Parameter.empty else {"default": default}
        parser.add_argument(*flags, dest=parameter.name, **more, **how)


def bind(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What `function` takes of the parsed values. What a dataclass refuses is a WrongValue that names the options."""
    taken = {}
    for parameter, kind, notes in _parameters(function):
        if notes:
            taken[parameter.name] = values[parameter.name]
            continue
        try:
            taken[parameter.name] = kind(**bind(kind, values))
        except (ValueError, UserError) as error:
            flags = {field.name: _flags(field, notes)[0] for field, _, notes in _parameters(kind) if notes}
            raise WrongValue(re.sub(r"(?<![-\w])\w+", lambda word: flags.get(word[0], word[0]), str(error))) from None  # noqa: B023
    return taken


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[Parameter, Any, list[Any]]]:
    hints = get_type_hints(function, include_extras=True)
    for parameter in signature(function).parameters.values():
        kind, notes = _unfolded(hints[parameter.name])
        if notes or is_dataclass(kind):  # fields without a note are no options
            yield parameter, kind, notes


def _unfolded(hint: Any) -> tuple[Any, list[Any]]:
    """A type without its notes and `| None`, and the notes."""
    inner, *more = get_args(hint) or [None]
    if get_origin(hint) is Annotated:
        kind, notes = _unfolded(inner)
        return kind, notes + more
    return _unfolded(inner) if NoneType in more else (hint, [])


def _flags(parameter: Parameter, notes: list[Any]) -> list[str]:
    named = [note for note in notes if isinstance(note, str) and note.startswith("-")]
    return named or [f"--{parameter.name.replace('_', '-')}"]
