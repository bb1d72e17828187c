"""Checks of plain values against the types in constructors: `optimizer.lr=abc` fails before any work."""

from __future__ import annotations

import collections.abc
import inspect
import json
import logging
import sys
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NoReturn, Union, get_args, get_origin

from af.errors import UserError, did_you_mean

_STRICT: Final[Any] = {"strict": True, "allow_inf_nan": False}
#: In place of pydantic's words.
_WORDS: Final = {
    **{"int_type": "a whole number", "float_type": "a number", "finite_number": "a number", "string_type": "a text"},
    **{
        "bool_type": "true or false",
        "list_type": "a list",
        "tuple_type": "a list",
        "dict_type": "names and their values",
    },
    **{"missing": "more of them", "too_long": "fewer of them", "none_required": "null"},
}


def require_types(config: Any, key: str) -> None:
    """Raise UserError, naming key and allowed type, for a wrong value of any `_target_` in `config`, nested ones first.

    Parameters without annotations are not checked.
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
            if name in parameters and (wrong := _wrong(value, parameters[name])):
                shown = json.dumps(value) if value is None or isinstance(value, bool) else value
                raise UserError(f"{where}={shown}: give {wrong}")


def _wrong(value: Any, hint: Any) -> str:
    """What should be given in place of a plain value; nothing if it fits. What Hydra builds is not looked at."""
    from pydantic import ValidationError, create_model

    text = json.dumps(value, default=str)
    if '"_target_"' in text:
        return ""
    try:
        model = create_model("Value", value=(_values(hint), ...), __config__=_STRICT)
    except Exception:  # no type of values
        return ""
    try:
        model.model_validate_json(f'{{"value": {text}}}')
    except ValidationError as error:
        said = [_WORDS.get(found["type"], found["msg"].removeprefix("Input should be ")) for found in error.errors()]
        return " or ".join(dict.fromkeys([*said, *(["null"] if NoneType in get_args(hint) else [])]))
    return ""


def _values(hint: Any) -> Any:
    """A type that allows plain values alone, in which classes that are not Python's own allow none."""
    from pydantic import AfterValidator
    from pydantic_core import PydanticCustomError

    origin, inner = get_origin(hint), get_args(hint)
    own = inspect.isclass(hint) and hint.__module__.partition(".")[0] not in sys.stdlib_module_names
    if not own and origin is not collections.abc.Callable:
        within = Union if origin is UnionType else origin
        return within[tuple(map(_values, inner))] if inner and origin not in (Literal, Annotated) else hint

    def refuse(_: Any) -> NoReturn:
        kind = "callable" if origin else hint.__name__
        raise PydanticCustomError("object", f"the _target_ of a {kind} and its settings")  # type: ignore[arg-type]

    return Annotated[Any, AfterValidator(refuse)]


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
