"""Model folders for the tasks that need only a part of an avatar, checked against the shards they are used on."""

from __future__ import annotations

from pathlib import Path

from af.data.index import Index
from af.errors import UserError
from af.models.artifact import Artifact, load_model
from af.models.denoiser import MotionDenoiser
from af.pipeline.encode import spec_of
from af.specs import FeatureSpec, MotionSpec, require_spec


def load_denoiser(folder: Path | str) -> tuple[MotionDenoiser, Artifact]:
    """A denoiser and its model folder. Raises UserError when it holds another model."""
    artifact = load_model(folder)
    if not isinstance(artifact.model, MotionDenoiser):
        raise UserError(f"{folder} is not a denoiser but {type(artifact.model).__name__}")
    return artifact.model, artifact


def require_specs(index: Index, artifact: Artifact) -> None:
    """Raises UserError unless the shards hold the latents and the features that the denoiser was trained on."""
    audio, motion = spec_of(index)
    remedy = "Give the shards that this denoiser was trained on, or shards encoded alike."
    where = str(index.folder)
    require_spec(audio, FeatureSpec.from_json(artifact.info["feature_spec"]), where=where, remedy=remedy)
    require_spec(motion, MotionSpec.from_json(artifact.info["motion_spec"]), where=where, remedy=remedy)
