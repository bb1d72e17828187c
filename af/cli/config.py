"""Composing configurations and building objects from them: the interface to Hydra."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import af
from af.cli.keys import explained, refuse_unread, require_form
from af.cli.options import More
from af.cli.typed import require_types
from af.errors import UserError


def config_folder() -> Path:
    """The conf/ folder: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(af.__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@dataclass
class Configured:
    """What all configured verbs take."""

    overrides: Annotated[list[str], More(nargs="*", metavar="KEY=VALUE"), "values and choices to override"]
    config_dir: Annotated[Path | None, "folder with configurations of your own, searched first"] = None
    print_config: Annotated[bool, "print the resolved configuration and stop"] = False

    def resolved(self, name: str, **values: Mapping[str, Any]) -> dict[str, Any] | None:
        """The configuration `name` with `values` in its groups, resolved; None if printed instead."""
        from omegaconf import OmegaConf

        config = compose(name, self.overrides, self.config_dir)
        for group, found in values.items():
            config[group].update(found)
        if self.print_config:
            print(OmegaConf.to_yaml(OmegaConf.create(resolve(config, complete=False))), end="")
            return None
        return resolve(config)


def searched(config_dir: Path | None) -> list[str]:
    """The override that adds a user's folder to Hydra's search path. Raises UserError for a missing folder."""
    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"--config-dir {config_dir} is not a folder")
    return [f"hydra.searchpath=[file://{config_dir.resolve()}]"] if config_dir else []


def list_choices(parser: argparse.ArgumentParser, group: str) -> None:
    """Have the help list the choices of a group, those in a --config-dir before it too."""

    class Help(argparse.Action):
        def __call__(self, parser: Any, namespace: argparse.Namespace, *_: Any) -> None:
            lines = choices(group, namespace.config_dir)
            width = max(map(len, lines))
            parser.epilog = "\n".join([f"{group}=", *(f"  {name:<{width}}  {said}" for name, said in lines.items())])
            parser.print_help()
            parser.exit()

    about = "show this and the choices (of --config-dir too, given before)"
    parser.add_argument("-h", "--help", action=Help, nargs=0, help=about)


def choices(group: str, config_dir: Path | None = None) -> dict[str, str]:
    """Names of a group's configurations, each with its first comment; those in `config_dir` come before ours."""
    found: dict[str, str] = {}
    for folder in (*([config_dir] if config_dir else []), config_folder()):
        for file in sorted((folder / group).glob("*.yaml")):
            comments = (line.lstrip("# ") for line in file.read_text("utf-8").splitlines() if line.startswith("#"))
            found.setdefault(file.stem, next((c for c in comments if not c.startswith("@package")), ""))
    return found


def compose(name: str, overrides: list[str], config_dir: Path | None = None, *, hydra_too: bool = False) -> Any:
    """The composed configuration `name` as a DictConfig, with Hydra's own part if asked for. Raises UserError that names
    the key and what is allowed.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    search = searched(config_dir)
    register_resolvers()

    def composed(words: list[str]) -> Any:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
            return hydra.compose(name, [*search, *words], return_hydra_config=hydra_too)

    require_form(overrides)
    try:
        config = composed(overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if name == "train" and (with_flags := _with_trainer_flags(overrides)) != overrides:
            return compose(name, with_flags, config_dir, hydra_too=hydra_too)
        raise UserError(
            f"the configuration does not compose: {explained(error, overrides, composed, config_folder())}"
        ) from error
    refuse_unread(overrides, config, composed)
    return config


def _with_trainer_flags(overrides: list[str]) -> list[str]:
    """Allow options of Lightning's Trainer that the configurations do not list."""
    flags = {w: w[8:].partition("=")[0] for w in overrides if re.match(r"trainer\.\w+=", w)}
    if not flags:
        return overrides  # answer a wrong key without importing Lightning
    from af.training.launch import trainer_options

    options = trainer_options()
    return [f"++{w}" if flags.get(w) in options else w for w in overrides]


def register_resolvers() -> None:
    """`${saved_model:FOLDER,KEY}`: an entry of a model folder's model.json, so that a stage can start from a model;
    `${saved_model:FOLDER,KEY,{NAME:VALUE}}` with other values.
    """
    from omegaconf import OmegaConf

    def saved_model(folder: str, key: str, changed: Mapping[str, Any] | None = None) -> Any:
        from af.models.artifact import entry, model_info
        from af.models.registry import check_description

        value = entry(model_info(folder), key, Path(folder))
        check_description(value, f"{folder}: {key}")  # composed configurations are built without further checks
        if changed:
            value = {**value, **changed}
        return OmegaConf.create(value) if isinstance(value, dict | list) else value

    OmegaConf.register_new_resolver("saved_model", saved_model, replace=True)


def resolve(config: Any, complete: bool = True) -> dict[str, Any]:
    """Plain containers with every interpolation filled in. Raises UserError naming a broken key, or a missing one (which
    stays `???` unless the configuration must be `complete`).
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=complete)  # type: ignore[return-value]
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is not set: give {error.full_key}=VALUE") from error
    except OmegaConfBaseException as error:
        reason: BaseException | None = error  # a resolver of ours may have failed, several interpolations deep
        while reason is not None and not isinstance(reason, UserError):
            reason = reason.__cause__ or reason.__context__
        if reason is not None:
            raise reason from None
        if found := re.match(r"Interpolation key '([^']+)' not found", str(error)):
            raise UserError(
                f"{error.full_key} is taken from {found[1]}, which is not there: was it taken out, or is a choice of "
                "another stage's?"
            ) from error
        raise UserError(f"the configuration is incomplete: {' '.join(str(error).split())}") from error


def instantiate(config: Any, key: str = "", **extra: Any) -> Any:
    """Build the object a (resolved) configuration describes, which stands at `key`; a wrong value is a UserError naming
    key and value.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as build

    require_types(config, key)
    try:
        return build(config, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, ValueError | TypeError | ArithmeticError | ImportError):
            place = str(error).partition("full_key: ")[2]
            where = ".".join(part for part in (key, place) if part) or "configuration"
            raise UserError(f"{where}: {' '.join(str(cause).split())}") from error
        if cause is None:  # Hydra's own: what stands there is nothing to call
            raise UserError(f"{key or 'configuration'}: {' '.join(str(error).split())}") from error
        raise


def instantiate_each(configs: Any, key: str, method: str) -> list[Any]:
    """The objects that a configuration names below `key`, each of which has `method`; null ones are left out. UserError
    for what is none.
    """
    if not isinstance(configs, dict):
        raise UserError(f"{key}={configs}: they are given by name; {key}.NAME=null leaves one out")
    found = []
    for name, config in configs.items():
        if config is None:
            continue
        made = instantiate(config, f"{key}.{name}") if isinstance(config, dict) and "_target_" in config else None
        if not hasattr(made, method):
            raise UserError(
                f"{key}.{name}: give the _target_ of a Lightning {key.rstrip('s')} and its settings, or null"
            )
        found.append(made)
    return found
