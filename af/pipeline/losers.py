"""Losers for the preference stage: motion of the same avatars in the same conversations, but worse, into shards.

One output shard an input shard, in parts that can be stopped (as `af encode`); a sample keeps its key and holds the
motion of both people, each as the avatar, and in its json how it was made.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from af.data.checks import ShardError, check_values
from af.data.index import Index, build_index
from af.data.parts import WHOLE, Part, Share, claim_output, run_job
from af.data.plan import mix
from af.data.schema import ROLES, ClipMeta, other_role
from af.data.shards import ShardReader, split_folders, write_shard
from af.data.stores import Location, absolute
from af.errors import UserError
from af.files import write_text
from af.forcing.noise import clip_noise
from af.forcing.rollout import Guidance
from af.models.artifact import Artifact, find_model, load_as
from af.models.denoiser import MotionDenoiser
from af.pipeline.encode import require_specs, spec_of
from af.pipeline.rolling import RolloutSettings, Turn, roll_out
from af.specs import MotionSpec, is_int

SETTINGS_NAME: Final = "losers.json"
_MAX_DIM: Final = 2**16
SOURCES: Final = ("drop_user", "talking", "weak", "shuffled", "guided", "file")


@dataclass(frozen=True)
class LoserSettings:
    """How losers are made: by the denoiser itself without the user's signals (`drop_user`), by another one trained on the
    avatar's audio alone (`talking`), with a weakened user (`weak`), with the user of another conversation (`shuffled`), or
    from arrays (`file`). `guided` is the denoiser at its best, the teacher of a distillation. `user` is the guidance
    scale of the user's signals: 0 < user < 1 for `weak`, above 0 for `shuffled` and `guided`, 0 for the others.
    """

    source: str
    audio: float = 2.0
    user: float = 0.0
    steps: int = 8
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UserError(f"--source: unknown source {self.source!r}; allowed: {', '.join(SOURCES)}")
        above = (self.user > 0, "above 0")
        allowed = {"weak": (0 < self.user < 1, "between 0 and 1"), "shuffled": above, "guided": above}
        fine, expected = allowed.get(self.source, (self.user == 0, "0"))
        if not fine:
            raise UserError(f"--user: {self.user} with --source {self.source}; it must be {expected}")
        if self.batch < 1:
            raise UserError(f"--batch: {self.batch}; it must be at least 1")


def make_losers(
    source: Location,
    out: Path,
    model: Path,
    settings: LoserSettings,
    *,
    splits: Sequence[str] = ("train", "val"),
    device: torch.device | str = "cpu",
    workers: int = 1,
    share: Share = WHOLE,
) -> list[Index]:
    """Write losers for every sample of the encoded shards in `source`; returns the new indices (none while other shares
    are not done).

    `model` is the model folder of a denoiser (or its run, or a checkpoint), or the folder of arrays with the source `file`. Shards that exist,
    made from the same ones (and arrays), are skipped: a stopped job goes on, and what has changed is made again. Raises
    UserError when `out` was made with other settings or holds other shards, or the denoiser knows other latents or
    features.
    """
    sources = [index for index in map(Index.load, split_folders(source)) if index.split in splits]
    if not sources:
        raise UserError(f"{source} has none of the splits {', '.join(splits)}")
    digest = noise_dim = None
    place = Path(model)
    if settings.source != "file":
        place = find_model(model)  # once: a run that is trained meanwhile comes to have newer checkpoints
        denoiser, artifact = _denoiser(str(place), str(device))
        digest, noise_dim = artifact.digest, denoiser.dim
        for index in sources:
            require_specs(index, artifact)
    made_with = {
        "data": absolute(source),
        "model": digest or str(Path(model).resolve()),
        "noise_dim": noise_dim,
        **asdict(settings),
    }
    claim_output(out / SETTINGS_NAME, made_with)
    chosen = json.dumps(asdict(settings))
    parts = [
        Part(
            out / index.split / shard.name,
            (str(index.folder), number, str(place), chosen, str(device)),
            shard.sha256 if settings.source != "file" else _digest_of_arrays(index, number, Path(model)),
        )
        for index in sources
        for number, shard in enumerate(index.shards)
    ]

    def finish() -> list[Index]:
        return [build_index(out / index.split) for index in sources]

    return run_job(parts, loser_shard, finish, share=share, workers=workers, description="losers") or []


def loser_shard(path: Path, folder: str, shard: int, model: str, settings: str, device: str) -> int:
    """Write one shard of losers; returns its number of samples. Runs in worker processes, which keep their model."""
    made = LoserSettings(**json.loads(settings))
    reader = ShardReader(folder)
    numbers = [i for i, entry in enumerate(reader.index.samples) if entry.shard == shard]
    turns = [(i, role) for i in numbers for role in ROLES]
    if made.source == "file":
        motions = {turn: _from_file(reader, *turn, Path(model)) for turn in turns}
    else:
        motions = _rolled_out(reader, turns, _denoiser(model, device)[0], made)

    def samples() -> Iterator[tuple[str, ClipMeta, Mapping[str, Any]]]:
        _, motion_spec = spec_of(reader.index)
        for i in numbers:
            provenance: dict[str, Any] = {**asdict(made), "model": model}
            if made.source == "shuffled":
                provenance["user_of"] = {
                    role: reader.index.samples[_stranger(reader.index, i, made.seed)].key for role in ROLES
                }
            meta = replace(
                reader.read_meta(i),
                motion_spec=motion_spec,
                audio_spec=None,
                face_spec=None,
                crop_boxes={},
                extra={"loser": provenance},
            )
            yield reader.index.samples[i].key, meta, {f"{role}.motion.npy": motions[i, role] for role in ROLES}

    return write_shard(path, samples())[0]


def _rolled_out(
    reader: ShardReader, turns: Sequence[tuple[int, str]], denoiser: MotionDenoiser, settings: LoserSettings
) -> dict[tuple[int, str], np.ndarray]:
    """Motion of every (sample, avatar's role), rolled out in batches of clips of one length."""
    by_length: dict[int, list[tuple[int, str]]] = {}
    for turn in turns:
        by_length.setdefault(reader.index.samples[turn[0]].frames, []).append(turn)
    motions: dict[tuple[int, str], np.ndarray] = {}
    how = RolloutSettings(settings.steps, Guidance(audio=settings.audio, user=settings.user), settings.seed)
    for group in by_length.values():
        for start in range(0, len(group), settings.batch):
            chosen = group[start : start + settings.batch]
            made = roll_out(denoiser, [_turn(reader, i, role, settings) for i, role in chosen], how)
            motions.update(zip(chosen, made.cpu().numpy(), strict=True))
    return motions


def _turn(reader: ShardReader, i: int, role: str, settings: LoserSettings) -> Turn:
    entry = reader.index.samples[i]
    partner = _stranger(reader.index, i, settings.seed) if settings.source == "shuffled" else i

    def signal(j: int, whose: str, part: str) -> np.ndarray:
        rows = reader.read_rows(j, f"{whose}.{part}.npy", 0, reader.index.samples[j].frames)
        return rows[np.arange(entry.frames) % len(rows)]  # a stranger's clip is cut, or begins again

    user = other_role(role)
    frame = next((first for first, _ in entry.valid[role]), 0)
    return Turn(
        turn_name(entry.key, role),
        avatar_audio=signal(i, role, "audio"),
        user_audio=signal(partner, user, "audio"),
        user_motion=signal(partner, user, "motion"),
        reference=reader.read_rows(i, f"{role}.motion.npy", frame, frame + 1)[0],
    )


def turn_name(key: str, role: str) -> str:
    """What the noise of a person's motion belongs to."""
    return f"{key}/{role}"


def carry_settings(root: Location, out: Path) -> None:
    """What is known about the motions of `root`, for the same ones in `out`."""
    if (root / SETTINGS_NAME).is_file():
        write_text(out / SETTINGS_NAME, (root / SETTINGS_NAME).read_bytes().decode())


def teacher_noise(folder: Location) -> Callable[[str, str, int], Float[Tensor, "T D"]]:
    """(key, role, frames) -> the noise from which the motions of a folder of `guided` ones were made.

    Raises UserError when the folder holds others.
    """
    file = folder / SETTINGS_NAME
    if not file.is_file():
        raise UserError(f"{file} is missing: a distillation needs motions made by af losers --source guided")
    try:
        settings = json.loads(file.read_bytes())
        source, seed, dim = settings["source"], settings["seed"], settings["noise_dim"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} cannot be read as what af losers writes ({error!r}); make the motions again"
        ) from error
    if source != "guided":
        raise UserError(f"{file}: motions of source {source}; make a teacher's with: af losers --source guided")
    if not is_int(seed) or not is_int(dim) or not 0 < dim <= _MAX_DIM:
        raise UserError(
            f"{file}: seed {seed!r} and noise_dim {dim!r} are not what af losers writes; make the motions again"
        )
    return partial(_noise_of, seed, dim)


