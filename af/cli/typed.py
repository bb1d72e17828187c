"""Checks of plain values against the types in constructors: `optimizer.lr=abc` fails before any work."""

from __future__ import annotations

import collections.abc
import inspect
import json
import logging
import math
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from af.errors import UserError, did_you_mean


def require_types(config: Any, key: str) -> None:
    """Raise UserError, naming key and allowed type, for a wrong value of any `_target_` in `config`, nested ones first.

    It checks numbers, texts, booleans, choices, lists of them, and plain values in place of objects; parameters without
    annotations are not checked.
    """
    if isinstance(config, list):
        for i, inner in enumerate(config):
            require_types(inner, f"{key}[{i}]")
    if not isinstance(config, Mapping):
        return
    for name, inner in config.items():
        require_types(inner, f"{key}.{name}" if key else str(name))
    if isinstance(target := config.get("_target_"), str):
        parameters, more = _parameters(target, key)
        for name, value in config.items():
            where = f"{key}.{name}" if key else name
            if name not in parameters and not more and not name.startswith("_"):
                what = f"{target.rpartition('.')[2]} has no setting {name!r}{did_you_mean(name, list(parameters))}"
                raise UserError(
                    f"{where}: {what}; does an override or a choice belong to another stage? ~{where} takes it out"
                )
            if name in parameters and not _fits(value, hint := parameters[name]):
                raise UserError(f"{where}={_shown(value)}: give {_described(hint)}")


def _parameters(target: str, key: str) -> tuple[dict[str, Any], bool]:
    """{what a class or function takes: its type}, and whether it may take more."""
    from hydra.utils import get_object

    logging.getLogger("hydra").addHandler(logging.NullHandler())  # what it logs is in its error, too
    try:
        found = get_object(target)
    except Exception as error:  # whatever importing somebody's module raises
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{key}._target_={target}: cannot be imported ({reason})") from error
    hints: dict[str, Any] = {}
    for cls in inspect.getmro(found) if inspect.isclass(found) else [found]:
        call = cls.__dict__.get("__init__") if inspect.isclass(found) else cls
        if call is None or not inspect.isfunction(inspect.unwrap(call)):
            continue
        names = vars(sys.modules[inspect.unwrap(call).__module__])
        parameters = inspect.signature(call).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self"]
        hints |= {p.name: _hint(p.annotation, names) for p in named if p.name not in hints}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return hints, False
    return hints, True


def _hint(annotation: Any, names: Mapping[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    try:
        return eval(annotation, dict(names))
    except Exception:  # a name for type checkers alone
        return Any


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, inner) for inner in arguments)
    if origin is Literal:
        return value in arguments
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if hint in (str, Path):
        return isinstance(value, str)
    if origin is tuple and Ellipsis not in arguments:
        return isinstance(value, list | tuple) and len(value) == len(arguments) and all(map(_fits, value, arguments))
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Collection) and arguments:
        return isinstance(value, list | tuple) and all(_fits(inner, arguments[0]) for inner in value)
    return not (_is_object(hint) and (value is None or isinstance(value, str | int | float | list)))


def _is_object(hint: Any) -> bool:
    """Whether a class is meant that a configuration builds by `_target_`."""
    callables = get_origin(hint) is collections.abc.Callable
    return callables or (inspect.isclass(hint) and hint.__module__.startswith(("af.", "torch")))


def _described(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(inner) for inner in arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Collection):
        count = f" {len(arguments)}" if origin is tuple and Ellipsis not in arguments else ""
        return f"a list of{count} ({_described(arguments[0])} each)" if arguments else "a list"
    if _is_object(hint):
        return f"the _target_ of a {'callable' if origin else hint.__name__} and its settings"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    return words.get(hint, "null" if hint in (None, type(None)) else getattr(hint, "__name__", str(hint)))


def _shown(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
