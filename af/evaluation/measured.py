"""Measuring clips with trackers and networks, storing the results, and collecting them in the table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, UInt8

from af.errors import UserError
from af.evaluation.report import attempt
from af.evaluation.settings import Tools
from af.evaluation.syncnet import lip_crops, lse
from af.files import atomic_path
from af.ingest.landmarks import filled
from af.metrics import families
from af.metrics.base import ClipMetric
from af.metrics.likeness import csim
from af.metrics.lipsync import mouth_column, shifted
from af.metrics.records import ClipFeatures, EvaluationClip, MetricResult, Protocol
from af.types import FaceSpec

SIDES: Final = ("user", "true", "generated")
#: Longest gap without a face that is interpolated (0.4 s); longer ones make the clip unusable.
LONGEST_GAP: Final = 10
_FORMAT: Final = 7
_VOICES: Final = ("avatar_audio", "user_audio")


@dataclass(frozen=True)
class Measured:
    """A clip for the metrics, remarks on it, and its videos by side."""

    clip: EvaluationClip
    notes: tuple[str, ...] = ()
    videos: Mapping[str, Path] = field(default_factory=dict)

    def save(self, path: Path, signature: str, *, voices: bool = True) -> None:
        """Save the measurements."""
        clip, kept = self.clip, (*SIDES, *(_VOICES if voices else ()))
        arrays = {name: value for name in kept if (value := getattr(clip, name)) is not None}
        features = []
        for i, f in enumerate(clip.features):
            features.append([f.tag, f.kind, f.metric])
            arrays |= {f"{i}/true": f.true, f"{i}/generated": f.generated}
        face = None if clip.face is None else [clip.face.names, clip.face.expression, clip.face.tracker]
        header = [_FORMAT, signature, face, features, clip.values, clip.contents, self.notes]
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)

    def load(self, path: Path, signature: str) -> Measured | None:
        """This clip with measurements saved under the same signature; None without such a file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                known, made_by, face, features, values, contents, notes = json.loads(str(file["header"]))
                if (known, made_by) != (_FORMAT, signature):
                    return None
                arrays = {key: file[key] for key in file.files if key != "header"}
        except (ValueError, OSError, KeyError, EOFError):  # missing, or truncated by a full disk
            return None
        clip = replace(
            self.clip,
            **{name: arrays[name] for name in (*SIDES, *_VOICES) if name in arrays},
            face=None if face is None else FaceSpec(tuple(face[0]), face[1], face[2]),
            features=tuple(
                ClipFeatures(tag, kind, arrays[f"{i}/true"], arrays[f"{i}/generated"], metric)
                for i, (tag, kind, metric) in enumerate(features)
            ),
            values=values,
            contents=contents,
        )
        return replace(self, clip=clip, notes=tuple(notes))


def look(
    tools: Tools,
    side: str,
    frames: UInt8[np.ndarray, "T Y X 3"],
    voice: Float[np.ndarray, " S"] | None,
    portrait: UInt8[np.ndarray, "Y X 3"],
) -> tuple[list[Float[np.ndarray, "N F"]], dict[str, float]]:
    """Features by `tools.networks`, in order, and numbers for one side ("true" or "generated"). For the generated side
    SyncNet, shown its own crops if the tracker finds landmarks, also computes the null, with the voice shifted by half a
    clip.
    """
    features = [network(frames).astype(np.float32) for network in tools.networks.values()]
    values: dict[str, float] = {}
    if tools.embedder is not None:
        values[f"csim/{side}"] = float(np.nanmean(csim(tools.embedder(frames), tools.embedder(portrait[None]))))
    if tools.syncnet is not None and voice is not None:
        if tools.lip_tracker is not None:
            frames = lip_crops(frames, tools.lip_tracker.boxes(frames))
        found = lse(tools.syncnet, frames, voice)
        values |= {f"lse_d/{side}": found.distance, f"lse_c/{side}": found.confidence}
        values[f"lse_offset/{side}"] = float(found.offset)
        if side == "generated":
            null = lse(tools.syncnet, frames, shifted(voice))
            values |= {"lse_d/null": null.distance, "lse_c/null": null.confidence}
    return features, values


def paired_features(
    tools: Tools, true: Sequence[np.ndarray], generated: Sequence[np.ndarray]
) -> tuple[ClipFeatures, ...]:
    """Both sides' features with the names of `tools.networks`."""
    triples = zip(tools.networks.values(), true, generated, strict=True)
    return tuple(ClipFeatures(e.tag, e.kind, t, g, e.metric) for e, t, g in triples)


