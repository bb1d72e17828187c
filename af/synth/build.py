"""Synthetic conversations as shards: parts of a few sessions each, made by several processes, continued when stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from af.clock import frames_to_seconds
from af.data.codecs import encode_audio, encode_video
from af.data.index import Index
from af.data.parts import Part, PartsReport, run_parts
from af.data.schema import SPLITS, ClipMeta
from af.data.shards import build_index, write_shard
from af.errors import UserError
from af.files import write_json
from af.synth.appearance import Appearance
from af.synth.face import FACE_SPEC
from af.synth.render import render
from af.synth.session import Session, SessionConfig, simulate
from af.synth.turns import ROLES, stream

#: Changes whenever the same settings would give other bytes.
GENERATOR_VERSION: Final = 2
SETTINGS_NAME: Final = "synth.json"
_MEMBERS = dict[str, bytes | np.ndarray]


@dataclass(frozen=True)
class SynthSettings:
    """A set of synthetic conversations: sessions a split, image size in pixels, seed, how conversations go."""

    train: int = 160
    val: int = 16
    test: int = 64
    size: int = 64
    seed: int = 0
    session: SessionConfig = field(default_factory=SessionConfig)
    sessions_per_shard: int = 8

    def __post_init__(self) -> None:
        for name in SPLITS:
            if getattr(self, name) < 0:
                raise UserError(f"{name} is a number of sessions, got {getattr(self, name)}")
        if self.train + self.val + self.test == 0:
            raise UserError("no sessions asked for: train, val and test are all 0")
        if self.size < 16 or self.size % 2:
            raise UserError(f"size must be an even number of pixels from 16 on, got {self.size}")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, got {self.seed}")
        if self.sessions_per_shard < 1:
            raise UserError(f"sessions_per_shard must be positive, got {self.sessions_per_shard}")

    def to_json(self) -> dict[str, Any]:
        """The settings and the generator's version: what decides the bytes."""
        return json.loads(json.dumps({"generator": GENERATOR_VERSION, **asdict(self)}))

    def session_seed(self, split: str, number: int) -> tuple[int, int, int]:
        """Seed of a session; people are drawn from it, so no two splits share an identity."""
        return (self.seed, SPLITS.index(split), number)


def appearance_of(extra: Mapping[str, Any], role: str) -> Appearance:
    """Who plays `role` ("a" or "b") in a synthetic clip, from the `extra` of its description."""
    return Appearance.sample(stream(extra["seed"], "appearance", role))


def build(
    out: Path,
    settings: SynthSettings = SynthSettings(),
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> tuple[list[Index], PartsReport]:
    """Write `out`/{train,val,test}/*.tar with index.json each; shards that exist are kept, so a stopped build goes on.

    The same settings give the same bytes, whatever the number of workers. Raises `UserError` when `out` holds shards of
    other settings or of another origin, unless `overwrite`.
    """
    out = Path(out)
    _claim(out, settings, overwrite)
    parts = []
    for split in SPLITS:
        count, step = getattr(settings, split), settings.sessions_per_shard
        for shard, first in enumerate(range(0, count, step)):
            numbers = range(first, min(first + step, count))
            path = out / split / f"{shard:06d}.tar"
            parts.append(Part(path, (settings, split, numbers)))
    report = run_parts(parts, write_part, workers=workers, description="synthetic conversations")
    return [build_index(out / split) for split in SPLITS if getattr(settings, split)], report


def _claim(out: Path, settings: SynthSettings, overwrite: bool) -> None:
    """Make sure that what is in `out` belongs to these settings, or is deleted."""
    path = out / SETTINGS_NAME
    shards = [tar for split in SPLITS for tar in sorted((out / split).glob("*.tar"))]
    known: Any = None
    if path.is_file():
        try:
            known = json.loads(path.read_text("utf-8"))
        except ValueError:
            known = "unreadable"
    wanted = settings.to_json()
    if known == wanted:
        return
    if shards or known is not None:
        if not overwrite:
            remedy = "choose another folder with --out, or --overwrite to delete it"
            if not isinstance(known, dict):
                raise UserError(f"{out} holds shards that are not from `af synth` ({SETTINGS_NAME} missing); {remedy}")
            raise UserError(f"{out} holds synthetic conversations with other settings ({_differences(known, wanted)}); {remedy}")  # fmt: skip
        path.unlink(missing_ok=True)
        for tar in shards:
            tar.unlink()
        for split in SPLITS:
            (out / split / "index.json").unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def _differences(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    def flat(values: Mapping[str, Any]) -> dict[str, Any]:
        return {**{k: v for k, v in values.items() if k != "session"}, **values.get("session", {})}

    a, b = flat(known), flat(wanted)
    names = [name for name in b if a.get(name) != b[name]] + [name for name in a if name not in b]
    return ", ".join(f"{name}: {a.get(name)} there, {b.get(name)} asked for" for name in names)


def write_part(path: Path, settings: SynthSettings, split: str, numbers: range) -> int:
    """Write one shard of sessions; returns how many."""
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
    """What is known about a conversation: frames of phrases and of movements with their causes."""

    def by_role(of: Any) -> dict[str, Any]:
        return {role: of(session.side(role)) for role in ROLES}

    def events(kind: str) -> dict[str, Any]:
        return by_role(
            lambda side: [
                {"start": e.start, "amplitude": round(e.amplitude, 4), "cause": e.cause} for e in getattr(side, kind)
            ]
        )

    return {
        "generator": GENERATOR_VERSION,
        "seed": list(seed),
        "expressiveness": round(session.expressiveness, 4),
        "phrases": by_role(lambda side: [list(p) for p in side.phrases]),
        "phrase_ends": by_role(lambda side: list(side.phrase_ends)),
        **{kind: events(kind) for kind in ("smiles", "tilts", "nods")},
    }
