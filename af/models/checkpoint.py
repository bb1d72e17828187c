"""Training checkpoints: finding the newest sound one, and reading its model as an export would write it.

A checkpoint describes its own model (entry `model`, written by `af.training.callbacks.Export`), so it can be read
without its run folder.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from af.errors import UserError

LAST: Final = "last.ckpt"
FOLDER: Final = "checkpoints"
_NAME: Final = re.compile(r"last\.ckpt|(best-)?\d+\.ckpt")


@dataclass(frozen=True)
class SavedModel:
    """The model of a checkpoint: description, specs and weights (averaged if there is an average)."""

    config: Mapping[str, Any]
    info: Mapping[str, Any]
    state: Mapping[str, Tensor]


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, sound or not, in order of preference for resuming; links are left out.

    Best checkpoints come last: validation may have run in the middle of accumulated batches.
    """
    files = [path for path in folder.glob("*.ckpt") if not path.is_symlink() and _NAME.fullmatch(path.name)]
    return sorted(files, key=_order, reverse=True)


def _order(path: Path) -> tuple[bool, float]:
    """Sort key. `last` is a copy of the newest where links are impossible."""
    return not path.stem.startswith("best-"), step_of(path)


def sound(path: Path) -> bool:
    """Whether a checkpoint is a complete archive with correct checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises many kinds of errors for damaged archives
        return False


def newest(folder: Path, broken: Callable[[Path], object] = lambda path: None) -> Path | None:
    """The sound checkpoint with the highest step, or None; `broken` is called with each damaged one before it."""
    for path in checkpoint_files(folder):
        if sound(path):
            return path
        broken(path)
    return None


def step_of(path: Path) -> float:
    """The step in a checkpoint's name; infinity for `last`."""
    return math.inf if path.name == LAST else int(path.stem.removeprefix("best-"))


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """A checkpoint's tensors and plain values, mapped from the file. Raises UserError for any other file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:  # torch's own message suggests trusting the file
        what = "it is no checkpoint, or holds more than tensors and plain values, which is not read"
        raise UserError(f"{path} cannot be read as a checkpoint: {what}") from error
    except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        reason = str(error).partition("\n")[0][:160]
        raise UserError(f"{path} cannot be read as a checkpoint ({reason}); is it whole?") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is not a checkpoint of a training")
    return content


def saved_model(path: Path) -> SavedModel:
    """The model in a checkpoint. Raises UserError when the checkpoint does not describe its model."""
    content = read_checkpoint(path)
    try:
        about = content["model"]
        prefix, config, info = f"{about['part']}.", about["config"], about["info"]
        averages = [content["callbacks"][key] for key in about["averages"]]
        state = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
        for average in averages:
            state |= average["average"]
        if odd := [name for name, value in state.items() if value.layout != torch.strided or value.is_complex()]:
            raise UserError(f"{path} holds weights that are no dense real numbers: {', '.join(odd[:3])}")
        # a tensor may claim to be larger than its stored data
        if sum(value.numel() * value.element_size() for value in state.values()) > path.stat().st_size:
            raise UserError(f"{path} describes weights that are larger than itself")
        return SavedModel(config, {**info, "steps": content["global_step"]}, state)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not describe its model ({error!r}): it was written by an earlier version or another "
            "program. Continue its run until the next checkpoint, and use that"
        ) from error