def fill_gaps(values: np.ndarray, name: object) -> tuple[np.ndarray, str | None]:
    """Tracker output with short gaps (no face, NaN) interpolated, and a note. Raises UserError for long gaps."""
    missing = ~np.isfinite(values).all(axis=1)
    if not missing.any():
        return values, None
    edges = np.flatnonzero(np.diff(np.concatenate([[0], missing.astype(int), [0]])))
    longest = int(np.diff(edges)[::2].max())
    if longest > LONGEST_GAP or missing.all():
        raise UserError(f"{name}: no face was found in {missing.sum()} of {len(values)} frames, {longest} in a row")
    return filled(values), f"{getattr(name, 'name', name)}: {missing.sum()} frames without a face interpolated"


class Table:
    """The table of our families and the user's `own`, filled clip by clip on every rank.

    A family that fails is noted in `failed` without affecting others.
    """

    def __init__(self, protocol: Protocol, own: Sequence[ClipMetric] = (), device: torch.device | str = "cpu") -> None:
        metrics = [*families(protocol), *own]
        # ranks exchange tensors on their device
        self._families = [(", ".join(m.needs) or type(m).__name__, m.to(device)) for m in metrics]
        for metric in own:
            metric.reset()  # those of the table before
        self._own = {*map(id, own)}
        self.failed: dict[str, str] = {}
        self.own_tags: set[str] = set()  # rows of the user's own metrics, after `result`

    def add(self, clip: EvaluationClip) -> None:
        """Count a clip."""
        for name, metric in self._families:
            if name not in self.failed:
                with attempt(name, self.failed):
                    metric.update(clip)

    def result(self) -> MetricResult:
        """Rows of the clips of all ranks. Every rank must call it, with the same families `failed`."""
        results = []
        for name, metric in self._families:
            if name not in self.failed:
                with attempt(name, self.failed):
                    results.append(metric.compute())
                    if id(metric) in self._own:
                        self.own_tags |= {row.tag for row in results[-1].rows}
        found = MetricResult.merged(results)
        found.absent |= self.failed
        return found


def hints(measured: Sequence[Measured], block: int | None, without_faces: str, without_images: str) -> dict[str, str]:
    """{first part of a tag: the setting or column that supplies what it needs}, where known."""
    found = {
        "fid_inception": "evaluation/networks=[inception], with the path of weights-inception-2015-12-05-6726825d.pth",
        "fvd_i3d": "evaluation/networks=[i3d], with the path of i3d_torchscript.pt and its sha256",
        "csim": "evaluation/embedder=torchscript, with the path of an identity network",
        "lse_d": "evaluation/syncnet=weights, with the path of syncnet_v2.model",
    }
    found = (
        dict.fromkeys(found, without_images) if without_images else {k: f"no weights: {v}" for k, v in found.items()}
    )
    found["lse_c"] = found["lse_d"]
    clips = [m.clip for m in measured if m.clip.face is not None]
    if not clips:
        return found | {tag: without_faces for metric in families() if metric.of_faces for tag in metric.needs}
    if all(c.avatar_audio is None for c in clips):
        found["lip"] = found["reaction_gain"] = "no clip has avatar audio (column audio)"
    elif all(c.user_audio is None or c.avatar_audio is None for c in clips):
        found["reaction_gain"] = "no clip has user audio (column user_audio, or sound in the user video)"
    if mouth_column(clips[0].face) is None:
        found["lip"] = found["mouth"] = "no parameter that opens the mouth (see evaluation.names)"
    if block is None:
        found["border_ratio"] = "the generator's block size is not given (evaluation.protocol.block)"
    return found


def remarks(measured: Sequence[Measured], result: MetricResult) -> dict[str, list[str]]:
    """Remarks by clip: its own notes, voices that only other clips have, and the metrics' remarks."""
    found: dict[str, list[str]] = {}

    def add(name: str, texts: Iterable[str]) -> None:
        if texts := list(texts):
            found.setdefault(name, []).extend(texts)

    for m in measured:
        add(m.clip.name, m.notes)
        for voice, rows in (("avatar_audio", "lip and reaction_gain"), ("user_audio", "reaction_gain")):
            if getattr(m.clip, voice) is None and any(getattr(other.clip, voice) is not None for other in measured):
                add(m.clip.name, [f"no {voice.replace('_', ' ')}: does not count in {rows}"])
    for name, texts in result.remarks.items():
        add(name, texts)
    return found
