"""Ownership of a run's folder, and the settings that may change when the run continues.

The first checkpoint, which contains the run's configuration, claims the folder: a start that ended before its first
step claims nothing, and editing `config.json` does not change a run.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks

from af.devices import machine
from af.errors import UserError
from af.files import append_line, read_json, write_json
from af.models.checkpoint import FOLDER, checkpoint_files, read_checkpoint

#: Keys that affect only the execution of a run, not its results: they may change when it continues.
FREE: Final = (
    *(
        "name",
        "run",
        "tags",
        "objective",
        "evaluation",
        "logger",
        "checkpoints",
        "compile",
        "activation_checkpointing",
        "callbacks.gradients",
    ),
    *("data.workers", "data.cache_gb", "data.validation"),
    *(
        f"trainer.{name}"
        for name in ("accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "profiler")
    ),
    *(f"trainer.{name}" for name in ("val_check_interval", "num_sanity_val_steps", "limit_val_batches", "max_time")),
    *("trainer.inference_mode", "trainer.detect_anomaly"),
)
#: Lightning's callbacks that affect the results, as do those with the attribute `acts = True`. All others only observe.
_ACTING: Final = (
    callbacks.EarlyStopping,
    callbacks.WeightAveraging,
    callbacks.StochasticWeightAveraging,
    callbacks.GradientAccumulationScheduler,
    callbacks.BaseFinetuning,
    callbacks.ModelPruning,
    callbacks.BatchSizeFinder,
    callbacks.LearningRateFinder,
)
STEPS: Final = "trainer.max_steps"
_TOTAL: Final = "total_steps"
#: `auto` stands for one of the others, depending on the machine: a run may continue on another machine.
_AUTOMATIC: Final = ("auto", "bf16-mixed", "32-true")


class Claim(Callback):
    """Stores the configuration in every checkpoint, as `config`, and at each start in the folder: `config.json` is the
    current configuration; `history.jsonl` has a line per start with time, step and changes.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], command: Sequence[str]) -> None:
        self.folder, self.config, self.command = folder, plain(config), list(command)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the configuration."""
        checkpoint["config"] = self.config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """On rank 0, write the files and print what has changed."""
        if trainer.global_rank:
            return
        before = known(self.folder)
        different = {} if before is None else changed(before, self.config)
        (self.folder / "done.json").unlink(missing_ok=True)
        write_json(self.folder / "config.json", self.config)
        about = {**environment(self.command), "precision": str(trainer.precision)}
        write_json(self.folder / "environment.json", about)
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = {"time": time, "from_step": trainer.global_step, "command": self.command, "changed": different}
        append_line(self.folder / "history.jsonl", json.dumps(line))
        if told := {key: values for key, values in different.items() if key not in ("run", "name")}:
            print(f"continues from step {trainer.global_step} with {_told(told)}")
        if STEPS in told:
            print(f"schedules over the whole training now end at step {trainer.max_steps}; {self._rate()}")

    def _rate(self) -> str:
        """The effect of a longer training on the learning rate."""
        if _TOTAL not in self.config.get("scheduler", {}):
            return "the learning rate does not change"
        return "the learning rate follows its schedule over the new length, and rises now if it had fallen"


def known(folder: Path) -> dict[str, Any] | None:
    """The configuration of the run in `folder`, from its newest checkpoint or else `config.json`. None without a
    claim.
    """
    files = checkpoint_files(folder / FOLDER)
    for path in files:
        with contextlib.suppress(UserError):  # damaged: reported when the run continues from it
            if (config := read_checkpoint(path).get("config")) is not None:
                return config
    file = folder / "config.json"
    return read_json(file) if file.is_file() and (files or (folder / "done.json").is_file()) else None


def finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the run in `folder` has finished all its steps with this configuration (except for what may change).

    Raises UserError when `folder` holds a run with another configuration.
    """
    before = known(folder)
    if before is None:
        return False
    if different := refused(before, config):
        more = "a training can be made longer, not shorter; " if STEPS in different else ""
        raise UserError(
            f"{folder} holds a run with another configuration (different: {_told(different)}); {more}"
            "give the same values, choose another run=FOLDER, or delete this one"
        )
    return (folder / "done.json").is_file() and not _longer(before, config)


def changed(before: Any, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (before, now)} for all differences between two configurations."""
    return dict(sorted(_differences(before, plain(config)).items()))


def refused(before: Any, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The part of `changed` that would make it another run."""
    return {
        key: (old, new) for key, (old, new) in changed(before, config).items() if not _may_change(key, before, config)
    }


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Versions, commit and command, to reproduce a run."""
    packages = ["torch", "lightning", "torchmetrics", "transformers", "webdataset", "hydra-core", "numpy", "av"]
    return {
        "command": list(command),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_diff": _git("diff", "HEAD"),
        "cpu_threads": torch.get_num_threads(),
        "machine": machine(),
    }


def recipe(command: Sequence[str]) -> dict[str, Any]:
    """What model folders say of their making: the command, the commit, and whether its files were `changed`."""
    made = {"git_commit": _git("rev-parse", "HEAD"), "changed": bool(_git("diff", "HEAD"))}
    return {"command": list(command[1:]), **made}


def plain(config: Mapping[str, Any]) -> Any:
    """The value after a round trip through JSON."""
    return json.loads(json.dumps(config))


def _told(different: Mapping[str, tuple[Any, Any]]) -> str:
    texts = [f"{key} {_short(old)} → {_short(new)}" for key, (old, new) in different.items()]
    return ", ".join([*texts[:8], *([f"and {len(texts) - 8} more"] if len(texts) > 8 else [])])


def _may_change(key: str, before: Any, config: Mapping[str, Any]) -> bool:
    if any(key == free or key.startswith(f"{free}.") for free in FREE):
        return True
    if key == STEPS:
        return _longer(before, config)
    if key.startswith(("scheduler.", "module.")):  # schedules whose length is taken from the number of steps
        return all(_at(c, key) == c["trainer"]["max_steps"] for c in (before, config))
    if key == "trainer.precision":
        names = [str(c["trainer"].get("precision")) for c in (before, config)]
        return "auto" in names and all(name in _AUTOMATIC for name in names)
    if key.startswith("callbacks."):
        name = key.split(".")[1]
        return not any(_acts((c.get("callbacks") or {}).get(name)) for c in (before, config))
    return False


def _longer(before: Any, config: Mapping[str, Any]) -> bool:
    old, new = before["trainer"]["max_steps"], config["trainer"]["max_steps"]
    return new > old


def _acts(callback: Any) -> bool:
    target = callback.get("_target_", "") if isinstance(callback, Mapping) else ""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return False  # errors in building are reported later
    return inspect.isclass(found) and (issubclass(found, _ACTING) or getattr(found, "acts", False))


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _differences(a: Any, b: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    if _from_root(a) == _from_root(b):
        return {}
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return {prefix: (a, b)}
    found: dict[str, tuple[Any, Any]] = {}
    for k in a.keys() | b.keys():
        found |= _differences(a.get(k), b.get(k), f"{prefix}.{k}" if prefix else k)
    return found


def _from_root(value: Any) -> Any:
    """A value with its texts as absolute paths, so that all spellings of a folder are equal."""
    if isinstance(value, dict):
        return {_from_root(k): _from_root(v) for k, v in value.items()}
    if isinstance(value, list):
        return [*map(_from_root, value)]
    return os.path.abspath(value) if isinstance(value, str) else value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
