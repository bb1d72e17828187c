"""Items of a plan to batches: torch datasets that read exactly what an item says, and the loaders around them."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.utils.data import DataLoader

from af.data import codecs
from af.data.dataset import BadSamples, Counted, PlanDataset
from af.data.disk_cache import scratch_folder
from af.data.frame_cache import FrameCache
from af.data.index import Index
from af.data.plan import ClipItem, OnceBatchSampler, PairItem, Plan, PlanBatchSampler, WindowItem
from af.data.schema import ROLES, other_role
from af.data.shards import ShardReader
from af.data.stores import Location
from af.errors import UserError
from af.specs import FaceSpec, FeatureSpec, MotionSpec, require_spec
from af.types import Clip, DyadBatch, PairBatch

__all__ = [
    "BadSamples",
    "ClipDataset",
    "Counted",
    "PairDataset",
    "ReadClip",
    "Regions",
    "WindowDataset",
    "pairs_to_float",
    "training_loader",
    "validation_loader",
]

_GIB: Final = 2**30

_CLIPS_HEARD: Final = 8192

#: In which frames nobody speaks: (voice (S,), number of frames T) -> (T,).
Listening = Callable[[Float32[np.ndarray, " S"], int], Bool[np.ndarray, " T"]]

#: Pixels to emphasise: (face parameters (P,), image size) -> weights (Y, X) for that frame.
Regions = Callable[[Float32[np.ndarray, " P"], int], Float32[np.ndarray, "Y X"]]


# ------------------------------------------------------------------------------------------------- pairs of frames


@dataclass(frozen=True)
class _Pair:
    frames: np.ndarray  # (2, Y, X, 3) uint8: source, driving
    weights: np.ndarray | None  # (ways, Y, X), of driving and, both ways, source
    faces: np.ndarray | None  # (ways, P)
    counted: bool


class PairDataset(PlanDataset[PairItem, PairBatch]):
    """Source and driving frame of one person of one clip, for the autoencoder.

    `cache_bytes` bounds a cache of decoded clips on disk in `cache_folder` (default: ``.cache`` beside the split
    folders). It is used when the whole split fits into it decoded (64-pixel clips), and makes reading about ten times
    faster; larger data is decoded from the nearest key frame each time. 0 turns it off.
    `regions` gives emphasis weights from the driving frame's face parameters, where the shards have them; `faces` puts
    the parameters themselves into the batch (all shards must have them then, `UserError` otherwise).
    `both_ways` doubles a batch: its second half are the same pairs with source and driving exchanged.
    `uint8` leaves images as bytes (a quarter of the traffic between processes): call `pairs_to_float` on the device.
    """

    def __init__(
        self,
        folder: Location | str | ShardReader,
        plan: Plan[PairItem] | None = None,
        *,
        cache_bytes: int = 8 * _GIB,
        cache_folder: Path | str | None = None,
        regions: Regions | None = None,
        faces: bool = False,
        both_ways: bool = False,
        uint8: bool = False,
        max_bad_rate: float = 0.01,
    ) -> None:
        reader = folder if isinstance(folder, ShardReader) else ShardReader(folder)
        super().__init__(reader, plan, max_bad_rate)
        index = reader.index
        blind = next((s for s in index.samples if "a.mp4" not in s.members), None)
        if blind is not None:
            raise UserError(
                f"{index.path(blind.shard).parent}: the shards hold no video; the autoencoder needs a.mp4 and b.mp4"
            )
        assert index.image_size is not None
        if faces and index.specs.get("face") is None:
            raise UserError(f"{index.folder}: the shards hold no face parameters to guide the coefficients by")
        self.image_size, self.regions, self.faces, self.uint8 = index.image_size, regions, faces, uint8
        self.both_ways = both_ways
        self.cache: FrameCache | None = None
        if 2 * index.frames * self.image_size**2 * 3 <= cache_bytes:
            try:
                self.cache = FrameCache(cache_folder or scratch_folder(index.folder.parent) / ".cache", cache_bytes)
            except UserError as error:
                if cache_folder is not None:
                    raise
                warnings.warn(f"{error}; reading goes on without it, slower", stacklevel=2)

    @property
    def face_spec(self) -> FaceSpec | None:
        """Layout of the face parameters that `regions` gets."""
        found = self.reader.index.specs.get("face")
        return None if found is None else FaceSpec.from_json(found)

    def _read(self, item: PairItem) -> _Pair:
        driving = (item.driving, item.source) if self.both_ways else (item.driving,)
        weights = faces = None
        field = f"{item.role}.face.npy"
        if (self.faces or self.regions is not None) and self.reader.has(item.sample, field):
            rows = [self.reader.read_rows(item.sample, field, frame, frame + 1)[0] for frame in driving]
            faces = np.stack(rows).astype(np.float32)
            if self.regions is not None:
                weights = np.stack([self.regions(face, self.image_size) for face in faces])
        return _Pair(self._frames(item), weights, faces, item.counted)

    def _frames(self, item: PairItem) -> np.ndarray:
        i, field, indices = item.sample, f"{item.role}.mp4", (item.source, item.driving)
        entry = self.reader.index.samples[i]
        try:
            if self.cache is None:
                frames = codecs.decode_frames(self.reader.open(i, field), indices)
            else:
                shape = (entry.frames, self.image_size, self.image_size)
                frames = self.cache.read(
                    self._name(i, field), indices, shape, lambda: codecs.decode_video(self.reader.read_bytes(i, field))
                )
        except (ValueError, IndexError) as error:
            raise self.reader.error(i, field, "bad_mp4", str(error)) from None
        if frames.shape[1:3] != (self.image_size, self.image_size):
            raise self.reader.error(i, field, "wrong_size", f"{frames.shape[1:3]}, expected {self.image_size}")
        return frames

    def _name(self, i: int, field: str) -> str:
        entry = self.reader.index.samples[i]
        shard = self.reader.index.shards[entry.shard]
        return hashlib.sha256(f"{shard.sha256}/{entry.key}/{field}".encode()).hexdigest()[:32]

    def _blank(self, item: PairItem) -> _Pair:
        spec = self.face_spec
        faces = None if spec is None else np.zeros((1 + self.both_ways, len(spec.names)), np.float32)
        return _Pair(np.zeros((2, self.image_size, self.image_size, 3), np.uint8), None, faces, False)

    def collate(self, samples: Sequence[_Pair]) -> PairBatch:
        """Stack pairs, channels first. Weights where any sample has them, 1 elsewhere."""
        frames = torch.from_numpy(np.stack([s.frames for s in samples], 1))  # (2, B, Y, X, 3)
        frames = frames.permute(0, 1, 4, 2, 3).contiguous()
        ways = 1 + self.both_ways
        weight = None
        if any(s.weights is not None for s in samples):
            ones = np.ones((ways, *frames.shape[3:]), np.float32)
            weight = _ways([ones if s.weights is None else s.weights for s in samples])[:, None]
        faces = [s.faces for s in samples if s.faces is not None] if self.faces else []
        face = _ways(faces) if faces else None
        source, driving = (torch.cat((frames, frames.flip(0)), 1) if self.both_ways else frames).unbind()
        batch = PairBatch(source, driving, weight, face)
        return batch if self.uint8 else pairs_to_float(batch)


def _ways(values: Sequence[np.ndarray]) -> Tensor:
    """(ways, ...) of each pair -> (ways · pairs, ...), one way after the other."""
    return torch.from_numpy(np.concatenate(np.stack(values, 1)))


def pairs_to_float(batch: PairBatch) -> PairBatch:
    """uint8 images 0..255 as float32 in [-1, 1], on whatever device they are."""

    def convert(images: Tensor) -> Tensor:
        return images.to(torch.float32).mul_(2 / 255).sub_(1)

    return PairBatch(convert(batch.source), convert(batch.driving), batch.weight, batch.face)


# ----------------------------------------------------------------------------------------- windows of conversations


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
        # a sum is finite only if every number is, and fifty times faster than looking at each
        if not torch.isfinite(out.sum()):
            raise reader.error(i, field, "not_finite", "holds NaN or infinity")
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


# ------------------------------------------------------------------------------------------------------ whole clips


@dataclass(frozen=True)
class ReadClip:
    """A whole sample, its number in the index, and whether it counts or only fills a batch."""

    sample: int
    clip: Clip
    counted: bool


class ClipDataset(PlanDataset[ClipItem, list[ReadClip]]):
    """Whole clips, for encoding and evaluation. `fields` as in `ShardReader.read`."""

    def __init__(
        self, folder: Location | str | ShardReader, fields: Sequence[str] | None = None, *, max_bad_rate: float = 0.01
    ) -> None:
        reader = folder if isinstance(folder, ShardReader) else ShardReader(folder)
        super().__init__(reader, None, max_bad_rate)
        self.fields = None if fields is None else tuple(fields)

    def _read(self, item: ClipItem) -> ReadClip:
        return ReadClip(item.sample, self.reader.read(item.sample, self.fields), item.counted)

    def _blank(self, item: ClipItem) -> None:
        return None

    def collate(self, samples: Sequence[ReadClip | None]) -> list[ReadClip]:
        """The clips that could be read, as they are: their lengths differ. May be empty."""
        return [s for s in samples if s is not None]


# --------------------------------------------------------------------------------------------------------- loaders


def _loader(
    dataset: PlanDataset, batches: Any, collate: Callable[[Any], Any], workers: int, seed: int, options: dict[str, Any]
) -> DataLoader:
    if workers > 0:
        options = {"prefetch_factor": 4, "persistent_workers": True, **options}
    # an own generator: the DataLoader would draw its workers' seed from the global one, and shift all draws after it
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers, generator=generator, **options
    )


def training_loader(
    dataset: PlanDataset,
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    workers: int = 0,
    **options: Any,
) -> DataLoader:
    """Endless batches of this rank from `dataset.plan`, from position `start` (samples taken by all ranks so far).

    The order does not depend on `workers`. `options` go to the DataLoader (pin_memory, multiprocessing_context, ...).
    """
    if dataset.plan is None:
        raise ValueError("a dataset for training needs a plan")
    batches = PlanBatchSampler(dataset.plan, batch_size, rank=rank, world=world, start=start)
    return _loader(dataset, batches, dataset.collate, workers, dataset.plan.seed, options)


def validation_loader(
    dataset: PlanDataset,
    items: Sequence[Any],
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    **options: Any,
) -> DataLoader:
    """Every item once over all ranks, as `Counted` batches, equally many on each rank (whole clips: as lists)."""
    batches = OnceBatchSampler(items, batch_size, rank=rank, world=world)
    collate = dataset.collate if isinstance(dataset, ClipDataset) else dataset.collate_counted
    return _loader(dataset, batches, collate, workers, 0, options)
