"""A trained model as a folder: `model.json` (how to build it) and `model.safetensors` (its weights). No pickle.

`model.json` holds the constructor call as `{"_target_": "af.models....", ...plain values}`, the SHA-256 of the weights
file, and the feature and motion specs of the model. Only classes known to `af.models.registry` are built, and none
larger than the weights file. A run folder or a checkpoint can be given in place of a model folder.

The folder of an adapted model (`af.nn.adapt`) names its base in `adapter` and holds what differs from it alone; what is
loaded is the whole model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialised
from torch import Tensor, nn

from af.errors import UserError
from af.files import atomic_path, sha256_of, write_json
from af.models.autoencoder import MotionAutoencoder
from af.models.building import built, require_layout
from af.models.checkpoint import FOLDER, checkpoint_files, newest, saved_model, sound, step_of
from af.models.registry import build, check_description, registered
from af.nn.adapt import Adaptation, changes, merge
from af.specs import FeatureSpec, MotionSpec, SchemaError, is_number, require_spec

FORMAT: Final = 1
DESCRIPTION: Final = "model.json"
WEIGHTS: Final = "model.safetensors"
#: The `checkpoint` of features whose weights lie beside the model folder (`af.share.folder`).
BESIDE: Final = "../features"
#: Entry of an adapted model: its `base` (a path from the folder), the base's `sha256`, and the fields of `Adaptation`.
ADAPTER: Final = "adapter"
#: Where else the base of an adapted model is looked for: in its folder.
BASE: Final = "base"
#: Entry of an adapted autoencoder: the digest by which latents name it, its base's if the decoder alone was adapted.
LATENTS: Final = "latents"
_MAX_DESCRIPTION_BYTES: Final = 2**24
Kind = TypeVar("Kind", bound=nn.Module)
Spec = TypeVar("Spec", FeatureSpec, MotionSpec)


@dataclass(frozen=True)
class Artifact:
    """A loaded model: its folder, the module in eval mode, its JSON, and the SHA-256 of its weights file."""

    folder: Path
    model: nn.Module
    info: Mapping[str, Any]
    digest: str

    def says(self, key: str) -> Any:
        """An entry of the JSON. Raises UserError when it is missing."""
        return entry(self.info, key, self.folder)

    @property
    def feature_spec(self) -> FeatureSpec:
        """Spec of the model's audio features. Raises UserError when it is missing or does not fit the model."""
        return self._spec(FeatureSpec, "feature_spec", "audio_feature_dim")

    @property
    def motion_spec(self) -> MotionSpec:
        """Spec of the model's motion latents. Errors as `feature_spec`."""
        return self._spec(MotionSpec, "motion_spec", "latent_dim")

    def speech_features(self) -> Any:
        """The extractor of the model's audio features. Raises UserError unless it is the one used in training."""
        wanted, described = self.feature_spec, self.says("features")
        if isinstance(described, Mapping) and described.get("checkpoint") == BESIDE:
            described = {**described, "checkpoint": str(self.folder / BESIDE)}
        features = build(described, f"{self.folder}: features")
        remedy = f"Put the checkpoint that {self.folder} was trained with in its place."
        require_spec(getattr(features, "spec", None), wanted, where="the feature extractor", remedy=remedy)
        return features

    @property
    def latents(self) -> str:
        """The digest by which motion latents name this autoencoder."""
        return str(self.info.get(LATENTS) or self.digest)

    @property
    def is_stored(self) -> bool:
        """Whether the folder holds all weights of the model: it is no checkpoint, and not of an adapted model."""
        return self.folder.is_dir() and ADAPTER not in read_description(self.folder)

    def _spec(self, cls: type[Spec], key: str, width: str) -> Spec:
        try:
            spec = cls.from_json(self.says(key))
        except SchemaError as error:
            raise UserError(f"{self.folder}: {key}: {error}") from error
        if spec.dim != getattr(self.model, width, spec.dim):
            raise UserError(f"{self.folder}: {key} says {spec.dim} dims, the model has {getattr(self.model, width)}")
        return spec


def entry(info: Mapping[str, Any], key: str, where: Path) -> Any:
    """The entry `key` of a model's JSON. Raises UserError when it is missing."""
    if info.get(key) is None:
        raise UserError(f"{where} has no entry {key!r}, which is needed here; was the model made by `af train`?")
    return info[key]


