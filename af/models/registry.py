"""The classes that may be built from a description in a file: those named here or by an installed package. Nothing else
named by a file is imported.

A package allows a class of its own by an entry point of the group `af.models` in its pyproject.toml:

  [project.entry-points."af.models"]
  MyFeatures = "theirs.module:MyFeatures"

Descriptions may then contain `"_target_": "theirs.module.MyFeatures"`. Models are first built on torch's meta device,
before their weights are read, so their constructors must not read values of tensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Final

from af.errors import UserError

GROUP: Final = "af.models"
BUILDABLE: Final = frozenset(
    {
        "af.models.autoencoder.MotionAutoencoder",
        "af.models.denoiser.MotionDenoiser",
        "af.models.motion_space.MotionSpace",
        "af.models.speech.LogMel",
        "af.models.speech.Wav2Vec2Features",
    }
)


def registered(target: Any, where: str) -> type:
    """The class of a `_target_`. Raises UserError, without importing anything, for a class that is not allowed."""
    if isinstance(target, str) and target in BUILDABLE:
        return _imported(target, where)
    for point in entry_points(group=GROUP):
        if isinstance(target, str) and target == point.value.replace(":", "."):
            return point.load()
    raise UserError(
        f"{where}: _target_ {target!r} is not a class that may be built from a file; your own package can allow it by an "
        f"entry point of the group {GROUP} (docs/own_parts.md)"
    )


def _imported(target: Any, where: str) -> Any:
    try:
        module, _, name = target.rpartition(".")
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # importing a user's module may raise anything
        raise UserError(f"{where}._target_={target}: cannot be imported ({' '.join(str(error).split())})") from error


def check_description(value: Any, where: str) -> None:
    """Raise UserError, without building anything, unless everything in a description (JSON) is allowed."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key == "_target_":
                registered(part, where)
            elif key.startswith("_"):
                raise UserError(f"{where}: {key} is not allowed in the description of a model")
            check_description(part, f"{where}.{key}")
    elif isinstance(value, list):
        for part in value:
            check_description(part, where)
    elif isinstance(value, str) and "${" in value:
        raise UserError(f"{where}: {value!r} is not a plain value")


def build(config: Mapping[str, Any], where: str = "description", *, any_class: bool = False) -> Any:
    """Build the object described by `{"_target_": "af.…", **arguments}`, nested descriptions first.

    `any_class` allows any importable class, for descriptions in the user's own command. Raises UserError for a class
    that is not allowed, and when its constructor rejects the arguments.
    """
    if not isinstance(config, Mapping) or "_target_" not in config:
        raise UserError(f"{where}: expected an object with _target_, got {str(config)[:80]!r}")
    if not any_class:
        check_description(config, where)
    arguments = {
        key: build(value, f"{where}.{key}", any_class=any_class)
        if isinstance(value, Mapping) and "_target_" in value
        else value
        for key, value in config.items()
    }
    cls = (_imported if any_class else registered)(arguments.pop("_target_"), where)
    try:
        return cls(**arguments)
    except Exception as error:  # a constructor may raise anything for wrong values
        raise UserError(f"{where}: {cls.__name__} cannot be built from it ({_in_a_line(error)})") from error


def _in_a_line(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    text = str(error).partition("\n")[0][:160]  # torch appends its own stack
    return f"{type(error).__name__}: {text}"
