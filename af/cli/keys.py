"""What a wrong override is told: the key or choice that was probably meant, never Hydra's advice to add it with +."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from af.errors import UserError, did_you_mean

#: Composes some overrides; raises what Hydra raises.
Compose = Callable[[list[str]], Any]


def require_form(overrides: Sequence[str]) -> None:
    """UserError for a word that is no override."""
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"{word!r}: expected KEY=VALUE")


def refuse_unread(overrides: Sequence[str], compose: Compose) -> None:
    """UserError for `+KEY=VALUE` with a new top-level key that no value refers to: nothing would read it."""
    from omegaconf import OmegaConf

    added = [word for word in overrides if word.startswith("+")]
    if not added:
        return
    known = list(_tolerant([word for word in overrides if word not in added], compose) or {})
    config = compose(list(overrides))
    text = OmegaConf.to_yaml(config)
    for key in (name for name in config if name not in known):
        if not re.search(rf"\$\{{([\w.]+:)?{re.escape(key)}\b", text):
            raise UserError(f"{key}: there is no such key, and nothing would read it{did_you_mean(key, known)}")


def explained(error: Exception, overrides: Sequence[str], compose: Compose) -> str:
    """A line on why a configuration does not compose."""
    text = str(error)
    if (found := re.search(r"Could not override '([^']+)'", text)) or (
        found := re.search(r"Key '([^']+)' is not in struct", text)
    ):
        key = found[1]
        word = next((w for w in overrides if w.lstrip("+~").partition("=")[0].endswith(key)), key)
        key = word.lstrip("+~").partition("=")[0]
        composed = _tolerant([w for w in overrides if w != word], compose)
        return f"{key}: there is no such key{did_you_mean(key, _nearest_first(key, _keys(composed)))}"
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        options = re.findall(r"^\t([\w-]+)$", text, re.MULTILINE)
        near = did_you_mean(found[2], options)
        return f"{found[1]}={found[2]}: there is no such choice{near}; available: {', '.join(options)}"
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


def _nearest_first(key: str, keys: Sequence[str]) -> list[str]:
    """Keys in the same place, if that is there: `module.lrr` is rather `module.lr` than another module's."""
    place = key.rpartition(".")[0]
    beside = [k for k in keys if k.rpartition(".")[0] == place]
    return beside if did_you_mean(key, beside) else [*keys]


def _keys(config: Any, prefix: str = "") -> list[str]:
    return list(_each_key(config, prefix))


def _each_key(config: Any, prefix: str) -> Iterator[str]:
    from omegaconf import DictConfig, OmegaConf

    if isinstance(config, DictConfig):
        for name in map(str, config):
            key = f"{prefix}{name}"
            yield key
            if not OmegaConf.is_missing(config, name) and not OmegaConf.is_interpolation(config, name):
                yield from _each_key(config._get_node(name), f"{key}.")