def save_model(
    folder: Path, model: nn.Module, config: Mapping[str, Any], info: Mapping[str, Any], *, half: bool = False
) -> str:
    """Write both files atomically; returns the weights file's SHA-256. `info` is what else the description says; it may
    be another model's whole description. With `half`, float32 is stored as float16, and is float32 again when loaded.
    With an entry `adapter` the model is an adapted one, of which its changes are written. Raises UserError for
    non-finite weights.
    """
    adapter = info.get(ADAPTER)
    if adapter is not None:
        info = {**info, ADAPTER: {**adapter, BASE: os.path.relpath(adapter[BASE], folder)}}
    state = _plain(model.state_dict() if adapter is None else changes(model))
    if half:
        state = {name: value.half() if value.dtype == torch.float32 else value for name, value in state.items()}
    require_finite(state, f"{folder} is not written: the model")
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
        digest = sha256_of(temporary)
    own = {"format": FORMAT, "model": dict(config), "sha256": digest}
    write_json(folder / DESCRIPTION, {**own, **info, **own})
    return digest


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights and buffers."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        array = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def find_model(path: str | Path) -> Path:
    """The model folder or checkpoint meant by `path`: a model folder (or a file in it), a checkpoint, or a run folder.
    In a run folder the newest checkpoint wins if it is ahead of the export, or if there is no export.

    Raises UserError when it is none of these, or broken.
    """
    path = Path(path)
    if path.name in (DESCRIPTION, WEIGHTS) and path.is_file():
        return path.parent
    if path.is_file():
        if not sound(path):
            raise UserError(f"{path} is neither a model folder nor a whole checkpoint of a training")
        return path
    if (path / DESCRIPTION).is_file():
        return path
    export, checkpoint = path / "export", newest(path / FOLDER)
    exported = (export / DESCRIPTION).is_file()
    if checkpoint is not None and not (exported and _steps(export) >= step_of(checkpoint)):
        return checkpoint
    if exported:
        return export
    if not path.exists():
        raise UserError(f"{path}: no such model folder, run folder or checkpoint")
    if checkpoint_files(path / FOLDER):
        raise UserError(f"{path / FOLDER}: every checkpoint there is broken")
    raise UserError(
        f"{path} is not a model folder: {DESCRIPTION} is missing; nor is it a run folder with a checkpoint or an export. "
        "Training writes a model folder as RUN/export, `af export` makes one of a stopped run"
    )


def load_model(path: str | Path, kind: type[nn.Module] = nn.Module) -> Artifact:
    """Load the model in a model folder, run or checkpoint (`find_model`), with averaged weights as in an export.

    Raises UserError, naming what is missing, damaged or misfitting, also unless the model is a `kind`.
    """
    place = find_model(path)
    if place.is_file():
        info, state = _from_checkpoint(place)
        where, weights = str(place), str(place)
        _require_kind(info, kind, where)
        shapes = {name: value.shape for name, value in state.items()}
        model = built(info["model"], shapes, where, _adaptation(info, where))
    else:
        info = read_description(place)
        where, weights = f"{place}/{DESCRIPTION}", f"{place}/{WEIGHTS}"
        _require_kind(info, kind, where)
        shapes = shapes_of(place / WEIGHTS)
        if (digest := sha256_of(place / WEIGHTS)) != info["sha256"]:
            raise UserError(
                f"{weights} is not the file that {DESCRIPTION} describes (sha256 {digest[:12]}… instead of "
                f"{info['sha256'][:12]}…): it was changed or replaced; export the model again, or fetch both files anew"
            )
        model = built(info["model"], shapes, where) if ADAPTER not in info else _on_base(place, info, shapes, where)
        state = load_file(place / WEIGHTS)
        _require_types(state, model, weights)
    require_finite(state, weights)
    model.load_state_dict(state, strict=ADAPTER not in info)
    if ADAPTER in info:
        model, info = merge(model), {key: value for key, value in info.items() if key != ADAPTER}
        if isinstance(model, MotionAutoencoder):  # whose latents go by the adapted model's digest, written whole or not
            info |= {LATENTS: info.get(LATENTS) or info["sha256"]}
    return Artifact(place, model.eval(), info, info["sha256"])


def _on_base(place: Path, info: Mapping[str, Any], shapes: Mapping[str, torch.Size], where: str) -> nn.Module:
    """The base of the adapted model in the folder `place`, ready to take changes of these shapes. Raises UserError when the
    base is missing or another one, and for other changes.
    """
    adapter, adaptation = info[ADAPTER], _adaptation(info, where)
    places = (place / BASE, place / str(adapter.get(BASE)))
    found = next((folder for folder in places if folder.exists()), None)
    if found is None:
        raise UserError(
            f"{where}: its base is neither {places[1]} nor {places[0]}; put the model with the sha256 {adapter['sha256']} "
            "(folder or link) into one of these places"
        )
    base = base_of(found, str(adapter["sha256"]), where)
    if base.info["model"] != info["model"]:
        raise UserError(f"{where} describes another model than its base {found}")
    assert adaptation is not None
    model = adaptation(base.model)
    expected = {name: value.shape for name, value in changes(model).items()}
    require_layout(shapes, expected, where)
    return model


