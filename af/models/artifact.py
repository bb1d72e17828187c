"""A trained model as a folder: `model.json` (how to build it) and `model.safetensors` (its weights). No pickle.

`model.json` holds the constructor call as `{"_target_": "af.models....", ...plain values}` plus what the model was made
for (feature spec, motion spec). Only targets inside the package are built.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from af.errors import UserError
from af.files import atomic_path, write_json

FORMAT = 1
Kind = TypeVar("Kind", bound=nn.Module)


@dataclass(frozen=True)
class Artifact:
    """A loaded model: its folder, the module in eval mode, and the JSON beside its weights."""

    folder: Path
    model: nn.Module
    info: Mapping[str, Any]
    digest: str


def build(config: Mapping[str, Any]) -> Any:
    """The object that `{"_target_": "af.…", **arguments}` describes; nested descriptions are built first."""
    arguments = {k: build(v) if isinstance(v, Mapping) and "_target_" in v else v for k, v in config.items()}
    target = arguments.pop("_target_")
    if not target.startswith("af."):
        raise UserError(f"_target_ {target!r} is not part of this package and is not built from a file")
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)(**arguments)


def save_model(folder: Path, model: nn.Module, config: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """Write both files atomically; returns the SHA-256 of the weights file."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(state, temporary)
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    write_json(folder / "model.json", {"format": FORMAT, "model": dict(config), "sha256": digest, **info})
    return digest


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights and buffers."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        array = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def load_model(folder: str | Path) -> Artifact:
    """Read a model folder. Raises UserError naming what is missing or does not fit."""
    folder = Path(folder)
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a model folder: {name} is missing; training writes one as RUN/export")
    try:
        info = json.loads((folder / "model.json").read_text())
        state = load_file(folder / "model.safetensors")
    except (ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be read as a model: {error}") from error
    if info.get("format") != FORMAT:
        raise UserError(f"{folder}/model.json has format {info.get('format')!r}; this version reads {FORMAT}")
    model = build(info["model"])
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(f"{folder}/model.safetensors does not fit model.json: {error}") from error
    return Artifact(folder, model.eval(), info, info["sha256"])


def load_as(folder: str | Path, kind: type[Kind]) -> tuple[Kind, Artifact]:
    """The model of a folder, of a class that must be `kind`, and the folder. Raises UserError when it is of another."""
    artifact = load_model(folder)
    if not isinstance(artifact.model, kind):
        wanted = re.sub(r"(?<!^)(?=[A-Z])", " ", kind.__name__).lower()
        raise UserError(f"{folder} is not a {wanted} but {type(artifact.model).__name__}")
    return artifact.model, artifact
