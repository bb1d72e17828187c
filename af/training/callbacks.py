"""Callbacks for progress, a log of validations and the export."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.progress import Progress, TextColumn

from af.console import progress_bar
from af.data.provenance import with_earlier
from af.errors import UserError
from af.files import append_line
from af.models.artifact import LATENTS, model_info, save_model
from af.models.autoencoder import MotionAutoencoder
from af.models.checkpoint import saved_model
from af.models.registry import check_description
from af.nn.adapt import changes
from af.training.checkpoints import best_checkpoint
from af.training.ema import Ema

#: Steps before the speed of a training is measured, and steps to measure.
WARM_STEPS: Final = 10
PACE_STEPS: Final = 40


def duration(seconds: float) -> str:
    """A duration in hours and minutes, or in smaller units."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def writes_logs(module: LightningModule) -> bool:
    """Whether Lightning writes what `module` (which counts `batches_seen`) logs in this step: every
    `log_every_n_steps`-th but the first. Values logged in earlier steps are attributed to that step.
    """
    every = module.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it from outside of the class
    steps = -(-module.batches_seen // module.trainer.accumulate_grad_batches)  # type: ignore[operator]
    return bool(every) and steps % every == 0


class StepProgress(Callback):
    """One bar over optimiser steps (the data are endless, without epochs), with the logged progress values."""

    def __init__(self, refresh_s: float = 0.5) -> None:
        self.refresh_s = refresh_s
        self._progress: Progress | None = None
        self._shown = 0.0
        self._began = (0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step the run (re)starts from."""
        if trainer.global_rank:
            return
        self._progress = progress_bar(TextColumn("{task.fields[values]}"), console=Console())
        self._progress.start()
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._task = self._progress.add_task("training", total=total, completed=trainer.global_step, values="")
        self._began = (trainer.global_step + WARM_STEPS, time.monotonic())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advance the bar; print once how long the training will take."""
        now = time.monotonic()
        self._say_pace(trainer, now)
        if self._progress is None or (now - self._shown < self.refresh_s and trainer.global_step < trainer.max_steps):
            return
        self._shown = now
        values = "  ".join(f"{k} {float(v):.3g}" for k, v in trainer.progress_bar_metrics.items() if k != "v_num")
        self._progress.update(self._task, completed=trainer.global_step, values=values)

    def _say_pace(self, trainer: Trainer, now: float) -> None:
        first, since = self._began
        if self._progress is None or first < 0 or trainer.global_step < first:
            return
        if trainer.global_step == first:  # the first steps, with their one-off costs, are over
            self._began = (first, now)
        elif trainer.global_step >= first + PACE_STEPS:
            step_s, left = (now - since) / (trainer.global_step - first), trainer.max_steps - trainer.global_step
            text = f"{step_s:.3g} s per step: {duration(left * step_s)} for the remaining {left:,} steps"
            if left > 0:
                self._progress.console.print(text, highlight=False, soft_wrap=True)
            self._began = (-1, 0.0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print one line per validation, which also appears in log files."""
        if self._progress is not None:
            shown = {k: float(v) for k, v in trainer.logged_metrics.items() if k.startswith(("val/", "psnr"))}
            values = "  ".join(f"{k} {v:.4g}" for k, v in shown.items() if k.count("/") < 2)
            self._progress.console.print(f"step {trainer.global_step}: {values}", highlight=False, soft_wrap=True)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the terminal."""
        self._stop()


class ValidationLog(Callback):
    """One line of JSON per validation, `{"step": …, "val/loss": …}`, for searches to read during a training."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rank 0 writes."""
        if trainer.global_rank or trainer.sanity_checking:
            return
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("val/", "psnr"))}
        finite = {k: v for k, v in values.items() if math.isfinite(v)}
        append_line(self.file, json.dumps({"step": trainer.global_step, **finite}))


class Export(Callback):
    """Describes the model in every checkpoint (for `af.models.checkpoint`) and writes it as a model folder at the end:
    the trained `part`, with averaged weights if the callbacks include an `Ema`. Those of the best checkpoint are written
    if `keep_best` says so.

    `config` describes the model, `info` its specs; the data's provenance is added.
    """

    def __init__(self, part: str, config: Mapping[str, Any], info: Mapping[str, Any], start: str | None = None) -> None:
        self.part, self.config, self.info = part, dict(config), dict(info)
        self.earlier = model_info(start) if start else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn now of a model folder that could not be read at the end."""
        try:
            check_description({"model": self.config, **self.info}, "the model's description")
        except UserError as error:
            rank_zero_warn(f"other commands will not read this model: {error}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the description that `af.models.artifact.load_model` needs."""
        averages = [c.state_key for c in _averages(trainer) if c.part == self.part]
        checkpoint["model"] = {
            "part": self.part,
            "config": self.config,
            "info": self._about(trainer, pl_module),
            "averages": averages,
        }

    def write(self, trainer: Trainer, module: LightningModule, folder: Path) -> None:
        """Write the model folder."""
        averages = _averages(trainer)
        for average in averages:
            average.swap_in(module)
        info, part = {**self._about(trainer, module), "steps": trainer.global_step}, getattr(module, self.part)
        if (best := best_checkpoint(trainer)) is not None:
            saved = saved_model(Path(best.best_model_path))
            part.load_state_dict(saved.state)
            info["best"] = {
                "step": saved.info["steps"],
                str(best.monitor): float(torch.as_tensor(best.best_model_score)),
            }
        save_model(folder, part, self.config, info)
        for average in averages:
            average.swap_out(module)

    def _about(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        info, part = {**self.info, **data.provenance()}, getattr(module, self.part)
        if self.earlier and isinstance(part, MotionAutoencoder) and part.keeps_motion(changes(part)):
            info[LATENTS] = self.earlier.get(LATENTS) or self.earlier["sha256"]
        return with_earlier(info, self.earlier)


def _averages(trainer: Trainer) -> list[Ema]:
    return [c for c in trainer.callbacks if isinstance(c, Ema)]  # type: ignore[attr-defined]


def tensorboard(trainer: Trainer) -> Any | None:
    """The SummaryWriter of the run, or None without one (or on other ranks)."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.global_rank == 0:
            return logger.experiment
    return None
