"""Types of options shared by all verbs, and checks of output paths before any work."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from af.data.stores import local_path
from af.errors import UserError
from af.values import LARGEST_SEED, require_number

Record = TypeVar("Record")


class Parser(argparse.ArgumentParser):
    """An argument parser that reports wrong usage in one line."""

    def error(self, message: str) -> NoReturn:
        """Print it and end with 2."""
        self.exit(2, f"{self.prog}: {message} (`{self.prog} --help` explains)\n")


class Out(type(Path())):  # type: ignore[misc]
    """A place to write."""


def number(kind: type, **limits: Any) -> Callable[[str], Any]:
    """A type of options within `limits` (`af.values.require_number`)."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = text
        try:
            require_number("it", value, **limits)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return parse


#: A whole number from 1 on: processes, steps, frames, pixels.
count: Final = number(int, least=1, whole=True)
#: The side of an image of a face.
pixels: Final = number(int, least=16, most=4096, whole=True)
#: A whole number from 0 on: places in a list, sizes of splits.
whole: Final = number(int, least=0, whole=True)
#: Of generators of random numbers.
seed: Final = number(int, least=0, most=LARGEST_SEED, whole=True)
#: A number above 0: seconds, gigabytes, factors.
positive: Final = number(float, above=0)
#: A number from 0 on: scales of guidance.
scale: Final = number(float, least=0)
#: A number from 0 to 1: parts of a whole and probabilities.
fraction: Final = number(float, least=0, most=1)


def add_settings(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, record: type, options: Mapping[str, tuple[str, Any, str]]
) -> None:
    """Options for fields of a dataclass, whose defaults are theirs: field -> (flag, type or choices, help)."""
    for name, (flag, kind, text) in options.items():
        default = getattr(record, name)
        value = f"{default:g}" if isinstance(default, float) else default
        shown = "" if default is None else f" (default {value})"
        metavar = flag[2:].upper().replace("-", "_")
        how = {"choices": kind} if isinstance(kind, tuple) else {"type": kind, "metavar": metavar}
        parser.add_argument(flag, dest=name, default=default, help=text + shown, **how)


def add_share(parser: argparse.ArgumentParser) -> None:
    """`--share I/N`, the same for every verb that several machines can do together."""
    from af.data.parts import WHOLE, Share

    text = (
        "do the I-th of N shares, for a job array: the same command with every I from 1 to N, on any machines that share "
        "the output folder; the last one to end writes the index"
    )
    parser.add_argument("--share", type=Share.parse, default=WHOLE, metavar="I/N", help=text)


def fractions(text: str) -> tuple[float, float, float]:
    """Fractions of train, val and test, as argparse reads them."""
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        train = val = test = -1.0
    if min(train, val, test) < 0 or train + val + test <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected three numbers for train,val,test, such as 0.9,0.05,0.05")
    return train, val, test


def settings_of(args: argparse.Namespace, record: type[Record], **more: Any) -> Record:
    """The dataclass with the values of `add_settings`, and `more`. What it refuses is a UserError."""
    names = [field.name for field in fields(record) if hasattr(args, field.name) and field.name not in more]  # type: ignore[arg-type]
    try:
        return record(**{name: getattr(args, name) for name in names}, **more)
    except ValueError as error:
        raise UserError(str(error)) from None


def out_file(text: str) -> Out:
    """A file to write; ArgumentTypeError when that is a folder or cannot be."""
    place = Out(local_path(text))
    if place.is_dir():
        raise argparse.ArgumentTypeError(f"{place} is a folder: name a file in it")
    return _writable(place)


def out_folder(text: str) -> Out:
    """A folder to write into; ArgumentTypeError when that is a file or cannot be."""
    place = Out(local_path(text))
    if place.exists() and not place.is_dir():
        raise argparse.ArgumentTypeError(f"{place} is a file: name a folder")
    return _writable(place)


def out_place(text: str) -> Out:
    """A file or a folder."""
    return _writable(Out(local_path(text)))


def _writable(place: Out) -> Out:
    there = next(parent for parent in (place, *place.absolute().parents) if os.path.lexists(parent))
    if there != place and not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is a file: nothing can be written below it")
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{there} may not be written to")
    return place


def require_other_places(args: argparse.Namespace) -> None:
    """Raise UserError if an output would overwrite an input (under any spelling or link) or another output."""
    outs = {name: value for name, value in vars(args).items() if isinstance(value, Out)}
    for name, out in outs.items():
        for other, place in _places(args):
            if other == name or (isinstance(place, Out) and other < name):
                continue
            if _same(out, place):
                kind = f"{_flag(other)}, too" if isinstance(place, Out) else f"{place}, which is read"
                raise UserError(f"{_flag(name)} {out} is {kind}: choose another place")


def _places(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    def each(name: str, value: Any) -> Iterator[tuple[str, Path]]:
        if isinstance(value, str | Path):
            yield name, value if isinstance(value, Path) else Path(value)
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from each(name, inner)

    for name, value in vars(args).items():
        yield from each(name, value)


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b) if a.exists() else a.resolve() == b.resolve()
    except (OSError, ValueError):  # what is no path at all
        return False


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
