"""What may be built from a description in a file: classes that are named here, or by an installed package. Nothing else
that a file names is imported.

A package says that a class of its own may be built by an entry point of the group `af.models`, in its pyproject.toml:

  [project.entry-points."af.models"]
  MyFeatures = "theirs.module:MyFeatures"

and descriptions then hold `"_target_": "theirs.module.MyFeatures"`. Models are built on torch's meta device once, before
their weights are read, so their constructors must not look at values of tensors.
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
    """The class of a `_target_`. UserError, with nothing imported, when it is not one that may be built."""
    if isinstance(target, str) and target in BUILDABLE:
        return _imported(target, where)
    for point in entry_points(group=GROUP):
        if isinstance(target, str) and target == point.value.replace(":", "."):
            return point.load()
    raise UserError(
        f"{where}: _target_ {target!r} is not a class that may be built from a file; a package of your own says so by an "
        f"entry point of the group {GROUP}"
    )


def _imported(target: Any, where: str) -> Any:
    try:
        module, _, name = target.rpartition(".")
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever importing somebody's module raises
        raise UserError(f"{where}._target_={target}: cannot be imported ({' '.join(str(error).split())})") from error


def check_description(value: Any, where: str) -> None:
    """UserError, with nothing built, unless all that a description (JSON) describes may be built."""
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
    """The object that `{"_target_": "af.…", **arguments}` describes; nested descriptions are built first.

    `any_class` is for what the user's own command describes: then any class that can be imported is built. Raises UserError
    for a class that may not be built, and when its constructor does not take the arguments.
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
    except Exception as error:  # whatever a constructor makes of wrong values, the values are at fault
        raise UserError(f"{where}: {cls.__name__} cannot be built from it ({_in_a_line(error)})") from error


def _in_a_line(error: Exception) -> str:
    text = str(error).partition("\n")[0][:160]  # torch goes on with its own stack
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
