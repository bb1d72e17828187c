"""Windows of conversations as latents and features, for the denoiser."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from af.data.dataset import PlanDataset
from af.data.index import Index, SampleEntry
from af.data.plan import Plan, WindowItem
from af.data.schema import ROLES, Spans, other_role
from af.data.shards import ShardReader
from af.data.stores import Location
from af.errors import UserError
from af.specs import FeatureSpec, MotionSpec, require_spec
from af.types import DyadBatch

_CLIPS_HEARD: Final = 8192

#: In which frames nobody speaks: (voice (S,), number of frames T) -> (T,).
Listening = Callable[[Float32[np.ndarray, " S"], int], Bool[np.ndarray, " T"]]


@dataclass(frozen=True)
class Window:
    """One window before batching: the fields of `DyadBatch` without B, numbers as they are stored."""

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
        self.frames = frames
        self.motion_spec, self.audio_spec = window_specs(reader.index, motion_spec, audio_spec)
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

    def _read(self, item: WindowItem) -> Window:
        entry = self.reader.index.samples[item.sample]
        start, stop = item.start, min(item.start + self.frames, entry.frames)
        window = cut(item, entry, self.frames, partial(self._rows, item.sample), self.motion_spec, self.audio_spec)
        return replace(
            window,
            loser=self._loser(item, start, stop),
            noise=self._noise(item, start, stop),
            listening=self._listening(item.sample, item.role, start, stop),
        )

    def _loser(self, item: WindowItem, start: int, stop: int) -> Tensor | None:
        if self.losers is None:
            return None
        number, field = self._loser_of[item.sample], f"{item.role}.motion.npy"
        return padded(self._rows(number, field, start, stop, self.motion_spec.dim, self.losers), self.frames)

    def _noise(self, item: WindowItem, start: int, stop: int) -> Tensor | None:
        if self.noise_of is None:
            return None
        entry = self.reader.index.samples[item.sample]
        return padded(self.noise_of(entry.key, item.role, entry.frames)[start:stop], self.frames)

    def _listening(self, i: int, avatar: str, start: int, stop: int) -> Tensor | None:
        if self.listening is None:
            return None
        if i not in self._heard:  # of whole clips: how loud speech is shows in them
            clip, frames = self.reader.read(i, {"audio"}), self.reader.index.samples[i].frames
            voices = {role: clip.person(role).audio for role in ROLES}
            self._heard[i] = {role: self.listening(v, frames) for role, v in voices.items() if v is not None}
            if len(self._heard) > _CLIPS_HEARD:
                self._heard.popitem(last=False)
        return padded(self._heard[i][avatar][start:stop], self.frames)

    def _rows(
        self, i: int, field: str, start: int, stop: int, dim: int, reader: ShardReader | None = None
    ) -> np.ndarray:
        reader = reader or self.reader
        rows = reader.read_rows(i, field, start, stop)
        if rows.shape[1] != dim:
            raise reader.error(i, field, "wrong_width", f"{rows.shape[1]} numbers a frame, not {dim}")
        return rows

    def _blank(self, item: WindowItem) -> Window:
        motion, audio = torch.zeros(self.frames, self.motion_spec.dim), torch.zeros(self.frames, self.audio_spec.dim)
        nothing = torch.zeros(self.frames, dtype=torch.bool)
        loser = None if self.losers is None else motion
        listening = None if self.listening is None else nothing
        noise = None if self.noise_of is None else self.noise_of("", item.role, self.frames)
        return Window(motion, audio, motion, audio, motion[0], nothing, False, loser, noise, listening)

    def collate(self, samples: Sequence[Window]) -> DyadBatch:
        """Stack windows."""
        return stacked(samples)


def window_specs(
    index: Index, motion_spec: MotionSpec | None = None, audio_spec: FeatureSpec | None = None
) -> tuple[MotionSpec, FeatureSpec]:
    """How the latents and features of `index` were made. Raises `UserError` when it has none, or others than these."""
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
    """The window of `frames` frames that `item` says, of one `sample`; `rows(field, start, stop, width)` reads its arrays.

    Numbers stay as they are stored (`stacked` makes float32 of them). Of a one-sided sample the user is zeros.
    """
    start, stop = item.start, min(item.start + frames, sample.frames)
    valid = np.full(stop - start, item.counted)
    signals: dict[str, Tensor] = {}
    for name, role in (("avatar", item.role), ("user", other_role(item.role))):
        there = role in sample.roles
        if there:
            valid &= _tracked(sample.valid[role], start, stop)
        for signal, dim in (("motion", motion.dim), ("audio", audio.dim)):
            found = rows(f"{role}.{signal}.npy", start, stop, dim) if there else np.zeros((0, dim), np.float16)
            signals[f"{name}_{signal}"] = padded(found, frames)
    reference = rows(f"{item.role}.motion.npy", item.reference, item.reference + 1, motion.dim)[0]
    return Window(**signals, reference=torch.from_numpy(reference), valid=padded(valid, frames), counted=item.counted)


def padded(rows: np.ndarray | Tensor, frames: int) -> Tensor:
    """`rows` and zeros (False) behind them, to `frames` frames."""
    found = torch.as_tensor(rows)
    missing = frames - len(found)
    return torch.cat((found, found.new_zeros(missing, *found.shape[1:]))) if missing else found


def stacked(windows: Sequence[Window]) -> DyadBatch:
    """A batch of windows, numbers as float32."""
    columns: dict[str, Tensor | None] = {}
    for f in fields(DyadBatch):
        values = [getattr(window, f.name) for window in windows]
        dtype = torch.bool if f.name in ("valid", "listening") else torch.float32
        columns[f.name] = None if values[0] is None else torch.stack([value.to(dtype) for value in values])
    return DyadBatch(**columns)  # type: ignore[arg-type]


def _tracked(runs: Spans, start: int, stop: int) -> np.ndarray:
    mask = np.zeros(stop - start, bool)
    for first, last in runs:
        mask[max(first - start, 0) : max(last - start, 0)] = True
    return mask
