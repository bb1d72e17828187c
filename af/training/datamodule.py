"""Data modules of the stages; the run keeps the position in the data, independent of ranks and workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from af.data.index import INDEX_NAME, Index
from af.data.loader import Counted, training_loader, validation_loader, worker_context
from af.data.mixture import Root, joined, roots
from af.data.pairs import PairDataset, Regions, pairs_to_float
from af.data.plan import PairPlan, Plan, fixed_pairs, fixed_windows
from af.data.planned import PlannedReader, WindowSource, mixed_plan
from af.data.provenance import SOURCES, TRAINED_ON, data_sources, people_digests
from af.data.selection import Keep, selected
from af.data.shards import ShardReader
from af.data.stores import Location, location
from af.data.stream import StreamReader
from af.data.vary import Vary
from af.data.windows import WindowDataset
from af.errors import UserError
from af.models.motion_space import MotionStatistics, pooled
from af.models.speech import SpeechFeatures
from af.pipeline.encode import read_statistics, spec_of
from af.pipeline.teacher import teacher_noise
from af.specs import MotionSpec, require_spec
from af.training.precision import doubled
from af.types import PairBatch
from af.values import require_number
from af.voice import listening_frames


class _ShardData(LightningDataModule):
    """Base of both data modules. `root` is the folder or URL of the shards, or several with weights
    (`af.data.mixture`). `batch_size` is global: each rank reads its share. `validation` names the validation split;
    without this split in the data there is no validation. Of both only the clips that meet the condition `keep` on
    their measures are read (`af.data.selection`; None: all).

    The training position is the number of samples taken by all ranks. It is part of the checkpoint, so a run continues
    with the next sample, with any number of ranks that divides the global batch.
    """

    validation_index: Index | None = None

    def __init__(self, root: Root, batch_size: int, workers: int, seed: int, validation: str, keep: str | None) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0), ("seed", seed, 0)):
            require_number(name, value, least=least, whole=True)
        self.weights, self.batch_size, self.workers, self.seed = roots(root), batch_size, workers, seed
        self.shares = list(self.weights.values())
        self.start = 0
        self.keep = None if keep is None else Keep(keep, "data.keep")
        self.training_indexes = [self._index(place / "train") for place in self.weights]
        self.train_index = joined(self.training_indexes)
        held_out = [place / validation for place in self.weights if (place / validation / INDEX_NAME).is_file()]
        if held_out:
            self.validation_index = joined([self._index(folder) for folder in held_out])

    def _index(self, folder: Location) -> Index:
        index = Index.load(folder)
        if self.keep is not None:
            index, line = selected(index, self.keep)
            rank_zero_info(line)
        return index

    @property
    def where(self) -> str:
        """The data's locations, as text."""
        return " + ".join(map(str, self.weights))

    def provenance(self) -> dict[str, Any]:
        """Provenance of the data for an exported model: location, data sets with their licences, and people."""
        indexes = self.training_indexes
        return {"data": self.where, SOURCES: data_sources(indexes), TRAINED_ON: people_digests(indexes)}

    def state_dict(self) -> dict[str, Any]:
        """The position: samples taken by all ranks (none when overfitting the same batches)."""
        assert self.trainer is not None
        overfits = self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        batches = 0 if overfits else int(self.trainer.lightning_module.batches_seen)  # type: ignore[arg-type]
        place = {"root": self.where, "weights": self.shares, "keep": self.keep and self.keep.text}
        return {"samples": batches * self.batch_size, "seed": self.seed, **place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the checkpoint's samples. Raises UserError for another seed or mixture."""
        if state_dict["seed"] != self.seed:
            raise UserError(f"data.seed is {self.seed}, the checkpoint was made with {state_dict['seed']}")
        if self.shares != (before := state_dict.get("weights", [1.0])):
            raise UserError(
                f"data.root mixes {self.where} by {self.shares}, the checkpoint was made with {state_dict['root']} by {before}; "
                "continue with the same mixture, or start another run from the exported model"
            )
        if state_dict.get("keep") != (now := self.keep and self.keep.text):
            raise UserError(
                f"data.keep is {now!r}, the checkpoint was made with {state_dict.get('keep')!r}; continue with the same, "
                "or start another run from the exported model"
            )
        self.start = int(state_dict["samples"])

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Keep only the samples of a validation batch that count (on the host, which needs their number)."""
        if not isinstance(batch, Counted):
            return batch
        counted, batch = batch.counted, batch.batch
        return type(batch)(**{k: v if v is None else v[counted] for k, v in vars(batch).items()})

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert bytes to floats on the device."""
        batch = pairs_to_float(batch) if isinstance(batch, PairBatch) else batch
        return doubled(batch) if self.trainer is not None and self.trainer.precision == "64-true" else batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; copies from page-locked memory overlap with computation."""
        return batch.to(device, non_blocking=True)

    @property
    def rank_batch_size(self) -> int:
        """This rank's share of a batch."""
        return self._reading()["batch_size"]

    def _reading(self) -> dict[str, Any]:
        """What the loaders are told: this rank's share, and how it is read."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.batch_size % world:
            raise UserError(f"data.batch_size={self.batch_size} (of all ranks) is not divisible by {world} ranks")
        context = {"multiprocessing_context": worker_context()} if self.workers else {}
        share = {"rank": rank, "world": world, "batch_size": self.batch_size // world}
        return {**share, "workers": self.workers, "pin_memory": torch.cuda.is_available(), **context}


class PairData(_ShardData):
    """Pairs of frames of one person for the motion VAE.

    `regions` weights pixels by the face parameters in the shards (None: equally); `faces` adds the driving frames'
    parameters to the batches, or groups of them by name; `both_ways` trains every pair in both directions, with the
    second half of a batch as the first with exchanged roles; of `choices` driving frames the one whose expression
    differs most is taken; `image_size` (None: the shards') shrinks frames; `vary` changes training pairs at random;
    `cache_gb` bounds the disk cache of decoded clips (0: none).
    """

    def __init__(
        self,
        root: Root,
        *,
        batch_size: int = 32,
        pairs_per_person: int = 8,
        regions: Regions | None = None,
        faces: bool | Mapping[str, Sequence[str]] = False,
        both_ways: bool = False,
        choices: int = 1,
        image_size: int | None = None,
        vary: Vary | None = None,
        cache_gb: float = 8.0,
        workers: int = 1,
        seed: int = 0,
        validation: str = "val",
        keep: str | None = None,
    ) -> None:
        require_number("pairs_per_person", pairs_per_person, least=1, whole=True)
        require_number("choices", choices, least=1, whole=True)
        require_number("image_size", image_size, least=16, whole=True, optional=True)
        require_number("cache_gb", cache_gb, least=0)
        super().__init__(root, batch_size, workers, seed, validation, keep)
        self.pairs_per_person, self.cache_gb = pairs_per_person, cache_gb
        self.regions, self.faces, self.both_ways, self.vary = regions, faces, both_ways, vary
        self.choices = choices
        self.image_size = image_size if image_size is not None else self.train_index.image_size

    def train_dataloader(self) -> DataLoader:
        """Endless batches in the plan's order."""

        plans = [
            PairPlan(index, seed=self.seed, pairs_per_person=self.pairs_per_person, choices=self.choices)
            for index in self.training_indexes
        ]
        dataset = self._dataset(self.train_index, mixed_plan(plans, self.shares, self.seed))
        return training_loader(dataset, start=self.start, **self._reading())

    def val_dataloader(self) -> DataLoader | list:
        """Fixed pairs, each one once."""
        if self.validation_index is None:
            return []
        items = fixed_pairs(self.validation_index, seed=self.seed)
        return validation_loader(self._dataset(self.validation_index), items, **self._reading())

    def _dataset(self, index: Index, plan: Plan | None = None) -> PairDataset:
        return PairDataset(
            ShardReader(index),
            plan,
            cache_bytes=int(self.cache_gb * 2**30),
            regions=self.regions,
            faces=self.faces,
            both_ways=self.both_ways and plan is not None,
            image_size=self.image_size,
            vary=None if plan is None else self.vary,
            seed=self.seed,
            uint8=True,
        )


class WindowData(_ShardData):
    """Windows of conversations for the denoiser, from shards written by `af encode`.

    `features` is the model's extractor, `motion_spec` (as JSON; None: any) the spec of its latents: shards with others
    are refused. For the preference stage, `losers` is a folder from `af losers`, and `listening` marks the frames in
    which the avatar is silent. For distillation, `teacher` is a folder from `af teacher`: windows then start at blocks
    and include the teacher's motion and noise. `balance` above 0 favours windows in which the avatar reacts while
    listening (`af.data.events`). `reader` reads windows by an exact plan (the default) or streams whole shards.
    """

    def __init__(
        self,
        root: Root,
        *,
        window_frames: int,
        block_frames: int,
        features: SpeechFeatures,
        motion_spec: Mapping[str, Any] | None = None,
        losers: str | Location | None = None,
        listening: bool = False,
        teacher: str | Location | None = None,
        balance: float = 0.0,
        reader: PlannedReader | StreamReader | None = None,
        batch_size: int = 8,
        workers: int = 1,
        seed: int = 0,
        validation: str = "val",
        keep: str | None = None,
    ) -> None:
        require_number("data.balance", balance, least=0)
        for name, frames in (("window_frames", window_frames), ("block_frames", block_frames)):
            require_number(name, frames, least=1, whole=True)
        super().__init__(root, batch_size, workers, seed, validation, keep)
        self.window_frames, self.balance = window_frames, balance
        self.reader = PlannedReader() if reader is None else reader
        self._position: dict[str, Any] | None = None
        self.feature_spec, self.motion_spec = spec_of(self.train_index)
        require_spec(
            self.feature_spec,
            features.spec,
            where=self.where,
            remedy="Encode the data again, or choose the features they were made with.",
        )
        if motion_spec is not None:
            require_spec(
                self.motion_spec,
                MotionSpec.from_json(motion_spec),
                where=self.where,
                remedy="Encode the data with the autoencoder of the model's latents.",
            )
        self.features = features
        self.listening = listening
        self.made = {k: location(v) for k, v in (("losers", losers), ("teacher", teacher)) if v is not None}
        if self.made and len(self.weights) > 1:
            raise UserError("data.losers and data.teacher need a single data.root, not a mixture")
        feature_block = self.feature_spec.block_frames or 1
        self.block_frames = feature_block if teacher is None else block_frames
        if block_frames % feature_block:
            raise UserError(
                f"{self.where}: features come in blocks of {feature_block} frames, which do not divide the model's "
                f"blocks of {block_frames}; encode with features.block_frames={block_frames} or a divisor of it"
            )
        found = [read_statistics(place) for place in self.weights]
        self.motion_statistics: MotionStatistics = pooled(found, self.shares)

    def provenance(self) -> dict[str, Any]:
        """Provenance, with the specs that a roll-out needs."""
        return {
            **super().provenance(),
            "feature_spec": self.feature_spec.to_json(),
            "motion_spec": self.motion_spec.to_json(),
        }

    def train_dataloader(self) -> DataLoader:
        """Endless batches from `data.reader`."""
        return self.reader.loader(self._source(), state=self._position, **self._reading())

    def state_dict(self) -> dict[str, Any]:
        """The position and the reader's state."""
        state = super().state_dict()
        slots = (self._reading()["world"], max(1, self.workers))
        reader = self.reader.state(self._source(), self._position, state["samples"], self.batch_size, slots)
        return {**state, "reader": {"kind": type(self.reader).__name__, **reader}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the checkpoint. Raises UserError for another seed, mixture or reader."""
        super().load_state_dict(state_dict)
        state = state_dict["reader"]
        if state["kind"] != type(self.reader).__name__:
            raise UserError(
                f"data.reader is a {type(self.reader).__name__}, the checkpoint was made with a {state['kind']}; go on with "
                "the same data/reader, or start another run from the exported model"
            )
        self._position = state
        if (told := self.reader.told(state)) is not None:
            rank_zero_info(told)

    def _source(self) -> WindowSource:
        return WindowSource(
            self.training_indexes,
            self.shares,
            frames=self.window_frames,
            block=self.block_frames,
            seed=self.seed,
            listening=listening_frames if self.listening else None,
            **self._made(self.train_index),
            noise_of=teacher_noise,
            balance=self.balance,
            activity=listening_frames,
        )

    def _made(self, index: Index) -> dict[str, Any]:
        return {what: folder / index.folder.name for what, folder in self.made.items()}

    def val_dataloader(self) -> DataLoader | list:
        """Adjacent windows, each one once."""
        if self.validation_index is None:
            return []
        items = fixed_windows(self.validation_index, frames=self.window_frames, block=self.block_frames)
        made = {
            what: folder
            for what, folder in self._made(self.validation_index).items()
            if (folder / INDEX_NAME).is_file()
        }
        dataset = WindowDataset(  # without losers there, the stage logs only training pairs
            ShardReader(self.validation_index),
            frames=self.window_frames,
            **made,
            noise_of=teacher_noise,
            listening=listening_frames if self.listening else None,
        )
        return validation_loader(dataset, items, **self._reading())
