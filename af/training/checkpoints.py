"""Reliable checkpoints: written atomically, verified, kept together with the previous one, found after any stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.console import Console

from af.errors import UserError, did_you_mean
from af.files import atomic_path, remove_stale
from af.models.checkpoint import checkpoint_files, newest, sound
from af.training.sigterm import GO_ON, STOP, Stops
from af.values import require_number


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, syncs it, checks all checksums, and only then renames it.

    Loading a folder loads its newest sound checkpoint; rank 0 chooses, and sets broken ones aside.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one checkpoint. Raises UserError, leaving earlier ones untouched, when writing fails."""
        try:
            with atomic_path(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
                if not sound(temporary):
                    raise OSError("the written file could not be verified")
        except (OSError, RuntimeError) as error:  # torch wraps a full disk into a RuntimeError
            earlier = [file for file in checkpoint_files(Path(path).parent) if file != Path(path)]
            there = "earlier checkpoints there are intact" if earlier else "there is no earlier one"
            raise UserError(
                f"{path}: the checkpoint could not be written ({error}); {there}. "
                "Make room, then start the same command again"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, or the newest sound one in a folder. Raises UserError when there is none."""
        chosen = [path]
        if Path(path).is_dir():
            if not dist.is_initialized() or dist.get_rank() == 0:
                remove_stale(Path(path))  # leftovers of killed writers
                chosen = [newest(Path(path), broken=_set_aside)]
            if dist.is_initialized():
                dist.broadcast_object_list(chosen)
            if chosen[0] is None:
                raise UserError(
                    f"{path}: every checkpoint there is broken; delete that folder to start from the beginning"
                )
        return super().load_checkpoint(chosen[0], map_location, weights_only)


class _Newest(ModelCheckpoint):
    """Saves the state for resuming: every n steps, every few minutes, at the end, and when a signal stops the run.

    It saves only after whole steps, never between accumulated batches, and before a validation that follows.
    """

    def __init__(self, folder: Path, every_n_steps: int, stops: Stops) -> None:
        super().__init__(
            folder,
            filename="{step:08d}",
            every_n_train_steps=every_n_steps,
            save_last="link",
            save_top_k=2,
            monitor="step",
            mode="max",
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )
        self.every_n_steps, self.stops = every_n_steps, stops
        self._step = 0

    @property
    def state_key(self) -> str:
        """A key independent of the interval, which may change."""
        return "newest_checkpoints"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the loaded state as saved."""
        super().on_train_start(trainer, pl_module)
        self._step = self._last_global_step_saved = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a state that was saved before this validation again, with what callbacks remember of it (the best ones,
        early stopping).
        """
        super().on_validation_end(trainer, pl_module)
        saved = self._last_global_step_saved == trainer.global_step and not trainer.sanity_checking
        if saved and any(isinstance(c, _Best | EarlyStopping) for c in trainer.callbacks):  # type: ignore[attr-defined]
            trainer.save_checkpoint(self._last_checkpoint_saved)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save when due. Raises Stopped after a signal, on all ranks after the same step."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step, agreed = step, self.stops.agreed()
        last = step >= trainer.max_steps > 0 or trainer.should_stop
        smoke = trainer.fast_dev_run  # type: ignore[attr-defined]  # set from outside of the class
        if not smoke and (last or agreed != GO_ON or step % self.every_n_steps == 0):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
            self.stops.saved(step)
        if agreed == STOP and not last:
            self.stops.stop(step)


class _Best(ModelCheckpoint):
    export = False

    @property
    def state_key(self) -> str:
        """That of the class it is one of."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the state if it is among the best. Raises UserError when the metric is not logged."""
        known = [name for name in trainer.callback_metrics if isinstance(name, str)]
        if not trainer.sanity_checking and self.monitor not in known:
            near = did_you_mean(str(self.monitor), known)
            raise UserError(
                f"checkpoints.keep_best: monitor {self.monitor} is not logged{near}; there are {', '.join(sorted(known))}"
            )
        super().on_validation_end(trainer, pl_module)


def best_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """What keeps the best checkpoint, if that is to be exported and there is one."""
    found = (c for c in trainer.checkpoint_callbacks if isinstance(c, _Best) and c.export and c.best_model_path)
    return next(found, None)


def checkpointers(
    folder: Path,
    every_n_steps: int = 500,
    every_minutes: float | None = 10.0,
    grace_s: float = 20.0,
    keep_best: Mapping[str, Any] | None = None,
) -> list[Callback]:
    """Callbacks that keep the two newest checkpoints (`last.ckpt` links to the newest) and optionally the best ones:
    every n steps, after `every_minutes` (None: never), and when a signal stops the training, within `grace_s` seconds.

    `keep_best`: {monitor: a logged metric, mode: min or max, count: how many to keep}, with `export: true` also the one to
    export at the end. Raises ValueError for other values.
    """
    require_number("every_n_steps", every_n_steps, least=1, whole=True)
    stops = Stops(grace_s, every_minutes)
    if keep_best is None:
        return [stops, _Newest(folder, every_n_steps, stops)]
    if (
        not isinstance(keep_best, Mapping)
        or set(keep_best) - {"export"} != {"monitor", "mode", "count"}
        or keep_best["mode"] not in ("min", "max")
    ):
        raise ValueError(
            f"keep_best must be {{monitor: METRIC, mode: min or max, count: N, export: true or false}} or null, got {keep_best!r}"
        )
    require_number("keep_best.count", keep_best["count"], least=-1, whole=True)
    kept = _Best(
        folder,
        filename="best-{step:08d}",
        monitor=keep_best["monitor"],
        mode=keep_best["mode"],
        save_top_k=keep_best["count"],
        save_on_train_epoch_end=False,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    kept.export = bool(keep_best.get("export"))
    return [stops, kept, _Newest(folder, every_n_steps, stops)]


def _set_aside(path: Path) -> None:
    aside = path.with_name(path.name + ".broken")
    path.rename(aside)
    Console(stderr=True).print(f"{path} is broken, set aside as {aside.name}", style="yellow", soft_wrap=True)
