"""Shards of a teacher for distillation: motion that a guided denoiser generates in many steps from known noise.

Samples keep their keys. The noise is not stored: it is a function of key, role and the seed in `TeacherSpec`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from af.data.index import Index
from af.data.parts import WHOLE, Share
from af.data.shards import ShardReader
from af.data.stores import Location, absolute
from af.forcing.guidance import Guidance
from af.forcing.noise import clip_noise
from af.forcing.solvers import OLDER, SCHEDULE, SOLVER, STEPS
from af.models.artifact import find_model
from af.models.denoiser import MotionDenoiser
from af.pipeline.derived import derive, splits_of, write_motions
from af.pipeline.encode import require_specs, spec_of
from af.pipeline.rolling import Scene, cached_denoiser, shard_motions, turn_name
from af.specs import TeacherSpec


def make_teacher(
    data: Location,
    out: Path,
    denoiser: Path,
    *,
    guidance: Guidance = Guidance(),  # noqa: B008 (frozen)
    steps: int = STEPS,
    solver: str = SOLVER,
    schedule: str = SCHEDULE,
    seed: int = 0,
    batch: int = 32,
    splits: Sequence[str] = ("train", "val"),
    device: torch.device | str = "cpu",
    workers: int = 1,
    share: Share = WHOLE,
) -> list[Index]:
    """Write the motion that `denoiser` (a model folder, run or checkpoint) generates for the encoded shards in `data`;
    resumable as `af.pipeline.derived.derive`. Raises UserError when their latents or features do not fit the
    denoiser.
    """
    indices = splits_of(data, splits)
    place = str(find_model(denoiser))  # resolved once: a run still in training gets newer checkpoints
    model, artifact = cached_denoiser(place, str(device))
    for index in indices:
        require_specs(index, artifact)
    latents = spec_of(indices[0])[1]
    spec = TeacherSpec(
        dim=latents.dim,
        autoencoder=latents.autoencoder,
        denoiser=artifact.digest,
        noise_dim=model.dim,
        seed=seed,
        steps=steps,
        guidance=tuple(asdict(guidance).values()),
        solver=solver,
        schedule=schedule,
    )
    settings = {"data": absolute(data), **spec.to_json(), "batch": batch}
    given = (place, json.dumps(spec.to_json()), batch, str(device))
    job: dict[str, Any] = {"workers": workers, "share": share, "description": "teacher"}
    job["unnamed"] = OLDER
    return derive(indices, out / "teacher.json", settings, teacher_shard, given, **job)


def teacher_shard(path: Path, folder: str, shard: int, denoiser: str, described: str, batch: int, device: str) -> int:
    """Write one shard of a teacher, in a worker process that caches the model; returns its number of samples."""
    spec, reader = TeacherSpec.from_json(json.loads(described)), ShardReader(folder)
    guidance = Guidance(*spec.guidance)

    def make(model: MotionDenoiser, scene: Scene, noise: Tensor) -> Tensor:
        sampling: dict[str, Any] = {"steps": spec.steps, "solver": spec.solver, "schedule": spec.schedule}
        return scene.rolled_out(model, noise, guidance=guidance, **sampling)

    model = cached_denoiser(denoiser, device)[0]
    motions = shard_motions(reader, shard, make, model, seed=spec.seed, batch=batch, one_sided=True)

    about = {"teacher_spec": spec, "extra": {"teacher": {"model": denoiser}}}
    return write_motions(path, reader, motions, "teacher.npy", lambda i: about)


def teacher_noise(spec: TeacherSpec, key: str, role: str, frames: int) -> Float[Tensor, "T M"]:
    """The noise from which the teacher generated a person's motion."""
    return clip_noise(turn_name(key, role), spec.seed, frames, spec.noise_dim)
