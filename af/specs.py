"""Specs: how audio features, motion latents, a teacher's motion and face parameters were made, and their checks.

Shards carry specs in their json, models in their folder; a model refuses shards with a different spec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from af.errors import UserError


class SchemaError(UserError):
    """A sample's description violates the schema; the message names the field and what was expected."""


def refuse_unknown(cls: type, data: Any) -> Mapping[str, Any]:
    """Return `data` if it is a mapping with only known keys and all required ones; raise `SchemaError` otherwise."""
    if not isinstance(data, Mapping):
        raise SchemaError(f"{cls.__name__}: expected an object, got {type(data).__name__}")
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(data) - known):
        raise SchemaError(f"{cls.__name__}: unknown field {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return data


def require(condition: bool, name: str, expected: str, got: Any) -> None:
    """Raise `SchemaError`, with the expected and the actual value, unless `condition`."""
    if not condition:
        raise SchemaError(f"{name}: expected {expected}, got {got!r}")


def is_int(value: Any) -> bool:
    """Whether a JSON value is an integer (true and false are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)


class _Spec:
    """Conversion to and from JSON, and differences, for the flat specs below."""

    def to_json(self) -> dict[str, Any]:
        """A plain JSON object; `from_json` returns an equal spec."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, data: Any):
        """The spec in a JSON object. Raises `SchemaError` for unknown, missing or wrong fields."""
        data = refuse_unknown(cls, data)
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
        except TypeError as error:
            raise SchemaError(f"{cls.__name__}: {error}") from None

    def differences(self, other: Any) -> tuple[str, ...]:
        """Names of the fields in which two specs differ."""
        if type(self) is not type(other):
            return ("everything",)
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name))  # type: ignore[arg-type]


@dataclass(frozen=True)
class FeatureSpec(_Spec):
    """How audio features were made; a model refuses features with a different spec.

    `dim` is the size of a frame's vector (layers x dim of a layer). In mode `utterance` the extractor saw the whole
    clip. In mode `streaming` it saw, for each block of `block_frames` frames counted from 0, the samples of at most
    `window_frames` frames up to the end of the block, plus `right_context_frames` after it. `checkpoint` is the SHA-256
    of the extractor's weights, None for an extractor without weights.
    """

    extractor: str
    version: str
    dim: int
    mode: Literal["utterance", "streaming"]
    block_frames: int | None = None
    window_frames: int | None = None
    right_context_frames: int = 0
    layers: tuple[int, ...] = ()
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.extractor, str) and bool(self.extractor), "extractor", "a name", self.extractor)
        require(isinstance(self.version, str), "version", "a string", self.version)
        require(is_int(self.dim) and self.dim > 0, "dim", "a positive integer", self.dim)
        require(self.mode in ("utterance", "streaming"), "mode", "utterance or streaming", self.mode)
        require(is_int(self.right_context_frames) and self.right_context_frames >= 0, "right_context_frames", "an integer >= 0", self.right_context_frames)  # fmt: skip
        object.__setattr__(self, "layers", tuple(self.layers))
        require(all(is_int(n) for n in self.layers), "layers", "integers", self.layers)
        require(self.checkpoint is None or isinstance(self.checkpoint, str), "checkpoint", "a hash or null", self.checkpoint)  # fmt: skip
        if self.mode == "streaming":
            for name in ("block_frames", "window_frames"):
                value = getattr(self, name)
                require(is_int(value) and value > 0, name, "a positive integer with mode streaming", value)
            assert self.block_frames is not None
            assert self.window_frames is not None
            require(self.window_frames >= self.block_frames, "window_frames", f"at least block_frames = {self.block_frames}", self.window_frames)  # fmt: skip
        else:
            for name in ("block_frames", "window_frames"):
                require(getattr(self, name) is None, name, "null with mode utterance", getattr(self, name))


