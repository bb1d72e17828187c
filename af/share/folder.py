"""A hub folder: all that an avatar needs, in one folder, as hubs expect it.

  avatar.json                size and SHA-256 of every file below, and how the avatar is sampled
  README.md                  the model card (`af.share.card`)
  autoencoder/, denoiser/    model folders (`af.models.artifact`)
  features/                  weights of the speech features, where they have some

Nothing else of a folder is read. Sizes and hashes are compared before anything is loaded, then each model is checked
against its own description.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from af.errors import UserError
from af.files import atomic_path, sha256_of, write_json
from af.models.artifact import (
    ADAPTER,
    BESIDE,
    DESCRIPTION,
    WEIGHTS,
    Artifact,
    load_model,
    read_description,
    save_model,
    shapes_of,
)
from af.models.autoencoder import MotionAutoencoder
from af.models.building import no_more_than
from af.models.denoiser import MotionDenoiser
from af.models.speech import Wav2Vec2Features
from af.pipeline.avatar import Avatar
from af.pipeline.sampling import plain_sampling, read_sampling, usual_sampling

FORMAT: Final = 1
MANIFEST: Final = "avatar.json"
CARD: Final = "README.md"
AUTOENCODER: Final = "autoencoder"
DENOISER: Final = "denoiser"
MODEL_FILES: Final = tuple(f"{part}/{file}" for part in (AUTOENCODER, DENOISER) for file in (DESCRIPTION, WEIGHTS))
FEATURE_FILES: Final = ("features/config.json", "features/model.safetensors")
LARGEST_MANIFEST: Final = 2**20
_WAV2VEC2: Final = "af.models.speech.Wav2Vec2Features"


@dataclass(frozen=True)
class Manifest:
    """The content of avatar.json: {file: (bytes, SHA-256)}, and `sampling` as `af.forcing.sampler.BlockSampler` takes it."""

    files: Mapping[str, tuple[int, str]]
    sampling: Mapping[str, Any]


def read_manifest(folder: Path) -> Manifest:
    """Read avatar.json. Raises UserError, naming the folder, for anything but a list of the files above."""
    file = folder / MANIFEST
    if not file.is_file():
        raise UserError(f"{folder} is no hub folder: {MANIFEST} is missing; `af share card` makes hub folders")
    try:
        if (size := file.stat().st_size) > LARGEST_MANIFEST:
            raise ValueError(f"{size} bytes are too many")
        data = json.loads(file.read_bytes())
        if data["format"] != FORMAT:
            raise ValueError(f"it has format {data['format']!r}, this version reads {FORMAT}")
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in data["files"].items()}
        if strange := set(files) - {*MODEL_FILES, *FEATURE_FILES}:
            raise ValueError(f"it lists {sorted(strange)[0]!r}, which is no part of a hub folder")
        if missing := [name for name in MODEL_FILES if name not in files]:
            raise ValueError(f"it does not list {missing[0]}")
        for name, (size, digest) in files.items():
            if type(size) is not int or size < 0 or not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"size or SHA-256 of {name} is wrong")
        return Manifest(files, read_sampling(data["sampling"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} cannot be used: {error if isinstance(error, ValueError) else repr(error)}") from error


def verify(folder: Path) -> Manifest:
    """Compare all files with avatar.json, sizes first. Raises UserError for one that is missing, cut, longer or changed."""
    manifest = read_manifest(folder)
    for name, (size, _) in manifest.files.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes instead of {size}: cut off, or another file"
            raise UserError(f"{folder / name} {what}; fetch the folder again")
    for name, (_, digest) in manifest.files.items():
        if (found_digest := sha256_of(folder / name)) != digest:
            raise UserError(
                f"{folder / name} is not the file that {MANIFEST} names (sha256 {found_digest[:12]}… instead of "
                f"{digest[:12]}…): it was changed; fetch the folder again"
            )
    return manifest


def load(folder: Path) -> tuple[Artifact, Artifact, Mapping[str, Any]]:
    """Autoencoder, denoiser and sampling of a hub folder. Raises UserError, before memory is taken, for files that are
    damaged, do not fit each other, or ask for classes or weights from elsewhere.
    """
    manifest = verify(folder)
    features: Any = read_description(folder / DENOISER).get("features")
    beside = isinstance(features, Mapping) and features.get("checkpoint") == BESIDE
    if beside:
        if not set(FEATURE_FILES) <= set(manifest.files):
            raise UserError(f"{folder / DENOISER / DESCRIPTION}: features.checkpoint is not in the folder ({BESIDE})")
        _check_features(folder)
        features = {key: value for key, value in features.items() if key not in ("_target_", "checkpoint")}
    for part in (AUTOENCODER, DENOISER):
        if ADAPTER in read_description(folder / part):
            raise UserError(f"{folder / part / DESCRIPTION}: a hub folder has whole models, not changes of others")
    for part, described in (
        (AUTOENCODER, read_description(folder / AUTOENCODER)["model"]),
        (DENOISER, read_description(folder / DENOISER)["model"]),
        (DENOISER, features),
    ):
        if _fetches(described):
            raise UserError(
                f"{folder / part / DESCRIPTION}: it asks for weights that are not in the folder; those of features are in "
                f"it if their checkpoint is {BESIDE}"
            )
    images = load_model(folder / AUTOENCODER, MotionAutoencoder)
    return images, load_model(folder / DENOISER, MotionDenoiser), manifest.sampling


def _fetches(value: Any) -> bool:
    """Whether a description asks for weights from elsewhere, at any depth: a wav2vec 2.0 model has some by default."""
    if isinstance(value, Mapping):
        return "checkpoint" in value or value.get("_target_") == _WAV2VEC2 or any(map(_fetches, value.values()))
    return isinstance(value, list) and any(map(_fetches, value))


def _check_features(folder: Path) -> None:
    """The network that config.json describes must not be larger than the weights beside it."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config, weights = (folder / name for name in FEATURE_FILES)
    try:
        with no_more_than(shapes_of(weights), str(config)), torch.device("meta"):
            Wav2Vec2Model(Wav2Vec2Config.from_json_file(config))
    except UserError:
        raise
    except Exception as error:  # transformers raises anything for wrong values
        reason = str(error).partition("\n")[0][:160]
        raise UserError(f"{config} describes no wav2vec 2.0 model ({type(error).__name__}: {reason})") from error


