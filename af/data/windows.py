"""Windows of conversations as motion latents and audio features, for the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from af.data.index import Index, SampleEntry
from af.data.loader import PlanDataset
from af.data.plan import Plan, WindowItem, kept
from af.data.schema import ROLES, mask_of, other_role
from af.data.shards import ShardReader
from af.data.stores import Location
from af.errors import UserError
from af.specs import FeatureSpec, MotionSpec, TeacherSpec, require_spec
from af.types import DyadBatch

_CLIPS_HEARD: Final = 8192

#: Frames without speech: (voice (S,), number of frames T) -> (T,).
Listening = Callable[[Float32[np.ndarray, " S"], int], Bool[np.ndarray, " T"]]


@dataclass(frozen=True)
class Window:
    """One window before batching: the fields of `DyadBatch` without B, in stored precision."""

    avatar_motion: Tensor
    avatar_audio: Tensor
    user_motion: Tensor
    user_audio: Tensor
    reference: Tensor
    valid: Tensor
    has_user: Tensor
    counted: bool
    loser: Tensor | None = None
    teacher: Tensor | None = None
    noise: Tensor | None = None
    listening: Tensor | None = None


class WindowDataset(PlanDataset[WindowItem, DyadBatch]):
    """Windows of `frames` frames for the denoiser, from shards with motion latents and audio features.

    Frames are `valid` where all faces were tracked; windows beyond the clip's end are padded with zeros, which are not
    valid. `losers` are shards of the same samples (by key) with the motion of losers, `teacher` with a teacher's
    motion, whose noise is `noise_of(spec, key, role, frames)`. `listening` computes the silent frames of a clip's
    voice. Raises `UserError` when the shards lack latents or features, when their specs differ from `motion_spec` and
    `audio_spec` (None: any), and when a sample lacks a loser or the teacher's motion. One-sided samples have no loser:
    their own motion stands for it, and does not count.
    """

    def __init__(
        self,
        folder: Location | str | ShardReader,
        plan: Plan[WindowItem] | None = None,
        *,
        frames: int = 50,
        motion_spec: MotionSpec | None = None,
        audio_spec: FeatureSpec | None = None,
        losers: Location | str | None = None,
        teacher: Location | str | None = None,
        noise_of: Callable[[TeacherSpec, str, str, int], Tensor] | None = None,
        listening: Listening | None = None,
        max_bad_rate: float = 0.01,
    ) -> None:
        reader = folder if isinstance(folder, ShardReader) else ShardReader(folder)
        super().__init__(reader, plan, max_bad_rate)
        self.frames = frames
        self.motion_spec, self.audio_spec = window_specs(reader.index, motion_spec, audio_spec)
        self.listening, self._heard = listening, dict[int, dict[str, np.ndarray]]()
        self.losers = self.teacher = None
        if losers is not None:
            self.losers = ShardReader(losers)
            remedy = "Make them again from these shards: af losers"
            self._loser_of = self._matched(self.losers.index, "loser", remedy, lambda sample: len(sample.roles) == 2)
            found = MotionSpec.from_json(self.losers.index.specs.get("motion"))
            require_spec(found, self.motion_spec, where=str(losers), remedy="Make them again: af losers")
        if teacher is not None:
            self.teacher, self._noise_of = ShardReader(teacher), noise_of
            remedy = "Make a teacher's motion from these shards: af teacher"
            described = self.teacher.index.specs.get("teacher")
            if described is None:
                raise UserError(f"{teacher} holds no motion of a teacher. {remedy}")
            self.teacher_spec = TeacherSpec.from_json(described)
            if any(getattr(self.teacher_spec, n) != getattr(self.motion_spec, n) for n in ("autoencoder", "dim")):
                raise UserError(f"{teacher} holds latents of another autoencoder than {reader.index.folder}. {remedy}")
            self._teacher_of = self._matched(self.teacher.index, "teacher", remedy, lambda sample: bool(sample.avatars))

    def _matched(self, made: Index, what: str, remedy: str, needed: Callable[[SampleEntry], bool]) -> dict[int, int]:
        """Map the samples for which it is `needed` to those with the same key in `made`."""
        numbers = {sample.key: n for n, sample in enumerate(made.samples)}
        wanted = {i: sample for i, sample in enumerate(self.reader.index.samples) if needed(sample)}
        for sample in wanted.values():
            n = numbers.get(sample.key)
            if n is None or made.samples[n].frames != sample.frames:
                has = f"has no {what} for" if n is None else f"has a {what} of another length for"
                raise UserError(f"{made.folder} {has} {self.reader.index.folder}/{sample.key}. {remedy}")
        return {i: numbers[sample.key] for i, sample in wanted.items()}

    def _read(self, item: WindowItem) -> Window:
        entry = self.reader.index.samples[item.sample]
        start, stop = item.start, min(item.start + self.frames, entry.frames)
        window = cut(item, entry, self.frames, partial(self._rows, item.sample), self.motion_spec, self.audio_spec)
        listening = self._listening(item.sample, item.role, start, stop)
        return replace(window, **self._made(item, start, stop), listening=listening)

    def _made(self, item: WindowItem, start: int, stop: int) -> dict[str, Any]:
        """The window's motion of loser and teacher, and the teacher's noise."""
        found, dim = {}, self.motion_spec.dim
        if self.losers is not None:
            number, reader = item.sample, self.reader
            if item.sample in self._loser_of:
                number, reader = self._loser_of[item.sample], self.losers
            rows = self._rows(number, f"{item.role}.motion.npy", start, stop, dim, reader)
            found["loser"] = padded(rows, self.frames)
        if self.teacher is not None:
            number, entry = self._teacher_of[item.sample], self.reader.index.samples[item.sample]
            rows = self._rows(number, f"{item.role}.teacher.npy", start, stop, dim, self.teacher)
            assert self._noise_of is not None
            noise = self._noise_of(self.teacher_spec, entry.key, item.role, entry.frames)[start:stop]
            found |= {"teacher": padded(rows, self.frames), "noise": padded(noise, self.frames)}
        return found

    def _listening(self, i: int, avatar: str, start: int, stop: int) -> Tensor | None:
        if self.listening is None:
            return None
        rule = self.listening

        def hear() -> dict[str, np.ndarray]:  # from whole clips, which show how loud speech is
            clip, frames = self.reader.read(i, {"audio"}), self.reader.index.samples[i].frames
            voices = {role: clip.person(role).audio for role in ROLES}
            return {role: rule(voice, frames) for role, voice in voices.items() if voice is not None}

        return padded(kept(self._heard, i, hear, _CLIPS_HEARD)[avatar][start:stop], self.frames)

    def _rows(
        self, i: int, field: str, start: int, stop: int, dim: int, reader: ShardReader | None = None
    ) -> np.ndarray:
        reader = reader or self.reader
        rows = reader.read_rows(i, field, start, stop)
        if rows.shape[1] != dim:
            raise reader.error(i, field, "wrong_width", f"{rows.shape[1]} numbers per frame, not {dim}")
        return rows

    def _blank(self, item: WindowItem) -> Window:
        motion, audio = torch.zeros(self.frames, self.motion_spec.dim), torch.zeros(self.frames, self.audio_spec.dim)
        nothing = torch.zeros(self.frames, dtype=torch.bool)
        made: dict[str, Tensor] = {} if self.losers is None else {"loser": motion}
        if self.listening is not None:
            made["listening"] = nothing
        if self.teacher is not None:
            made |= {"teacher": motion, "noise": torch.zeros(self.frames, self.teacher_spec.noise_dim)}
        return Window(motion, audio, motion, audio, motion[0], nothing, torch.tensor(False), counted=False, **made)

    def collate(self, samples: Sequence[Window]) -> DyadBatch:
        """Stack windows."""
        return stacked(samples)


def window_specs(
    index: Index, motion_spec: MotionSpec | None = None, audio_spec: FeatureSpec | None = None
) -> tuple[MotionSpec, FeatureSpec]:
    """Specs of the latents and features of `index`. Raises `UserError` when they are missing or differ from these."""
    where, motion, audio = str(index.folder), index.specs.get("motion"), index.specs.get("audio")
    if motion is None or audio is None:
        missing = "motion latents" if motion is None else "audio features"
        raise UserError(f"{where}: the shards hold no {missing}; add them with: af encode")
    found = MotionSpec.from_json(motion), FeatureSpec.from_json(audio)
    remedy = "Encode the shards again with this model's autoencoder and features: af encode"
    for spec, wanted in zip(found, (motion_spec, audio_spec), strict=True):
        if wanted is not None:
            require_spec(spec, wanted, where=where, remedy=remedy)
    return found


def cut(
    item: WindowItem,
    sample: SampleEntry,
    frames: int,
    rows: Callable[[str, int, int, int], np.ndarray],
    motion: MotionSpec,
    audio: FeatureSpec,
) -> Window:
    """The window `item`, of `frames` frames, from `sample`; `rows(field, start, stop, width)` reads its arrays.

    Values keep their stored precision (`stacked` converts to float32). In a one-sided sample the user is zeros, and
    `has_user` False.
    """
    start, stop = item.start, min(item.start + frames, sample.frames)
    valid = np.full(stop - start, item.counted)
    signals: dict[str, Tensor] = {}
    for name, role in (("avatar", item.role), ("user", other_role(item.role))):
        there = role in sample.roles
        if there:
            valid &= mask_of(sample.valid[role], start, stop)
        for signal, dim in (("motion", motion.dim), ("audio", audio.dim)):
            found = rows(f"{role}.{signal}.npy", start, stop, dim) if there else np.zeros((0, dim), np.float16)
            signals[f"{name}_{signal}"] = padded(found, frames)
    reference = rows(f"{item.role}.motion.npy", item.reference, item.reference + 1, motion.dim)[0]
    return Window(
        **signals,
        reference=torch.from_numpy(reference),
        valid=padded(valid, frames),
        has_user=torch.tensor(other_role(item.role) in sample.roles),
        counted=item.counted,
    )


def padded(rows: np.ndarray | Tensor, frames: int) -> Tensor:
    """`rows` padded with zeros (False) to `frames` frames."""
    found = torch.as_tensor(rows)
    missing = frames - len(found)
    return torch.cat((found, found.new_zeros(missing, *found.shape[1:]))) if missing else found


def stacked(windows: Sequence[Window]) -> DyadBatch:
    """A batch of windows as float32."""
    columns: dict[str, Tensor | None] = {}
    for f in fields(DyadBatch):
        values = [getattr(window, f.name) for window in windows]
        dtype = torch.bool if f.name in ("valid", "listening", "has_user") else torch.float32
        columns[f.name] = None if values[0] is None else torch.stack([value.to(dtype) for value in values])
    return DyadBatch(**columns)  # type: ignore[arg-type]