def base_of(path: str | Path, sha256: str, where: str) -> Artifact:
    """The model that one is, or will be, adapted from. Raises UserError, beginning with `where`, unless it has this digest
    and is a whole model.
    """
    if ADAPTER in model_info(path):
        raise UserError(
            f"{where}: {path} is an adapted model itself; write it whole first: af export {path} --out FOLDER"
        )
    base = load_model(path)
    if base.digest != sha256:
        raise UserError(
            f"{where}: {path} is not the model that was adapted (sha256 {base.digest[:12]}… instead of {sha256[:12]}…); "
            "give that one"
        )
    return base


def _adaptation(info: Mapping[str, Any], where: str) -> Adaptation | None:
    if (adapter := info.get(ADAPTER)) is None:
        return None
    try:
        return Adaptation(adapter["layers"], adapter["rank"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {ADAPTER} cannot be read ({error!r})") from error


def load_as(path: str | Path, kind: type[Kind]) -> tuple[Kind, Artifact]:
    """`load_model`, returning the typed model as well. Raises UserError when it is of another kind."""
    artifact = load_model(path, kind)
    assert isinstance(artifact.model, kind)
    return artifact.model, artifact


def model_info(path: str | Path) -> Mapping[str, Any]:
    """The JSON of a model folder, or what an export of a run or checkpoint would write. Errors as `load_model`."""
    place = find_model(path)
    return _from_checkpoint(place)[0] if place.is_file() else read_description(place)


def _from_checkpoint(file: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    saved = saved_model(file)
    state = _plain(saved.state)
    digest = hashlib.sha256(serialised(state)).hexdigest()  # hash of the file that an export would write
    return _checked({**saved.info, "format": FORMAT, "model": saved.config, "sha256": digest}, str(file)), state


def _steps(export: Path) -> float:
    steps: Any = read_description(export).get("steps")
    return float(steps) if is_number(steps) else math.inf


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def read_description(folder: Path) -> Mapping[str, Any]:
    """The JSON of a model folder. Raises UserError unless it describes a model of permitted classes."""
    file = folder / DESCRIPTION
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a model folder: {name} is missing; training writes one as RUN/export")
    if file.stat().st_size > _MAX_DESCRIPTION_BYTES:
        raise UserError(f"{file} is too large for the description of a model ({file.stat().st_size} bytes)")
    try:
        return _checked(json.loads(file.read_bytes(), parse_constant=_no_constant), str(file))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as the description of a model: {error}") from error


def _checked(info: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(info, Mapping):
        raise UserError(f"{where}: expected an object, got {type(info).__name__}")
    if info.get("format") != FORMAT:
        raise UserError(f"{where} has format {info.get('format')!r}; this version reads {FORMAT}")
    for key, expected in (("model", Mapping), ("sha256", str), *([(ADAPTER, Mapping)] if ADAPTER in info else [])):
        if not isinstance(info.get(key), expected):
            raise UserError(f"{where}: {key} is missing, or not {'a text' if expected is str else 'an object'}")
    check_description({key: info.get(key) for key in ("model", "features")}, where)
    return info


def _require_kind(info: Mapping[str, Any], kind: type[nn.Module], where: str) -> None:
    cls = registered(info["model"].get("_target_"), where)
    if not issubclass(cls, kind):
        wanted = re.sub(r"(?<!^)(?=[A-Z])", " ", kind.__name__).lower()
        raise UserError(f"{where} is a {cls.__name__}, not a {wanted}")


def shapes_of(file: Path) -> dict[str, torch.Size]:
    """Shapes and types in the header of a weights file, checked against the file's size."""
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: torch.Size(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as safetensors: {error}") from error


def _require_types(state: Mapping[str, Tensor], model: nn.Module, where: str) -> None:
    """Raise UserError unless each weight has its type in `model`, or is float16 where that is float32."""
    known_types = {name: value.dtype for name, value in model.state_dict().items()}
    for name, value in state.items():
        found, known = value.dtype, known_types[name]
        if found != known and (found, known) != (torch.float16, torch.float32):
            half = " or float16" if known == torch.float32 else ""
            plain, expected = (str(kind).removeprefix("torch.") for kind in (found, known))
            raise UserError(f"{where}: {name} is {plain}, expected {expected}{half}; export the model again")


def require_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError, naming the weights that are not finite."""
    broken = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{where} has weights that are NaN or infinite: {', '.join(broken[:3])}"
            + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        )


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
