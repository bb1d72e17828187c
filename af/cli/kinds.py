"""Kinds of values on the command line: numbers within limits, devices, models, places to read and to write."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from af.cli.options import More
from af.data.stores import Location, local_path, location
from af.errors import UserError
from af.values import LARGEST_SEED, require_number


def number(kind: type, **limits: Any) -> Callable[[str], Any]:
    """Parses a number within `limits` (`af.values.require_number`)."""

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


count: Final = number(int, least=1, whole=True)
#: Processes, steps, frames, pixels: a whole number from 1 on.
Count = Annotated[int, count]
#: Places in a list, sizes of splits: a whole number from 0 on.
Whole = Annotated[int, number(int, least=0, whole=True)]
#: Seconds, gigabytes: a number above 0.
Positive = Annotated[float, number(float, above=0)]
#: Scales of guidance: a number from 0 on.
Scale = Annotated[float, number(float, least=0)]
Seed = Annotated[int, number(int, least=0, most=LARGEST_SEED, whole=True), "of the random numbers"]
Workers = Annotated[Count, "processes"]
Overwrite = Annotated[bool, "delete the content of --out first"]


def _fractions(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        train = val = test = -1.0
    if min(train, val, test) < 0 or train + val + test <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected three numbers for train,val,test, such as 0.9,0.05,0.05")
    return train, val, test


#: Parts of the people or frames in train, val and test.
Fractions = Annotated[tuple[float, float, float], _fractions, More(metavar="TRAIN,VAL,TEST")]


def device(text: str) -> Any:
    """The torch.device of this name; UserError where there is none."""
    from af.devices import choose_device

    return choose_device(text)


DEVICE_HELP: Final = "auto (a GPU if there is one, default), cpu, cuda, cuda:1, mps …"
Device = Annotated[Any, device, More(metavar="NAME"), DEVICE_HELP]


class Out(type(Path())):  # type: ignore[misc]
    """A place to write."""


def _out(kind: str) -> Callable[[str], Out]:
    """Parses a place for a "file", a "folder" or either; ArgumentTypeError where that cannot be written."""

    def parse(text: str) -> Out:
        place = Out(local_path(text))
        there = next(parent for parent in (place, *place.absolute().parents) if os.path.lexists(parent))
        if kind == "file" and place.is_dir():
            wrong = f"{place} is a folder: name a file in it"
        elif kind == "folder" and place.exists() and not place.is_dir():
            wrong = f"{place} is a file: name a folder"
        elif there != place and not there.is_dir():
            wrong = f"{there} is a file: nothing can be written below it"
        elif not os.access(there, os.W_OK):
            wrong = f"{there} may not be written to"
        else:
            return place
        raise argparse.ArgumentTypeError(wrong)

    return parse


OutFile = Annotated[Out, _out("file")]
OutFolder = Annotated[Out, _out("folder"), More(metavar="FOLDER")]
OutPlace = Annotated[Out, _out("place")]
#: A folder to read, or its URL.
Source = Annotated[Location, location, More(metavar="FOLDER")]
#: A trained model.
Model = Annotated[Path, More(metavar="MODEL"), "model folder, run or checkpoint"]


def require_other_places(values: Mapping[str, Any]) -> None:
    """Raise UserError if an output would overwrite an input (under any spelling or link) or another output."""
    places = [(name, place) for name, value in values.items() for place in _places(value)]
    outs = [(name, place) for name, place in places if isinstance(place, Out)]
    for name, out in outs:
        for other, place in places:
            if other != name and not (isinstance(place, Out) and other < name) and _same(out, place):
                kind = f"--{other.replace('_', '-')}, too" if isinstance(place, Out) else f"{place}, which is read"
                raise UserError(f"--{name.replace('_', '-')} {out} is {kind}: choose another place")


def _places(value: Any) -> list[Path]:
    if isinstance(value, list | tuple):
        return [place for inner in value for place in _places(inner)]
    return [value] if isinstance(value, Path) else [Path(value)] if isinstance(value, str) else []


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b) if a.exists() else a.resolve() == b.resolve()
    except (OSError, ValueError):  # what is no path at all
        return False
