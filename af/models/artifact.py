"""A trained model as a folder: `model.json` (how to build it) and `model.safetensors` (its weights). No pickle.

`model.json` holds the constructor call as `{"_target_": "af.models....", ...plain values}`, the SHA-256 of the weights
file, and what the model was made for (feature spec, motion spec). Classes of `af.models.registry` alone are built, and
nothing is larger than the weights file says. A run folder or a checkpoint can be given in place of a model folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules import module as registration

from af.errors import UserError
from af.files import atomic_path, sha256_of, write_json
from af.models.registry import build, check_description, registered
from af.specs import FeatureSpec, MotionSpec, SchemaError, require_spec

FORMAT: Final = 1
DESCRIPTION: Final = "model.json"
WEIGHTS: Final = "model.safetensors"
_MAX_DESCRIPTION_BYTES: Final = 2**24
Kind = TypeVar("Kind", bound=nn.Module)
Spec = TypeVar("Spec", FeatureSpec, MotionSpec)


@dataclass(frozen=True)
class Artifact:
    """A loaded model: where it was read, the module in eval mode, and the JSON beside its weights."""

    folder: Path
    model: nn.Module
    info: Mapping[str, Any]
    digest: str

    def says(self, key: str) -> Any:
        """An entry of the JSON. UserError when it is not there."""
        return entry(self.info, key, self.folder)

    @property
    def feature_spec(self) -> FeatureSpec:
        """The audio features that the model takes. UserError without, and when they do not fit the model."""
        return self._spec(FeatureSpec, "feature_spec", "audio_feature_dim")

    @property
    def motion_spec(self) -> MotionSpec:
        """The motion latents that the model takes and gives. Errors as `feature_spec`."""
        return self._spec(MotionSpec, "motion_spec", "latent_dim")

    def speech_features(self) -> Any:
        """The extractor of the audio features that the model takes. UserError when it is not the one of the training."""
        wanted = self.feature_spec
        features = build(self.says("features"), f"{self.folder}: features")
        remedy = f"Put the checkpoint that {self.folder} was trained with in its place."
        require_spec(getattr(features, "spec", None), wanted, where="the feature extractor", remedy=remedy)
        return features

    def _spec(self, cls: type[Spec], key: str, width: str) -> Spec:
        try:
            spec = cls.from_json(self.says(key))
        except SchemaError as error:
            raise UserError(f"{self.folder}: {key}: {error}") from error
        if spec.dim != getattr(self.model, width, spec.dim):
            raise UserError(f"{self.folder}: {key} says {spec.dim} dims, the model has {getattr(self.model, width)}")
        return spec


def entry(info: Mapping[str, Any], key: str, where: Path) -> Any:
    """What a model's JSON says about `key`. UserError when it says nothing."""
    if info.get(key) is None:
        raise UserError(f"{where} says nothing about {key!r}, which is needed here; was the model made by `af train`?")
    return info[key]