@dataclass(frozen=True)
class MotionSpec(_Spec):
    """The autoencoder of the motion latents: `dim` numbers per frame, in the span of `directions` directions."""

    dim: int
    directions: int
    autoencoder: str
    image_size: int

    def __post_init__(self) -> None:
        for name in ("dim", "directions", "image_size"):
            value = getattr(self, name)
            require(is_int(value) and value > 0, name, "a positive integer", value)
        require(isinstance(self.autoencoder, str) and bool(self.autoencoder), "autoencoder", "a hash", self.autoencoder)  # fmt: skip


@dataclass(frozen=True)
class TeacherSpec(_Spec):
    """How a teacher's motion was made: latents of `dim` numbers, hashes of autoencoder and denoiser, `steps` steps of
    `solver` at the flow times of `schedule` with `guidance` (audio, user, joint), from noise of `noise_dim` numbers per frame drawn with `seed`.
    """

    dim: int
    autoencoder: str
    denoiser: str
    noise_dim: int
    seed: int
    steps: int
    guidance: tuple[float, ...]
    solver: str = "euler"  # this and the schedule are those of teachers made before there was a choice
    schedule: str = "uniform"

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance", tuple(self.guidance))
        for name in ("dim", "noise_dim", "steps"):
            value = getattr(self, name)
            require(is_int(value) and 0 < value <= 2**16, name, "a whole number from 1 to 65,536", value)
        require(is_int(self.seed), "seed", "an integer", self.seed)
        for name in ("solver", "schedule"):
            require(isinstance(value := getattr(self, name), str), name, "a name", value)
        require(len(self.guidance) == 3 and all(map(is_number, self.guidance)), "guidance", "3 numbers", self.guidance)
        for name in ("autoencoder", "denoiser"):
            value = getattr(self, name)
            require(isinstance(value, str) and bool(value), name, "a hash", value)


@dataclass(frozen=True)
class FaceSpec(_Spec):
    """Layout of the face parameters: the first `expression` of `names` are expressions, the rest head pose."""

    names: tuple[str, ...]
    expression: int
    tracker: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        require(len(self.names) > 0 and all(isinstance(n, str) for n in self.names), "names", "parameter names", self.names)  # fmt: skip
        require(len(set(self.names)) == len(self.names), "names", "different names", self.names)
        require(is_int(self.expression) and 0 <= self.expression <= len(self.names), "expression", f"0 to {len(self.names)}", self.expression)  # fmt: skip
        require(isinstance(self.tracker, str) and bool(self.tracker), "tracker", "a name", self.tracker)

    def grouping(self, groups: Mapping[str, Sequence[str]]) -> Float[np.ndarray, "P G"]:
        """The matrix from parameters to `groups` of them: the mean of each group's, those that begin with "-" negative.

        Raises UserError for a parameter that the tracker lacks.
        """
        matrix = np.zeros((len(self.names), len(groups)))
        for column, members in enumerate(groups.values()):
            for member in members:
                name = member.removeprefix("-")
                if name not in self.names:
                    raise UserError(
                        f"the tracker {self.tracker} does not read {name}; it reads {', '.join(self.names)}"
                    )
                matrix[self.names.index(name), column] = (-1.0 if member != name else 1.0) / len(members)
        return matrix


def require_spec(found: _Spec | None, wanted: _Spec, *, where: str, remedy: str) -> None:
    """Raise `UserError`, naming both specs, unless the data's spec is the one a model was built for."""
    if found == wanted:
        return
    name = type(wanted).__name__
    if found is None:
        raise UserError(f"{where} has no {name}; the model needs {wanted.to_json()}. {remedy}")
    different = ", ".join(
        f"{n}: {getattr(found, n, None)!r} instead of {getattr(wanted, n)!r}" for n in wanted.differences(found)
    )
    raise UserError(
        f"{where}: {name} differs from the one the model was built for ({different}).\n"
        f"  found {found.to_json()}\n  model {wanted.to_json()}\n  {remedy}"
    )
