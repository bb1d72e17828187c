"""Add motion latents and audio features to shards: what the denoiser trains on.

  af encode --data data/demo --autoencoder runs/demo/vae/export --out data/demo-latents
  af encode --data data/mine --autoencoder runs/vae/export --out data/mine-latents features=wav2vec2

Each input shard becomes one output shard; existing shards are skipped, so a stopped job continues where it was. Many
machines can share the work with --share, for instance as a job array (--array=1-16):

  af encode --data data/mine --autoencoder runs/vae/export --out data/mine-latents --share $SLURM_ARRAY_TASK_ID/16

`features=` picks a configuration of conf/features (logmel, wav2vec2); its values can be overridden, e.g.
`features.mode=utterance` or `features.checkpoint=/path/to/wav2vec2`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from af.cli.config import Configured
from af.cli.derived import WHEN_INTERRUPTED, Derived
from af.cli.kinds import Model, Workers
from af.cli.typed import require_types

__all__ = ["WHEN_INTERRUPTED", "run"]


@dataclass(kw_only=True)
class Encoded(Derived):
    """Encoding takes more processes."""

    workers: Workers = 2


def run(
    config: Configured,
    shards: Encoded,
    *,
    autoencoder: Annotated[Model, "model folder, run or checkpoint of a motion VAE"],
    no_video: Annotated[bool, "leave the face videos out of the new shards"] = False,
    faces: Annotated[
        bool, "measure faces (blendshapes and pose, by MediaPipe) where the shards have no face.npy"
    ] = False,
    precision: Annotated[
        str, "precision of the autoencoder: bf16 (latents within 1 %), or auto: bf16 where it is fast"
    ] = "fp32",
) -> None:
    """Encode every split."""
    if (plain := config.resolved("encode")) is None:
        return
    require_types(features := plain["features"], "features")
    options = shards.options(autoencoder)
    from af.pipeline.encode import encode

    how = {"keep_video": not no_video, "faces": faces, "precision": precision, **options}
    for index in encode(shards.data, shards.out, autoencoder, features, **how):
        print(f"{index.folder}: {len(index.samples)} clips, {index.frames} frames")
