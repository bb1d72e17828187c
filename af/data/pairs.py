"""Pairs of frames of one person, for the autoencoder."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from af.data import codecs
from af.data.disk_cache import FrameCache, scratch_folder
from af.data.loader import PlanDataset
from af.data.plan import PairItem, Plan
from af.data.shards import ShardReader
from af.data.stores import Location
from af.data.vary import Vary
from af.errors import UserError
from af.images import to_float
from af.specs import FaceSpec
from af.types import PairBatch

_GIB: Final = 2**30

#: Emphasis of pixels: (face parameters (P,) or None, image size) -> weights (Y, X); None: all equal.
Regions = Callable[[Float32[np.ndarray, " P"] | None, int], Float32[np.ndarray, "Y X"] | None]


@dataclass(frozen=True)
class _Pair:
    frames: np.ndarray  # (2, Y, X, 3) uint8: source, driving
    weights: np.ndarray | None  # (ways, Y, X), of driving and, both ways, source
    faces: np.ndarray | None  # (ways, P)
    counted: bool


class PairDataset(PlanDataset[PairItem, PairBatch]):
    """Source and driving frames of one person in one clip, for the autoencoder.

    `cache_bytes` bounds a disk cache of decoded clips in `cache_folder` (default: ``.cache`` beside the split folders;
    0 turns it off). It makes reading about ten times faster and is used if the whole decoded split fits (64-pixel
    clips); otherwise frames are decoded from the nearest key frame. `regions` computes emphasis weights, from the
    driving frame's face parameters if available; `faces` adds the parameters to the batch, or groups of them
    (`FaceSpec.grouping`; `UserError` if shards lack them). `both_ways` doubles a batch by exchanging source and
    driving. `image_size` shrinks frames to a half, a quarter … of theirs; `vary` changes pairs at random, by `seed` and
    position. Of several driving frames in the plan the one whose expression differs most from the source's is taken,
    which takes face parameters. `uint8` keeps images as bytes, a quarter of the traffic between processes: call
    `pairs_to_float` on the device.
    """

    def __init__(
        self,
        folder: Location | str | ShardReader,
        plan: Plan[PairItem] | None = None,
        *,
        cache_bytes: int = 8 * _GIB,
        cache_folder: Path | str | None = None,
        regions: Regions | None = None,
        faces: bool | Mapping[str, Sequence[str]] = False,
        both_ways: bool = False,
        uint8: bool = False,
        image_size: int | None = None,
        vary: Vary | None = None,
        seed: int = 0,
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
            raise UserError(f"{index.folder}: the shards hold no face parameters to guide the coefficients")
        self.stored_size, self.regions, self.faces, self.uint8 = index.image_size, regions, bool(faces), uint8
        self.grouping: Float[np.ndarray, "P G"] | None = None
        if isinstance(faces, Mapping) and self.face_spec is not None:
            self.grouping = self.face_spec.grouping(faces)
        self.both_ways, self.vary, self.seed = both_ways, vary, seed
        if vary is not None and self.face_spec is not None and (self.faces or regions is not None):
            vary.require(self.face_spec, str(index.folder))
        self.image_size = index.image_size if image_size is None else image_size
        if self.stored_size % self.image_size:
            raise UserError(
                f"data.image_size={self.image_size} does not divide the {self.stored_size} px of {index.folder}"
            )
        self.cache: FrameCache | None = None
        if 2 * index.frames * self.stored_size**2 * 3 <= cache_bytes:
            try:
                self.cache = FrameCache(cache_folder or scratch_folder(index.folder.parent) / ".cache", cache_bytes)
            except UserError as error:
                if cache_folder is not None:
                    raise
                warnings.warn(f"{error}; reading continues without it, more slowly", stacklevel=2)

    @property
    def face_spec(self) -> FaceSpec | None:
        """Layout of the face parameters passed to `regions`."""
        found = self.reader.index.specs.get("face")
        return None if found is None else FaceSpec.from_json(found)

    def _read(self, item: PairItem) -> _Pair:
        item = replace(item, driving=self._farthest(item)) if item.others else item
        driving = (item.driving, item.source) if self.both_ways else (item.driving,)
        weights = faces = None
        if (self.faces or self.regions is not None) and self.reader.has(item.sample, f"{item.role}.face.npy"):
            faces = self._faces(item, driving)
        frames = self._frames(item)
        if self.vary is not None:
            rng = np.random.default_rng((self.seed, item.position))
            frames, faces = self.vary(frames, faces, self.face_spec, rng)
        if self.regions is not None:
            shown = [None] * len(driving) if faces is None else faces
            masks = [mask for face in shown if (mask := self.regions(face, self.image_size)) is not None]
            weights = np.stack(masks) if len(masks) == len(shown) else None
        if self.grouping is not None and faces is not None:
            faces = (faces @ self.grouping).astype(np.float32)
        return _Pair(frames, weights, faces, item.counted)

    def _faces(self, item: PairItem, frames: Sequence[int]) -> Float32[np.ndarray, "N P"]:
        field = f"{item.role}.face.npy"
        rows = [self.reader.read_rows(item.sample, field, frame, frame + 1)[0] for frame in frames]
        return np.stack(rows).astype(np.float32)

    def _farthest(self, item: PairItem) -> int:
        spec, choices = self.face_spec, (item.driving, *item.others)
        if spec is None:
            raise UserError(f"{self.reader.index.folder}: data.choices needs face parameters, which the shards lack")
        source, *driving = self._faces(item, (item.source, *choices))[:, : spec.expression]
        return choices[int(np.square(np.stack(driving) - source).sum(1).argmax())]

    def _frames(self, item: PairItem) -> np.ndarray:
        i, field, indices = item.sample, f"{item.role}.mp4", (item.source, item.driving)
        entry = self.reader.index.samples[i]
        try:
            if self.cache is None:
                frames = codecs.decode_frames(self.reader.open(i, field), indices)
            else:
                shape = (entry.frames, self.stored_size, self.stored_size)
                frames = self.cache.read(
                    self._name(i, field), indices, shape, lambda: codecs.decode_video(self.reader.read_bytes(i, field))
                )
        except (ValueError, IndexError) as error:
            raise self.reader.error(i, field, "bad_mp4", str(error)) from None
        if frames.shape[1:3] != (self.stored_size, self.stored_size):
            raise self.reader.error(i, field, "wrong_size", f"{frames.shape[1:3]}, expected {self.stored_size}")
        shrink = self.stored_size // self.image_size
        if shrink == 1:
            return frames
        cells = frames.reshape(len(frames), self.image_size, shrink, self.image_size, shrink, 3)
        return np.rint(cells.mean((2, 4), dtype=np.float32)).astype(np.uint8)

    def _name(self, i: int, field: str) -> str:
        entry = self.reader.index.samples[i]
        shard = self.reader.index.shards[entry.shard]
        return hashlib.sha256(f"{shard.sha256}/{entry.key}/{field}".encode()).hexdigest()[:32]

    def _blank(self, item: PairItem) -> _Pair:
        spec = self.face_spec
        count = 0 if spec is None else len(spec.names) if self.grouping is None else self.grouping.shape[1]
        faces = np.zeros((1 + self.both_ways, count), np.float32) if count else None
        return _Pair(np.zeros((2, self.image_size, self.image_size, 3), np.uint8), None, faces, False)

    def collate(self, samples: Sequence[_Pair]) -> PairBatch:
        """Stack pairs, channels first. If any sample has weights, those of others are 1."""
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
    """(ways, ...) of each pair -> (ways · pairs, ...), way by way."""
    return torch.from_numpy(np.concatenate(np.stack(values, 1)))


def pairs_to_float(batch: PairBatch) -> PairBatch:
    """uint8 images 0..255 as float32 in [-1, 1], on the same device."""
    return PairBatch(to_float(batch.source), to_float(batch.driving), batch.weight, batch.face)


@dataclass(frozen=True)
class FaceCentre:
    """Weights 1 + weight·mask, with a Gaussian mask on the middle of the face, from the eyes to below the mouth.

    `y`, `x` is its centre and `radius` its standard deviation, all in crop sides. It suits crops of `af ingest`, which
    have the face in the middle; a head that moves far within its crop needs landmarks instead.
    """

    weight: float = 4.0
    y: float = 0.55
    x: float = 0.5
    radius: float = 0.13

    def __call__(self, face: Float32[np.ndarray, " P"] | None, size: int) -> Float32[np.ndarray, "Y X"]:
        """Pixel weights for a frame of `size` pixels; face parameters are ignored."""
        place = (np.arange(size, dtype=np.float32) + 0.5) / size
        distance = np.square(place[:, None] - self.y) + np.square(place[None] - self.x)
        return (1 + self.weight * np.exp(-distance / (2 * self.radius**2))).astype(np.float32)