def write_folder(
    out: Path, autoencoder: str | Path, denoiser: str | Path, sampling: Mapping[str, Any] | None = None
) -> tuple[Artifact, Artifact]:
    """Write a hub folder, without its card, of two models (a model folder, run or checkpoint each); returns them.

    Descriptions lose places of this machine, and that of the denoiser says the `sampling` (None: the usual one). Raises
    UserError when the models do not match, or when `out` has other files in it.
    """
    require_own(out)
    images, motion = load_model(autoencoder, MotionAutoencoder), load_model(denoiser, MotionDenoiser)
    avatar = Avatar.of(images, motion)
    write_json(out / MANIFEST, {"format": "unfinished"})  # half a folder is none, and the same command continues
    features = motion.says("features")
    names = list(MODEL_FILES)
    if features["_target_"] == _WAV2VEC2:
        assert isinstance(avatar.features, Wav2Vec2Features)
        features = {**features, "checkpoint": BESIDE}
        _save_features(avatar.features, out)
        names += FEATURE_FILES
    plain = plain_sampling(sampling or usual_sampling(motion.info))
    images = _save(images, out / AUTOENCODER, {})
    motion = _save(motion, out / DENOISER, {"features": features, "sampling": plain})
    listed = {name: {"bytes": (out / name).stat().st_size, "sha256": sha256_of(out / name)} for name in names}
    write_json(out / MANIFEST, {"format": FORMAT, "sampling": plain, "files": listed})
    return images, motion


def require_own(out: Path) -> None:
    """Raise UserError for a folder with files in it, other than hidden ones, that is no hub folder."""
    files = [file for file in out.iterdir() if not file.name.startswith(".")] if out.is_dir() else []
    if files and not (out / MANIFEST).is_file():
        raise UserError(f"{out} is not empty, and no hub folder: choose another one")


def public(info: Mapping[str, Any]) -> dict[str, Any]:
    """A model's JSON without places of this machine: where its data lay, and arguments that are paths."""
    kept = {key: value for key, value in info.items() if key != "data"}
    if isinstance(recipe := kept.get("recipe"), Mapping):
        command = [word for word in recipe.get("command") or () if "/" not in word and "\\" not in word]
        kept["recipe"] = {**recipe, "command": command}
    return kept


def _save(artifact: Artifact, folder: Path, changed: Mapping[str, Any]) -> Artifact:
    info = {**public(artifact.info), **changed}
    if not artifact.is_stored:
        return replace(artifact, digest=save_model(folder, artifact.model, info["model"], info))
    if artifact.folder.resolve() != folder.resolve():
        with atomic_path(folder / WEIGHTS) as temporary:  # the very bytes, whose hash other models name
            shutil.copyfile(artifact.folder / WEIGHTS, temporary)
    write_json(folder / DESCRIPTION, info)
    return artifact


def _save_features(features: Wav2Vec2Features, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".features-") as place:
        features.model.save_pretrained(place, max_shard_size="1TB")
        for name in FEATURE_FILES:
            with atomic_path(out / name) as temporary:
                shutil.copyfile(Path(place) / Path(name).name, temporary)
