"""Losers for the preference stage: motion of the same avatars in the same conversations that is worse than the true one.

A source is what `conf/losers/*.yaml` describe; `af losers` makes shards with one (the same samples by key, each with the
motion of both people as the avatar), and `OnlineLosers` makes losers for the batch at hand. A new one is a `LoserSource`
here, or in a package of your own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from af.data.checks import ShardError, check_values
from af.data.index import Index
from af.data.parts import WHOLE, Share
from af.data.schema import ROLES
from af.data.shards import ShardReader
from af.data.stores import Location, absolute
from af.errors import UserError, require_choice
from af.forcing.guidance import Guidance
from af.forcing.solvers import OLDER, SCHEDULE, SCHEDULES, SOLVER, SOLVERS, STEPS
from af.models.artifact import WEIGHTS, find_model
from af.models.denoiser import MotionDenoiser
from af.models.registry import build
from af.pipeline.derived import derive, splits_of, write_motions
from af.pipeline.encode import require_specs, spec_of
from af.pipeline.rolling import OtherConversations, Scene, cached_denoiser, shard_motions, turn_name
from af.values import require_number


class LoserSource:
    """Base of the sources: maps a denoiser, a scene and noise (B, N, M) to motion latents (B, T, D)."""

    #: Whether the scene must hold the users of other conversations.
    other_users: ClassVar[bool] = False
    #: Whether it rolls out the denoiser; if not, `af losers` needs none.
    needs_denoiser: ClassVar[bool] = True

    def __call__(self, denoiser: MotionDenoiser, scene: Scene, noise: Tensor) -> Float[Tensor, "B T D"]:
        """The losers."""
        raise NotImplementedError

    def inputs(self, name: str) -> Sequence[Path]:
        """Files besides the shards that the loser of turn `name` (KEY/ROLE) depends on, to detect changes."""
        return ()


@dataclass(frozen=True)
class WeakUser(LoserSource):
    """The denoiser with a guidance scale below 1 for the user's signals; at 0 (`drop_user`) it ignores them.

    `audio` is the scale of the avatar's audio, `steps` the number of steps per block, which `solver` integrates at the flow
    times of `schedule`.
    """

    #: What `user` may be (`af.values.require_number`).
    user_limits: ClassVar[Mapping[str, Any]] = {"least": 0, "below": 1}
    audio: float = 2.0
    user: float = 0.0
    steps: int = STEPS
    solver: str = SOLVER
    schedule: str = SCHEDULE

    def __post_init__(self) -> None:
        require_number("losers.user", self.user, **self.user_limits)
        require_choice("losers.solver", "solver", self.solver, SOLVERS)
        require_choice("losers.schedule", "schedule", self.schedule, SCHEDULES)

    def __call__(self, denoiser: MotionDenoiser, scene: Scene, noise: Tensor) -> Float[Tensor, "B T D"]:
        """The losers."""
        guidance = Guidance(self.audio, self.user)
        sampling: dict[str, Any] = {"steps": self.steps, "solver": self.solver, "schedule": self.schedule}
        return scene.rolled_out(denoiser, noise, guidance=guidance, **sampling)


@dataclass(frozen=True)
class OtherUser(WeakUser):
    """The denoiser reacting to the user of another conversation.

    While training, that is the user of another window of the same rank's share of the batch: unlike all other numbers of
    a training, these losers depend on the number of ranks. Losers made by `af losers` do not.
    """

    other_users: ClassVar[bool] = True
    user_limits: ClassVar[Mapping[str, Any]] = {"above": 0}
    user: float = 1.0


@dataclass(frozen=True)
class Talking(WeakUser):
    """Another denoiser, trained on the avatar's audio alone (`module.dropout.user=1`): `model` is its folder or run."""

    model: str = ""

    def __call__(self, denoiser: MotionDenoiser, scene: Scene, noise: Tensor) -> Float[Tensor, "B T D"]:
        """The losers."""
        return super().__call__(cached_denoiser(self.model, str(noise.device))[0], scene, noise)

    def inputs(self, name: str) -> Sequence[Path]:
        """The other denoiser's weights."""
        place = find_model(self.model)
        return (place if place.is_file() else place / WEIGHTS,)


