"""Building Lightning's Trainer, and running a training in its folder."""

from __future__ import annotations

import datetime
import inspect
import logging
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from af.errors import Stopped, UserError, did_you_mean
from af.files import write_json
from af.models.checkpoint import FOLDER, checkpoint_files, step_of
from af.training.checkpoints import SafeCheckpointIO
from af.training.precision import Double, trainer_precision
from af.training.ranks import find_ranks
from af.training.sigterm import handlers_kept
from af.values import require_number

#: Options of Lightning's Trainer that users cannot set here, and what to use instead.
OURS: Final = {
    "max_epochs": "a training counts steps: trainer.max_steps",
    "min_epochs": "a training counts steps: trainer.max_steps",
    "check_val_every_n_epoch": "a training counts steps: trainer.val_check_interval",
    "reload_dataloaders_every_n_epochs": "the data are endless",
    "limit_train_batches": "a training counts steps: trainer.max_steps; trainer.overfit_batches repeats a few batches",
    "callbacks": "they are named: +callbacks.NAME._target_=CLASS, or callbacks.NAME=null to leave one out",
    "logger": "they are named: logger=csv, logger=[tensorboard,csv] or logger=none",
    "plugins": "checkpoints and ranks are looked after here",
    "default_root_dir": "the folder is run=FOLDER",
    "use_distributed_sampler": "the plan of the data says which rank reads what",
    "enable_progress_bar": "the bar is callbacks.progress (null: none)",
    "enable_model_summary": "callbacks=[default,summary] prints one",
    "enable_checkpointing": "checkpoints.every_n_steps says when",
    "barebones": "callbacks=none and logger=none leave out what is not wanted",
}
#: Allowed ranges of numeric options.
LIMITS: Final[Mapping[str, Mapping[str, Any]]] = {
    "max_steps": {"least": 1, "whole": True},
    "val_check_interval": {"least": 1, "whole": True, "optional": True},
    "log_every_n_steps": {"least": 0, "whole": True},
    "accumulate_grad_batches": {"least": 1, "whole": True},
    "num_sanity_val_steps": {"least": -1, "whole": True, "optional": True},
    "num_nodes": {"least": 1, "whole": True},
    "limit_val_batches": {"least": 0, "optional": True},
    "overfit_batches": {"least": 0, "whole": True},
    "gradient_clip_val": {"above": 0, "optional": True},
}


def make_trainer(
    options: Mapping[str, Any], folder: Path, *, callbacks: Sequence[Callback], loggers: Sequence[Logger]
) -> Trainer:
    """Lightning's Trainer with the options `trainer:` of a configuration. Raises UserError naming a wrong one."""
    known = trainer_options()
    for name, value in options.items():
        if name in OURS:
            raise UserError(f"trainer.{name}={value}: not an option here; {OURS[name]}")
        if name not in known:
            raise UserError(f"trainer.{name}: Lightning's Trainer has no such option{did_you_mean(name, known)}")
    _require_values(options)
    ranks = find_ranks()
    precision, why = trainer_precision(options.get("precision", "32-true"), str(options.get("accelerator", "auto")))
    if why and ranks.rank == 0:
        print(f"precision: {precision} ({why})", flush=True)
    double = [Double()] if precision == "64-true" else []
    ours: dict[str, Any] = {
        "precision": None if double else precision,
        "default_root_dir": folder,
        "logger": list(loggers) or False,
        "callbacks": list(callbacks),
        "plugins": [SafeCheckpointIO(), ranks.environment(), *double],
        "max_epochs": -1,
        "use_distributed_sampler": False,  # the plan already assigns samples to ranks
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "check_val_every_n_epoch": None,
    }
    quiet()
    try:
        return Trainer(**{**options, **ours})
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        about = [name for name in options if name in str(error) or str(options[name]) in str(error).split()]
        where = f"trainer.{about[0]}={options[about[0]]}" if about else "trainer"
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error


def fit(trainer: Trainer, module: LightningModule, data: LightningDataModule, folder: Path) -> float:
    """Train until `max_steps`, from the newest sound checkpoint in `folder` if there is one. Returns the time in
    seconds. Raises `Stopped` after a signal.
    """
    start, checkpoints = time.monotonic(), folder / FOLDER
    try:
        with handlers_kept():
            resumed = str(checkpoints) if checkpoint_files(checkpoints) else None
            trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    except SIGTERMException:  # until the first step Lightning handles signals
        raise Stopped(signal.SIGTERM, _where(checkpoints)) from None
    except SystemExit:
        if trainer.interrupted:  # Lightning's exit on Ctrl-C
            raise Stopped(signal.SIGINT, _where(checkpoints)) from None
        raise
    return time.monotonic() - start


def finish(trainer: Trainer, folder: Path, seconds: float) -> bool:
    """Mark the training in `folder` as done, if it is `over`."""
    if over(trainer):
        write_json(folder / "done.json", {"steps": trainer.global_step, "seconds": seconds})
    return over(trainer)


def over(trainer: Trainer) -> bool:
    """Whether a training that ended was not ended early by `trainer.max_time`."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    late = any((timer.time_remaining() or 0) <= 0 for timer in timers)
    return not late or trainer.global_step >= trainer.max_steps


def trainer_options() -> list[str]:
    """Names of all options of Lightning's Trainer."""
    return list(inspect.signature(Trainer.__init__).parameters)[1:]


def _require_values(options: Mapping[str, Any]) -> None:
    for name, limits in LIMITS.items():
        if name in options:
            require_number(f"trainer.{name}", options[name], **limits)
    longest = options.get("max_time")
    if longest is not None and not isinstance(longest, str | Mapping | datetime.timedelta):
        raise UserError(f"trainer.max_time={longest}: give days:hours:minutes:seconds, as in 00:12:00:00")
    smoke = options.get("fast_dev_run", False)
    if not isinstance(smoke, int) or smoke < 0:
        raise UserError(f"trainer.fast_dev_run={smoke}: give true, false or a number of steps")


def _where(checkpoints: Path) -> str:
    """A message on a run stopped before the first step of this start."""
    found = next(iter(checkpoint_files(checkpoints)), None)
    if found is None:
        return "stopped before the first step: nothing is kept, the same command starts again"
    return f"stopped before another step: the same command continues from step {step_of(found):g}"


def quiet() -> None:
    """Silence advertisements and intended warnings, to keep the console for the progress bar."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",
        "Checkpoint directory .* exists",
        ".*does not have many workers.*",
        ".* in eval mode at",
    ):
        warnings.filterwarnings("ignore", message=message)
