"""Shards of losers for the preference stage: the same samples by key, with both people's motion as avatars.

Sources are in `af.pipeline.loser_sources`; a sample's json describes how its losers were made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from af.data.index import Index
from af.data.parts import WHOLE, Share
from af.data.schema import ROLES, ClipMeta
from af.data.shards import ShardReader, write_shard
from af.data.stores import Location, absolute
from af.errors import UserError
from af.models.artifact import find_model
from af.models.registry import build
from af.pipeline.derived import derive, derived_meta, splits_of
from af.pipeline.encode import require_specs, spec_of
from af.pipeline.loser_sources import LoserSource
from af.pipeline.rolling import another_conversation, cached_denoiser, shard_motions, turn_name


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
    """Write losers for every sample of the encoded shards in `data`; resumable as `af.pipeline.derived.derive`.

    `losers` describes the source (`{"_target_": "af.pipeline.loser_sources…"}`); `denoiser` is its model folder, run or
    checkpoint. `batch` clips are rolled out together, with noise from `seed`. Raises UserError when the denoiser is
    missing, or was trained on other latents or features.
    """
    indices = splits_of(data, splits)
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
        names = [turn_name(s.key, role) for s in index.samples if s.shard == shard for role in ROLES]
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
    return derive(indices, out / "losers.json", settings, loser_shard, given, digest=digest, **job)


def loser_shard(
    path: Path, folder: str, shard: int, denoiser: str | None, losers: str, settings: str, device: str
) -> int:
    """Write one shard of losers and return its number of samples. Runs in worker processes, which cache the model."""
    source: LoserSource = build(json.loads(losers), "losers", any_class=True)
    how, reader = json.loads(settings), ShardReader(folder)
    model = None if denoiser is None else cached_denoiser(denoiser, device)[0]
    motions = shard_motions(reader, shard, source, model, other_users=source.other_users, **how)

    def samples() -> Iterator[tuple[str, ClipMeta, Mapping[str, Any]]]:
        _, motion_spec = spec_of(reader.index)
        for i in dict.fromkeys(i for i, _ in motions):
            made: dict[str, Any] = {**json.loads(losers), **how, "model": denoiser}
            if source.other_users:
                other = another_conversation(reader.index, i, how["seed"])
                made["user_of"] = dict.fromkeys(ROLES, reader.index.samples[other].key)
            meta = derived_meta(reader.read_meta(i), motion_spec=motion_spec, extra={"loser": made})
            members = {f"{role}.motion.npy": motions[i, role] for role in ROLES}
            yield reader.index.samples[i].key, meta, members

    return write_shard(path, samples())[0]