@dataclass(frozen=True)
class FromFiles(LoserSource):
    """Arrays KEY.a.npy and KEY.b.npy (frames x motion latent) in a folder; only for `af losers`.

    Raises UserError for files that are missing, unreadable, or of another shape.
    """

    needs_denoiser: ClassVar[bool] = False
    folder: str

    def __call__(self, denoiser: MotionDenoiser, scene: Scene, noise: Tensor) -> Float[Tensor, "B T D"]:
        """The losers."""
        if not scene.names:
            raise UserError("online.source: the arrays in a folder are for whole clips; make shards with `af losers`")
        return torch.stack([self._read(name, scene.user_motion.shape[1:]) for name in scene.names])

    def inputs(self, name: str) -> Sequence[Path]:
        """The array's file."""
        file = Path(self.folder) / f"{name.replace('/', '.')}.npy"
        if not file.is_file():
            raise UserError(f"{file} is missing: losers=file needs KEY.a.npy and KEY.b.npy for every sample")
        return (file,)

    def _read(self, name: str, shape: torch.Size) -> Tensor:
        (file,) = self.inputs(name)
        try:
            array = np.asarray(np.load(file, allow_pickle=False), np.float32)
        except (ValueError, TypeError, EOFError, OSError) as error:
            raise UserError(
                f"{file} cannot be read as an array of numbers ({error}); save it with numpy.save"
            ) from error
        if array.shape != tuple(shape):
            raise UserError(f"{file}: shape {array.shape}, expected {tuple(shape)} (frames x motion latent)")
        check_values(array, partial(ShardError, str(file), ""))
        return torch.from_numpy(array)


def make_losers(
    data: Location,
    out: Path,
    losers: Mapping[str, Any],
    *,
    denoiser: Path | None = None,
    seed: int = 0,
    batch: int = 32,
    splits: Sequence[str] = ("train", "val"),
    device: torch.device | str = "cpu",
    workers: int = 1,
    share: Share = WHOLE,
) -> list[Index]:
    """Write losers for every conversation of the encoded shards in `data`; resumable as `af.pipeline.derived.derive`.

    `losers` describes the source (`{"_target_": "af.pipeline.losers…"}`); `denoiser` is its model folder, run or
    checkpoint. `batch` clips are rolled out together, with noise from `seed`. Raises UserError when the denoiser is
    missing, or was trained on other latents or features. One-sided samples have no losers.
    """
    indices = splits_of(data, splits)
    for index in indices:
        index.conversations()
    source: LoserSource = build(losers, "losers", any_class=True)
    place = None
    model: dict[str, Any] = {}
    if source.needs_denoiser:
        if denoiser is None:
            raise UserError("losers: this source rolls out a denoiser, and none is given (--denoiser)")
        place = str(find_model(denoiser))  # resolved once: a run still in training gets newer checkpoints
        artifact = cached_denoiser(place, str(device))[1]
        model = {"model": artifact.digest}
        for index in indices:
            require_specs(index, artifact)

    def digest(index: Index, shard: int) -> str:
        samples = [s for s in index.samples if s.shard == shard and len(s.roles) == 2]
        names = [turn_name(s.key, role) for s in samples for role in ROLES]
        files = [file for name in names for file in source.inputs(name)]
        if not files:
            return index.shards[shard].sha256
        found = hashlib.sha256(index.shards[shard].sha256.encode())
        for file in dict.fromkeys(files):
            found.update(file.read_bytes())
        return found.hexdigest()

    how = {"seed": seed, "batch": batch}
    settings = {"data": absolute(data), "losers": dict(losers), **model, **how}
    given = (place, json.dumps(losers), json.dumps(how), str(device))
    job: dict[str, Any] = {"workers": workers, "share": share, "description": "losers"}
    job["unnamed"] = {f"losers.{name}": value for name, value in OLDER.items()}
    return derive(indices, out / "losers.json", settings, loser_shard, given, digest=digest, **job)


def loser_shard(
    path: Path, folder: str, shard: int, denoiser: str | None, losers: str, settings: str, device: str
) -> int:
    """Write one shard of losers and return its number of samples. Runs in worker processes, which cache the model."""
    source: LoserSource = build(json.loads(losers), "losers", any_class=True)
    how, reader = json.loads(settings), ShardReader(folder)
    model = None if denoiser is None else cached_denoiser(denoiser, device)[0]
    motions = shard_motions(reader, shard, source, model, other_users=source.other_users, **how)

    _, motion_spec = spec_of(reader.index)
    others = OtherConversations(reader.index)

    def describe(i: int) -> dict[str, Any]:
        made: dict[str, Any] = {**json.loads(losers), **how, "model": denoiser}
        if source.other_users:
            other = others.of(i, how["seed"])
            made["user_of"] = dict.fromkeys(ROLES, reader.index.samples[other].key)
        return {"motion_spec": motion_spec, "extra": {"loser": made}}

    return write_motions(path, reader, motions, "motion.npy", describe)
