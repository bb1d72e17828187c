"""Windows of conversations as latents and features, for the denoiser."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from af.data.dataset import PlanDataset
from af.data.index import Index
from af.data.plan import Plan, WindowItem
from af.data.schema import ROLES, other_role
from af.data.shards import ShardReader
from af.data.stores import Location
from af.errors import UserError
from af.specs import FeatureSpec, MotionSpec, require_spec
from af.types import DyadBatch

_CLIPS_HEARD: Final = 8192

#: In which frames nobody speaks: (voice (S,), number of frames T) -> (T,).
Listening = Callable[[Float32[np.ndarray, " S"], int], Bool[np.ndarray, " T"]]


@dataclass(frozen=True)
class _Window:
    avatar_motion: Tensor
    avatar_audio: Tensor
    user_motion: Tensor
    user_audio: Tensor
    reference: Tensor
    valid: Tensor
    counted: bool
    loser: Tensor | None = None
    noise: Tensor | None = None
    listening: Tensor | None = None


class WindowDataset(PlanDataset[WindowItem, DyadBatch]):
    """Windows of `frames` frames for the denoiser, from shards with motion latents and audio features.

    Frames are `valid` where both faces were tracked; windows that reach past the clip are padded with zeros that are
    not. `losers` are shards of the same samples (by key) with the motion of losers; `noise_of` gives the noise of a
    person's motion from the sample's key, the role and the number of frames; `listening` says, from a clip's
    voice and its number of frames, in which of them its owner does not speak. Raises `UserError` when the shards lack
    latents or features, when they were made by others than `motion_spec` and `audio_spec` (None: any), or when losers
    are missing.
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
        noise_of: Callable[[str, str, int], Tensor] | None = None,
        listening: Listening | None = None,
        max_bad_rate: float = 0.01,
    ) -> None:
        reader = folder if isinstance(folder, ShardReader) else ShardReader(folder)
        super().__init__(reader, plan, max_bad_rate)
        self.frames, where = frames, str(reader.index.folder)
        motion, audio = reader.index.specs.get("motion"), reader.index.specs.get("audio")
        if motion is None or audio is None:
            missing = "motion latents" if motion is None else "audio features"
            raise UserError(f"{where}: the shards hold no {missing}; add them with: af encode")
        self.motion_spec, self.audio_spec = MotionSpec.from_json(motion), FeatureSpec.from_json(audio)
        remedy = "Encode the shards again with this model's autoencoder and features: af encode"
        if motion_spec is not None:
            require_spec(self.motion_spec, motion_spec, where=where, remedy=remedy)
        if audio_spec is not None:
            require_spec(self.audio_spec, audio_spec, where=where, remedy=remedy)
        self.listening, self._heard = listening, OrderedDict[int, dict[str, np.ndarray]]()
        self.noise_of = noise_of
        self.losers = None if losers is None else ShardReader(losers)
        if self.losers is not None:
            self._loser_of = self._matched(self.losers.index)

    def _matched(self, losers: Index) -> list[int]:
        """The number of every sample's loser."""
        found = MotionSpec.from_json(losers.specs.get("motion"))
        remedy = "Make them again from these shards: af losers"
        require_spec(found, self.motion_spec, where=str(losers.folder), remedy=remedy)
        numbers = {sample.key: n for n, sample in enumerate(losers.samples)}
        for sample in self.reader.index.samples:
            n = numbers.get(sample.key)
            if n is None or losers.samples[n].frames != sample.frames:
                what = "has no loser for" if n is None else "has a loser of another length for"
                raise UserError(f"{losers.folder} {what} {self.reader.index.folder}/{sample.key}. {remedy}")
        return [numbers[sample.key] for sample in self.reader.index.samples]

    def _read(self, item: WindowItem) -> _Window:
        i, avatar, user = item.sample, item.role, other_role(item.role)
        entry = self.reader.index.samples[i]
        start, stop = item.start, min(item.start + self.frames, entry.frames)
        valid = np.zeros(self.frames, bool)
        valid[: stop - start] = self._tracked(i, "a", start, stop) & self._tracked(i, "b", start, stop)
        motion_dim, audio_dim = self.motion_spec.dim, self.audio_spec.dim
        reference = self.reader.read_rows(i, f"{avatar}.motion.npy", item.reference, item.reference + 1)
        if reference.shape[1] != motion_dim:
            raise self.reader.error(i, f"{avatar}.motion.npy", "wrong_width", f"{reference.shape[1]}, not {motion_dim}")
        return _Window(
            avatar_motion=self._rows(i, f"{avatar}.motion.npy", start, stop, motion_dim),
            avatar_audio=self._rows(i, f"{avatar}.audio.npy", start, stop, audio_dim),
            user_motion=self._rows(i, f"{user}.motion.npy", start, stop, motion_dim),
            user_audio=self._rows(i, f"{user}.audio.npy", start, stop, audio_dim),
            reference=torch.from_numpy(reference[0]).float(),
            valid=torch.from_numpy(valid & item.counted),
            counted=item.counted,
            loser=self._loser(item, start, stop),
            noise=self._noise(item, start, stop),
            listening=self._listening(i, avatar, start, stop),
        )

    def _loser(self, item: WindowItem, start: int, stop: int) -> Tensor | None:
        if self.losers is None:
            return None
        number, field = self._loser_of[item.sample], f"{item.role}.motion.npy"
        return self._rows(number, field, start, stop, self.motion_spec.dim, self.losers)

    def _noise(self, item: WindowItem, start: int, stop: int) -> Tensor | None:
        if self.noise_of is None:
            return None
        entry = self.reader.index.samples[item.sample]
        rows = self.noise_of(entry.key, item.role, entry.frames)[start:stop]
        return torch.nn.functional.pad(rows, (0, 0, 0, self.frames - len(rows)))

    def _listening(self, i: int, avatar: str, start: int, stop: int) -> Tensor | None:
        if self.listening is None:
            return None
        if i not in self._heard:  # of whole clips: how loud speech is shows in them
            clip, frames = self.reader.read(i, {"audio"}), self.reader.index.samples[i].frames
            voices = {role: clip.person(role).audio for role in ROLES}
            self._heard[i] = {role: self.listening(v, frames) for role, v in voices.items() if v is not None}
            if len(self._heard) > _CLIPS_HEARD:
                self._heard.popitem(last=False)
        mask = np.zeros(self.frames, bool)
        mask[: stop - start] = self._heard[i][avatar][start:stop]
        return torch.from_numpy(mask)

    def _rows(self, i: int, field: str, start: int, stop: int, dim: int, reader: ShardReader | None = None) -> Tensor:
        reader = reader or self.reader
        rows = reader.read_rows(i, field, start, stop)
        if rows.shape[1] != dim:
            raise reader.error(i, field, "wrong_width", f"{rows.shape[1]} numbers a frame, not {dim}")
        out = torch.from_numpy(rows).float()
        return out if len(out) == self.frames else torch.nn.functional.pad(out, (0, 0, 0, self.frames - len(out)))

    def _tracked(self, i: int, role: str, start: int, stop: int) -> np.ndarray:
        mask = np.zeros(stop - start, bool)
        for first, last in self.reader.index.samples[i].valid[role]:
            mask[max(first - start, 0) : max(last - start, 0)] = True
        return mask

    def _blank(self, item: WindowItem) -> _Window:
        motion, audio = torch.zeros(self.frames, self.motion_spec.dim), torch.zeros(self.frames, self.audio_spec.dim)
        nothing = torch.zeros(self.frames, dtype=torch.bool)
        loser = None if self.losers is None else motion
        listening = None if self.listening is None else nothing
        noise = None if self.noise_of is None else self.noise_of("", item.role, self.frames)
        return _Window(motion, audio, motion, audio, motion[0], nothing, False, loser, noise, listening)

    def collate(self, samples: Sequence[_Window]) -> DyadBatch:
        """Stack windows."""
        columns = {f.name: [getattr(s, f.name) for s in samples] for f in fields(DyadBatch)}
        stacked: dict[str, Any] = {name: None if v[0] is None else torch.stack(v) for name, v in columns.items()}
        return DyadBatch(**stacked)
