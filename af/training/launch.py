"""Start or continue one training run in its folder.

A run folder holds `config.json` (resolved), `environment.json`, `checkpoints/` (the newest whole one is continued from),
`tensorboard/` and, at the end, `export/` (the model folder other commands read) and `done.json`.
"""

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
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from af.errors import Stopped, UserError, did_you_mean
from af.files import write_json
from af.models.checkpoint import checkpoint_files, step_of
from af.training import claim
from af.training.callbacks import Export, ValidationLog
from af.training.checkpoints import SafeCheckpointIO, checkpointers
from af.training.compile import compiled, recompute
from af.training.precision import Double, trainer_precision
from af.training.ranks import find_ranks
from af.training.sigterm import Stops, handlers_kept
from af.training.throughput import Throughput

#: Options of Lightning's Trainer that are not the user's here, and what is.
OURS: Final = {
    "max_epochs": "a training counts steps: trainer.max_steps",
    "min_epochs": "a training counts steps: trainer.max_steps",
    "check_val_every_n_epoch": "a training counts steps: trainer.val_check_interval",
    "reload_dataloaders_every_n_epochs": "the data are endless",
    "limit_train_batches": "a training counts steps: trainer.max_steps",
    "overfit_batches": "the data are endless: give data.root few conversations and data.validation=train",
    "callbacks": "they are named: +callbacks.NAME._target_=CLASS, or callbacks.NAME=null to leave one out",
    "plugins": "checkpoints and ranks are looked after here",
    "default_root_dir": "the folder is run=FOLDER",
    "use_distributed_sampler": "the plan of the data says which rank reads what",
    "enable_progress_bar": "the bar is callbacks.progress (null: none)",
    "enable_model_summary": "+callbacks.summary._target_=lightning.pytorch.callbacks.ModelSummary prints one",
    "enable_checkpointing": "launch.checkpoint_every_n_steps says when",
    "barebones": "callbacks.NAME=null leaves out what is not wanted",
}


def fit(
    folder: Path,
    module: LightningModule,
    data: LightningDataModule,
    *,
    config: Mapping[str, Any],
    command: Sequence[str],
    callbacks: Sequence[Callback],
    checkpoint_every_n_steps: int,
    checkpoint_every_minutes: float | None = 10.0,
    grace_s: float = 20.0,
    keep_best: Mapping[str, Any] | None = None,
    activation_checkpointing: bool = False,
    compile: bool | str = False,
    precision: str | int = "32-true",
    **trainer_options: Any,
) -> Trainer:
    """Train until `max_steps`; a folder with a checkpoint is continued. The switches are for the module's `part`.

    Raises UserError when the folder belongs to a run of another configuration, `Stopped` when a signal ended it.
    """
    folder = Path(folder)
    ranks = find_ranks()
    name, why = trainer_precision(precision, str(trainer_options.get("accelerator", "auto")))
    if why and ranks.rank == 0:
        print(f"precision: {name} ({why})", flush=True)
    checkpoints = folder / "checkpoints"
    newest = next(iter(checkpoint_files(checkpoints)), None)
    if ranks.rank == 0:
        claim.check(folder, config)
    if activation_checkpointing:
        recompute(getattr(module, config["part"]))
    if compile:
        compiled(module, compile)  # type: ignore[arg-type]
    stops = Stops(grace_s, checkpoint_every_minutes)
    clocks = [callback for callback in callbacks if isinstance(callback, Throughput)]
    profiler = trainer_options.pop("profiler", None)
    if profiler is None and clocks:
        profiler = clocks[0].data
    for clock in clocks:
        clock.waits = profiler is clock.data
    logger = trainer_options.pop("logger", None)
    double = [Double()] if name == "64-true" else []
    begun = _Begun(folder, config, command, name)
    trainer = make_trainer(
        {**trainer_options, "profiler": profiler, "precision": None if double else name},
        default_root_dir=folder,
        logger=TensorBoardLogger(folder, name="", version="tensorboard") if logger in (None, True) else logger,
        callbacks=[
            begun,
            *callbacks,
            claim.Claim(config),
            stops,
            ValidationLog(folder / "validation.jsonl"),
            *checkpointers(checkpoints, checkpoint_every_n_steps, keep_best, stops),
        ],
        plugins=[SafeCheckpointIO(), ranks.environment(), *double],
    )
    start = time.monotonic()
    resumed = None if newest is None else str(checkpoints)
    try:
        with handlers_kept():
            trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    except SIGTERMException:  # before the first step: a signal is Lightning's until then
        raise Stopped(signal.SIGTERM, _where(checkpoints)) from None
    except SystemExit:
        if trainer.interrupted:  # what Lightning makes of Ctrl-C
            raise Stopped(signal.SIGINT, _where(checkpoints)) from None
        raise
    if begun.step is None and ranks.rank == 0:  # all steps were done, but it was ended before its export
        for callback in callbacks:
            if isinstance(callback, Export):
                callback.on_train_end(trainer, module)
    if ranks.rank == 0 and not _out_of_time(trainer):
        write_json(folder / "done.json", {"steps": trainer.global_step, "seconds": time.monotonic() - start})
    return trainer