def _noise_of(seed: int, dim: int, key: str, role: str, frames: int) -> Float[Tensor, "T D"]:
    return clip_noise(turn_name(key, role), seed, frames, dim)


def _stranger(index: Index, i: int, seed: int) -> int:
    """Another sample, of another session and without any of the same people where there is one; by hash of the key."""
    own = index.samples[i]

    def nearness(j: int) -> int:
        other = index.samples[j]
        return 2 * (other.session == own.session) + bool(set(other.participants) & set(own.participants))

    others = [j for j in range(len(index.samples)) if j != i]
    if not others:
        raise UserError(f"{index.folder}: --source shuffled needs at least two conversations in a split")
    least = min(map(nearness, others))
    strangers = [j for j in others if nearness(j) == least]
    return strangers[mix(seed, zlib.crc32(own.key.encode())) % len(strangers)]


def _from_file(reader: ShardReader, i: int, role: str, folder: Path) -> Float[np.ndarray, "T D"]:
    entry = reader.index.samples[i]
    file = _array_file(folder, entry.key, role)
    try:
        array = np.asarray(np.load(file, allow_pickle=False), np.float32)
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise UserError(f"{file} cannot be read as an array of numbers ({error}); save it with numpy.save") from error
    dim = MotionSpec.from_json(reader.index.specs["motion"]).dim
    if array.shape != (entry.frames, dim):
        raise UserError(f"{file}: shape {array.shape}, expected {(entry.frames, dim)} (frames x motion latent)")
    check_values(array, partial(ShardError, str(file), ""))
    return array


def _array_file(folder: Path, key: str, role: str) -> Path:
    file = folder / f"{key}.{role}.npy"
    if not file.is_file():
        raise UserError(f"{file} is missing: --source file needs KEY.a.npy and KEY.b.npy for every sample")
    return file


def _digest_of_arrays(index: Index, shard: int, folder: Path) -> str:
    """Of a shard and the arrays for its samples."""
    digest = hashlib.sha256(index.shards[shard].sha256.encode())
    for entry in index.samples:
        if entry.shard == shard:
            for role in ROLES:
                digest.update(_array_file(folder, entry.key, role).read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _denoiser(folder: str, device: str) -> tuple[MotionDenoiser, Artifact]:
    denoiser, artifact = load_as(folder, MotionDenoiser)
    return denoiser.to(device), artifact
