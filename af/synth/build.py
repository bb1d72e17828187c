"""Building shards of synthetic conversations: parts of a few sessions, in parallel, resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np

from af.clock import frames_to_seconds
from af.data.codecs import encode_audio, encode_video
from af.data.index import Index, build_index
from af.data.parts import Part, PartsReport, claim_output, run_parts
from af.data.schema import SPLITS, ClipMeta
from af.data.shards import write_shard
from af.errors import UserError
from af.synth.appearance import Appearance
from af.synth.face import FACE_SPEC
from af.synth.render import render
from af.synth.session import Session, SessionConfig, simulate
from af.synth.turns import ROLES, stream
from af.values import LARGEST_SEED, require_number

#: Changes whenever the same settings produce different bytes.
GENERATOR_VERSION: Final = 2
SETTINGS_NAME: Final = "synth.json"
_MEMBERS = dict[str, bytes | np.ndarray]


@dataclass(frozen=True)
class SynthSettings:
    """Settings of a synthetic data set."""

    train: Annotated[int, "sessions for training"] = 160
    val: Annotated[int, "sessions for validation"] = 16
    test: Annotated[int, "sessions held out for the numbers"] = 64
    size: Annotated[int, "pixels of the square videos"] = 64
    seed: Annotated[int, "another seed gives other people and conversations"] = 0
    session: SessionConfig = field(default_factory=SessionConfig)
    sessions_per_shard: int = 8

    def __post_init__(self) -> None:
        for name, least in (("train", 0), ("val", 0), ("test", 0), ("size", 16), ("sessions_per_shard", 1)):
            require_number(name, getattr(self, name), least=least, whole=True)
        require_number("seed", self.seed, least=0, most=LARGEST_SEED, whole=True)
        if self.train + self.val + self.test == 0:
            raise UserError("no sessions requested: train, val and test are all 0")
        if self.size % 2:
            raise UserError(f"size must be an even number of pixels, got {self.size}")

    def to_json(self) -> dict[str, Any]:
        """The settings and the generator's version, which together determine the bytes."""
        return json.loads(json.dumps({"generator": GENERATOR_VERSION, **asdict(self)}))

    def session_seed(self, split: str, number: int) -> tuple[int, int, int]:
        """Seed of a session and its people, so no two splits share an identity."""
        return (self.seed, SPLITS.index(split), number)


def appearance_of(extra: Mapping[str, Any], role: str) -> Appearance:
    """Appearance of the person `role` ("a" or "b") in a synthetic clip, from the `extra` of its description."""
    return Appearance.sample(stream(extra["seed"], "appearance", role))


def build(
    out: Path,
    settings: SynthSettings = SynthSettings(),
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> tuple[list[Index], PartsReport]:
    """Write `out`/{train,val,test}/*.tar with an index.json each; a stopped build keeps its finished shards.

    The bytes depend only on the settings, not on the number of workers. Raises `UserError` when `out` holds shards with
    other settings or from another origin, unless `overwrite`.
    """
    settings_file = Path(out) / SETTINGS_NAME
    try:
        claim_output(settings_file, settings.to_json(), " (--overwrite does)")
    except UserError:
        if not overwrite:
            raise
        settings_file.unlink(missing_ok=True)
        for split in SPLITS:
            shutil.rmtree(Path(out) / split, ignore_errors=True)
        claim_output(settings_file, settings.to_json())
    parts = []
    for split in SPLITS:
        count, step = getattr(settings, split), settings.sessions_per_shard
        for shard, first in enumerate(range(0, count, step)):
            numbers = range(first, min(first + step, count))
            path = Path(out) / split / f"{shard:06d}.tar"
            parts.append(Part(path, (settings, split, numbers)))
    report = run_parts(parts, write_part, workers=workers, description="synthetic conversations")
    return [build_index(Path(out) / split) for split in SPLITS if getattr(settings, split)], report


def write_part(path: Path, settings: SynthSettings, split: str, numbers: range) -> int:
    """Write one shard of sessions; returns their number."""
    samples, _ = write_shard(path, _samples(settings, split, numbers))
    return samples


def _samples(settings: SynthSettings, split: str, numbers: range) -> Iterator[tuple[str, ClipMeta, _MEMBERS]]:
    for number in numbers:
        seed = settings.session_seed(split, number)
        session = simulate(seed, settings.session)
        name = f"{settings.seed}-{split}-{number:05d}"
        meta = ClipMeta(
            dataset="synthetic",
            licence="CC0-1.0",
            consent="shows no real people",
            split=split,
            session=name,
            participants=(f"{name}-a", f"{name}-b"),
            frames=session.frames,
            image_size=settings.size,
            separation="synthetic",
            time_range_s=(0.0, frames_to_seconds(session.frames)),
            face_spec=FACE_SPEC,
            extra=_extra(session, seed),
        )
        members: _MEMBERS = {}
        for role in ROLES:
            side = session.side(role)
            members[f"{role}.mp4"] = encode_video(render(side.face, side.appearance, settings.size), preset="ultrafast")
            members[f"{role}.flac"] = encode_audio(side.audio)
            members[f"{role}.face.npy"] = side.face
        yield f"{number:06d}", meta, members


def _extra(session: Session, seed: tuple[int, ...]) -> dict[str, Any]:
    """Ground truth of a conversation: frames of phrases and of movements with their causes."""

    sides = {role: session.side(role) for role in ROLES}

    def events(kind: str) -> dict[str, list[dict[str, Any]]]:
        return {
            role: [
                {"start": e.start, "amplitude": round(e.amplitude, 4), "cause": e.cause} for e in getattr(side, kind)
            ]
            for role, side in sides.items()
        }

    return {
        "generator": GENERATOR_VERSION,
        "seed": list(seed),
        "expressiveness": round(session.expressiveness, 4),
        "phrases": {role: [list(p) for p in side.phrases] for role, side in sides.items()},
        "phrase_ends": {role: list(side.phrase_ends) for role, side in sides.items()},
        **{kind: events(kind) for kind in ("smiles", "tilts", "nods")},
    }