def save_model(folder: Path, model: nn.Module, config: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """Write both files atomically; returns the SHA-256 of the weights file. UserError for weights that are not finite."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    require_finite(state, f"{folder} is not written: the model")
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
        digest = sha256_of(temporary)
    write_json(folder / DESCRIPTION, {"format": FORMAT, "model": dict(config), "sha256": digest, **info})
    return digest


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights and buffers."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        array = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def load_model(folder: str | Path, kind: type[nn.Module] = nn.Module) -> Artifact:
    """Read a model folder; the model is a `kind`. Raises UserError naming what is missing, damaged or does not fit."""
    folder = Path(folder)
    info = read_description(folder)
    _require_kind(info, kind, folder)
    shapes = _shapes(folder / WEIGHTS)
    if (digest := sha256_of(folder / WEIGHTS)) != info["sha256"]:
        raise UserError(
            f"{folder}/{WEIGHTS} is not the file that {DESCRIPTION} describes (sha256 {digest[:12]}… instead of "
            f"{str(info['sha256'])[:12]}…): it was changed or exchanged; export the model again, or fetch both files anew"
        )
    model = built(info["model"], shapes, f"{folder}/{DESCRIPTION}")
    state = load_file(folder / WEIGHTS)
    require_finite(state, f"{folder}/{WEIGHTS}")
    model.load_state_dict(state, strict=True)
    return Artifact(folder, model.eval(), info, digest)


def load_as(folder: str | Path, kind: type[Kind]) -> tuple[Kind, Artifact]:
    """The model of a folder, of a class that must be `kind`, and the folder. Raises UserError when it is of another."""
    artifact = load_model(folder, kind)
    assert isinstance(artifact.model, kind)
    return artifact.model, artifact


def read_description(folder: Path) -> Mapping[str, Any]:
    """The JSON of a model folder. UserError unless it describes a model of classes that may be built."""
    file = folder / DESCRIPTION
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a model folder: {name} is missing; training writes one as RUN/export")
    if file.stat().st_size > _MAX_DESCRIPTION_BYTES:
        raise UserError(f"{file} is too large for the description of a model ({file.stat().st_size} bytes)")
    try:
        info = json.loads(file.read_bytes(), parse_constant=_no_constant)
        if isinstance(info, Mapping):
            check_description({key: info.get(key) for key in ("model", "features")}, str(file))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as the description of a model: {error}") from error
    if not isinstance(info, Mapping):
        raise UserError(f"{file}: expected an object, got {type(info).__name__}")
    if info.get("format") != FORMAT:
        raise UserError(f"{file} has format {info.get('format')!r}; this version reads {FORMAT}")
    for key, expected in (("model", Mapping), ("sha256", str)):
        if not isinstance(info.get(key), expected):
            raise UserError(f"{file}: {key} is missing, or not {'a text' if expected is str else 'an object'}")
    return info


def built(config: Mapping[str, Any], shapes: Mapping[str, torch.Size], where: str) -> nn.Module:
    """The model that `config` describes, which must have weights of these shapes: UserError otherwise, before any memory
    is taken for it (`where` names the description).
    """
    with _no_more_than(shapes, where), torch.device("meta"):
        plan = build(config, where)
    expected = {name: value.shape for name, value in plan.state_dict().items()}
    if faults := layout_faults(shapes, expected):
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(f"{where} does not fit the weights beside it: {'; '.join(faults[:3])}{more}")
    return build(config, where)  # anew: buffers that are not saved hold nothing on the meta device


def layout_faults(found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]) -> list[str]:
    """Every missing, unexpected and misshapen name, in words."""
    faults = [f"missing: {key} {tuple(shape)}" for key, shape in expected.items() if key not in found]
    faults += [f"unexpected: {key} {tuple(shape)}" for key, shape in found.items() if key not in expected]
    return faults + [
        f"shape: {key} is {tuple(found[key])}, expected {tuple(shape)}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]


@contextmanager
def _no_more_than(shapes: Mapping[str, torch.Size], where: str) -> Iterator[None]:
    """Stops a model under construction that comes to have far more weights than the file: 10⁹ layers take memory even
    on the meta device. Twice as many are allowed for what a constructor makes and replaces.
    """
    tensors = numbers = 0

    def count(owner: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal tensors, numbers
        tensors += 1
        numbers += 0 if value is None else value.numel()
        if tensors > 2 * len(shapes) + 100 or numbers > 2 * sum(s.numel() for s in shapes.values()) + 10**6:
            raise UserError(f"{where} describes a model that is larger than the weights beside it")

    hooks = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _require_kind(info: Mapping[str, Any], kind: type[nn.Module], where: Path) -> None:
    cls = registered(info["model"].get("_target_"), f"{where}/{DESCRIPTION}")
    if not issubclass(cls, kind):
        wanted = re.sub(r"(?<!^)(?=[A-Z])", " ", kind.__name__).lower()
        raise UserError(f"{where} is not a {wanted} but {cls.__name__}")


def _shapes(file: Path) -> dict[str, torch.Size]:
    """What the header of a weights file says, checked against the file's size."""
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: torch.Size(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as safetensors: {error}") from error


def require_finite(state: Mapping[str, Tensor], where: str) -> None:
    """UserError naming the weights that are not finite."""
    broken = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{where} has weights that are NaN or infinite: {', '.join(broken[:3])}"
            + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        )


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
