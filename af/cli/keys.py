"""Messages for wrong overrides, naming the key or choice probably meant, without Hydra's advice to add it with +."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from af.errors import UserError, did_you_mean
from af.files import flat

#: Composes overrides; raises Hydra's errors.
Compose = Callable[[list[str]], Any]
#: What a training's configuration is made of; and values that nothing else stands for.
PARTS: Final = ("trainer", "checkpoints", "model", "module", "data")
NEEDED: Final = (
    *("run", "seed", "stage", "part", "matmul_precision", "callbacks", "logger"),
    *("compile", "activation_checkpointing"),
)
NEEDED_WITHIN: Final = ("trainer.max_steps", "checkpoints._target_")


def require_form(overrides: Sequence[str]) -> None:
    """Raise UserError for a word that is not an override."""
    for word in overrides:
        if not re.match(r"[^=]+=|~.", word):
            raise UserError(f"{word!r}: expected KEY=VALUE")


def refuse_unread(overrides: Sequence[str], config: Any, compose: Compose) -> None:
    """UserError for `+KEY=VALUE` with a new top-level key that no value refers to: nothing would read it."""
    from omegaconf import OmegaConf

    if not any(word.startswith("+") for word in overrides):
        return
    known = list(_tolerant([word for word in overrides if not word.startswith("+")], compose) or {})
    text = OmegaConf.to_yaml(config)
    for key in (name for name in config if name not in (*known, *PARTS, *NEEDED, "features", "loss")):
        if not re.search(rf"\$\{{([\w.]+:)?{re.escape(key)}\b", text):
            raise UserError(f"{key}: there is no such key, and nothing would read it{did_you_mean(key, known)}")


def require_parts(config: Mapping[str, Any]) -> None:
    """UserError for what a training needs and an override has taken out (`~KEY`) or emptied (`KEY=null`)."""
    for key in (*NEEDED, *PARTS, *NEEDED_WITHIN):
        part, _, name = key.rpartition(".")
        within = config[part] if part else config
        if name not in within or (key in PARTS and not isinstance(within[name], Mapping)):
            instead = f"change {key}.NAME=VALUE alone" if key in PARTS else f"give {key}=VALUE"
            raise UserError(f"{key} was taken out of the configuration, and is needed: {instead}")
    if not isinstance(config["run"], str) or not config["run"].strip():
        raise UserError(f"run={'null' if config['run'] is None else config['run']}: give the folder of the run")


def explained(error: Exception, overrides: Sequence[str], compose: Compose, groups: Path) -> str:
    """One line on why a configuration does not compose; `groups` is the folder of choices."""
    from hydra.errors import OverrideParseException
    from omegaconf import OmegaConf

    text = str(error)
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        quoted = f"""'{key}="{value}"'"""
        return f"{error.override}: cannot be read; a value with brackets, commas or letters beyond a to z is quoted: {quoted}"
    if found := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = found[1] or found[2]
        word = next((w for w in overrides if w.lstrip("+~").partition("=")[0].endswith(key)), key)
        key = word.lstrip("+~").partition("=")[0]
        composed = _tolerant([w for w in overrides if w != word], compose) or OmegaConf.create()
        if OmegaConf.select(composed, key, throw_on_resolution_failure=False) is not None:
            return f"{word}: {key} is no choice of its own; change {key}.NAME=VALUE, or choose by GROUP@{key}=NAME (conf/train.yaml)"
        return f"{key}: there is no such key{_near(key, list(flat(OmegaConf.to_container(composed))))}"
    if found := re.search(r"Could not find '([^']+)/([^'/]*)'", text):
        options = re.findall(r"^\t([\w-]+)$", text, re.MULTILINE)
        near = did_you_mean(found[2], options)
        return f"{found[1]}={found[2]}: there is no such choice{near}; available: {', '.join(options)}"
    if "Config group override must be" in text:
        plain = [w for w in overrides if re.fullmatch(r"[\w/]+(@[\w.]+)?=(null|true|false|[\d.]+)", w)]
        word = next((w for w in plain if (groups / re.split("[@=]", w)[0]).is_dir()), "a choice")
        return f"{word}: give the name of a choice; what is in it changes by {word.partition('=')[0]}.NAME=VALUE"
    return " ".join(text.split())


def _tolerant(overrides: list[str], compose: Compose) -> Any:
    """Composed without the overrides that are wrong themselves; None when that does not help."""
    words = list(overrides)
    while True:
        try:
            return compose(words)
        except Exception as error:
            found = re.search(r"Could not override '([^']+)'", str(error))
            wrong = [w for w in words if found and w.partition("=")[0] == found[1]]
            if not wrong:
                return None
            words = [w for w in words if w not in wrong]


def _near(key: str, keys: Sequence[str]) -> str:
    """The key that was meant: one of the same name elsewhere, then one in the same place, then any."""
    place, _, name = key.rpartition(".")
    if same := [k for k in keys if k.rpartition(".")[2] == name]:
        return f"; did you mean {min(same, key=len)}?"
    return did_you_mean(key, [k for k in keys if k.rpartition(".")[0] == place]) or did_you_mean(key, keys)