class _Begun(Callback):
    """Writes what a start is into the run folder once everything is ready to train."""

    def __init__(self, folder: Path, config: Mapping[str, Any], command: Sequence[str], precision: str) -> None:
        self.folder, self.config, self.command, self.precision = folder, config, command, precision
        self.step: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rank 0 writes, and says what has changed."""
        self.step = trainer.global_step
        if trainer.global_rank:
            return
        if (told := claim.begin(self.folder, self.config, self.command, self.step, self.precision)) is None:
            return
        print(told)
        if f"{claim.STEPS} " in told:
            ratio = getattr(pl_module, "final_lr_ratio", 1.0)
            rate = "stays as it is" if ratio == 1.0 else f"falls to {ratio:g} of itself at the new end, and rises now"
            print(f"what is planned over the whole training ends at step {trainer.max_steps}; the learning rate {rate}")


def check(config: Mapping[str, Any]) -> None:
    """UserError for values of `launch` and `trainer` that `fit` would not take: before any work."""
    known = [k for k, p in inspect.signature(fit).parameters.items() if p.kind is p.KEYWORD_ONLY]
    known = [name for name in known if name not in ("config", "command", "callbacks", "precision")]
    for name in config["launch"]:
        if name not in known:
            raise UserError(f"launch.{name}: there is no such setting{did_you_mean(name, known)}")
    given = {"checkpoint_every_minutes": 10.0, "grace_s": 20.0, "keep_best": None, **config["launch"]}
    try:
        stops = Stops(given["grace_s"], given["checkpoint_every_minutes"])
        checkpointers(Path(), given["checkpoint_every_n_steps"], given["keep_best"], stops)
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(f"launch: {error}") from error
    if isinstance(logger := config["trainer"].get("logger"), str | int | float) and not isinstance(logger, bool):
        raise UserError(
            f"trainer.logger={logger}: give true (TensorBoard), false, or the _target_ of one and its settings"
        )
    options = {k: v for k, v in config["trainer"].items() if k not in ("logger", "profiler")}
    if "precision" in options:
        options["precision"] = trainer_precision(options["precision"], str(options.get("accelerator", "auto")))[0]
    make_trainer(options, logger=False, enable_checkpointing=False, plugins=[find_ranks().environment()])


def trainer_options() -> list[str]:
    """Names of the options of Lightning's Trainer, ours among them."""
    return list(inspect.signature(Trainer.__init__).parameters)[1:]


def make_trainer(options: Mapping[str, Any], **ours: Any) -> Trainer:
    """Lightning's Trainer with the options of `trainer:` in a configuration. UserError that names a wrong one."""
    known = trainer_options()
    for name, value in options.items():
        if name in OURS:
            raise UserError(f"trainer.{name}={value}: not an option here; {OURS[name]}")
        if name not in known:
            raise UserError(f"trainer.{name}: Lightning's Trainer has no such option{did_you_mean(name, known)}")
    _require_numbers(options)
    fixed: dict[str, Any] = {
        "max_epochs": -1,
        "use_distributed_sampler": False,  # the plan already says who reads what
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "check_val_every_n_epoch": None,
    }
    _quiet()
    try:
        return Trainer(**options, **fixed, **ours)
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        about = [name for name in options if name in str(error) or str(options[name]) in str(error).split()]
        where = f"trainer.{about[0]}={options[about[0]]}" if about else "trainer"
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error


def _require_numbers(options: Mapping[str, Any]) -> None:
    for name, least, empty in (
        ("max_steps", 1, False),
        ("val_check_interval", 1, True),
        ("log_every_n_steps", 0, False),
        ("accumulate_grad_batches", 1, False),
        ("num_sanity_val_steps", -1, True),
        ("num_nodes", 1, False),
    ):
        value = options.get(name, least)
        if value is None and empty:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"trainer.{name}={value}: give a whole number from {least} on")
    share = options.get("limit_val_batches")
    if share is not None and (isinstance(share, bool) or not isinstance(share, int | float)):
        raise UserError(f"trainer.limit_val_batches={share}: give a number of batches, or a share from 0.0 to 1.0")
    longest = options.get("max_time")
    if longest is not None and not isinstance(longest, str | Mapping | datetime.timedelta):
        raise UserError(f"trainer.max_time={longest}: give days:hours:minutes:seconds, as in 00:12:00:00")
    smoke = options.get("fast_dev_run", False)
    if not isinstance(smoke, int) or smoke < 0:
        raise UserError(f"trainer.fast_dev_run={smoke}: give true, false or a number of steps")
    clip = options.get("gradient_clip_val")
    if clip is not None and not (isinstance(clip, int | float) and 0 < clip < float("inf")):
        raise UserError(f"trainer.gradient_clip_val={clip}: give a number above 0, or null")


def _where(checkpoints: Path) -> str:
    """What became of a run that was stopped before its first step of this start."""
    found = next(iter(checkpoint_files(checkpoints)), None)
    if found is None:
        return "stopped before the first step: nothing is kept, the same command starts anew"
    return f"stopped before a further step: the same command goes on from step {step_of(found):g}"


def _out_of_time(trainer: Trainer) -> bool:
    """Whether `trainer.max_time` has ended the training before its steps did."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    return trainer.global_step < trainer.max_steps and any((timer.time_remaining() or 0) <= 0 for timer in timers)


def _quiet() -> None:
    """Leave the console to the progress bar: no advertisements, no warnings about what is meant."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*LeafSpec.*", "Checkpoint directory .* exists", ".*does not have many workers.*"):
        warnings.filterwarnings("ignore", message=message)
