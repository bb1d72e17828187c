"""Whose run a folder holds, and what may change when it goes on.

A run is claimed by its first checkpoint, which carries the configuration it was made with: a start that failed, or ended
before its first step, claims nothing, and no edit of `config.json` changes what a run is.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import importlib.metadata
import inspect
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks

from af.errors import UserError
from af.files import append_line, read_json, write_json
from af.models.checkpoint import FOLDER, checkpoint_files, read_checkpoint

#: Keys that say how a run is carried out and not what comes out of it: they may change when it goes on.
FREE: Final = (
    "name",
    "run",
    "tags",
    "objective",
    "launch",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.log_every_n_steps",
    "trainer.val_check_interval",
    "trainer.num_sanity_val_steps",
    "trainer.limit_val_batches",
    "trainer.max_time",
    "trainer.profiler",
    "trainer.logger",
    "trainer.inference_mode",
    "data.workers",
    "data.cache_gb",
    "data.validation",
    "callbacks.gradients",
)
#: Callbacks that have a part in what comes out; all others watch. Classes of Lightning's are known by their parents too.
ACTING: Final = ("af.training.ema.Ema", "af.training.preference.StopOnDrift")
_ACTING_CLASSES: Final = (
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
#: `auto` stands for the others, by what a machine is fast in: a run may go on on another one, and may have been begun with one.
_AUTOMATIC: Final = ("auto", "bf16-mixed", "32-true")


class Claim(Callback):
    """Puts the configuration into every checkpoint, as `config`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = plain(config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """What the state was made with."""
        checkpoint["config"] = self.config


def known(folder: Path) -> dict[str, Any] | None:
    """The configuration of the run in `folder`: of its newest checkpoint, or of `config.json` where that has none. None
    when nothing is claimed there.
    """
    files = checkpoint_files(folder / FOLDER)
    for path in files:
        with contextlib.suppress(UserError):  # a damaged one: said when it is to be gone on from
            if (config := read_checkpoint(path).get("config")) is not None:
                return config
    file = folder / "config.json"
    return read_json(file) if file.is_file() and (files or (folder / "done.json").is_file()) else None


def finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the run in `folder` has ended, with this configuration (but for what may change) and with all its steps."""
    if not (folder / "done.json").is_file():
        return False
    before = known(folder)
    return before is not None and not refused(before, config) and not _longer(before, config)


def changed(before: Any, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (before, now)} of all that differs between two configurations."""
    return dict(sorted(_differences(before, plain(config)).items()))


def refused(before: Any, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What of `changed` would give another run."""
    return {
        key: (old, new) for key, (old, new) in changed(before, config).items() if not _may_change(key, before, config)
    }


def check(folder: Path, config: Mapping[str, Any]) -> None:
    """UserError when `folder` holds a run of another configuration."""
    before = known(folder)
    if before is None or not (different := refused(before, config)):
        return
    more = "a training gets longer, never shorter; " if STEPS in different else ""
    raise UserError(
        f"{folder} holds a run with another configuration (different: {_told(different)}); {more}"
        "give the same values, choose another run=FOLDER, or delete that one"
    )


def begin(folder: Path, config: Mapping[str, Any], command: Sequence[str], step: int, precision: str) -> str | None:
    """Write what this start is into the folder; returns a line on what has changed, if a run goes on with changes.

    `config.json` is the configuration now, `history.jsonl` has a line a start: when, from which step, what changed.
    """
    before = known(folder)
    different = {} if before is None else changed(before, config)
    (folder / "done.json").unlink(missing_ok=True)
    write_json(folder / "config.json", plain(config))
    write_json(folder / "environment.json", {**environment(command), "precision": precision})
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = {"time": time, "from_step": step, "command": list(command), "changed": different}
    append_line(folder / "history.jsonl", json.dumps(line))
    told = {key: values for key, values in different.items() if key not in ("run", "name")}
    return f"goes on from step {step} with {_told(told)}" if told else None


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Versions, commit and command: what one needs to know to run the same again."""
    packages = ["torch", "lightning", "torchmetrics", "transformers", "webdataset", "hydra-core", "numpy", "av"]
    return {
        "command": list(command),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_diff": _git("diff", "HEAD"),
        "cpu_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def plain(config: Mapping[str, Any]) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(config))


def _told(different: Mapping[str, tuple[Any, Any]]) -> str:
    texts = [f"{key} {_short(old)} → {_short(new)}" for key, (old, new) in different.items()]
    return ", ".join([*texts[:8], *([f"and {len(texts) - 8} more"] if len(texts) > 8 else [])])


def _may_change(key: str, before: Any, config: Mapping[str, Any]) -> bool:
    if any(key == free or key.startswith(f"{free}.") for free in FREE):
        return True
    if key == STEPS:
        return _longer(before, config)
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
    if not target or target in ACTING:
        return bool(target)
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return False  # what cannot be built is said when it is
    return inspect.isclass(found) and issubclass(found, _ACTING_CLASSES)


def _differences(a: Any, b: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for k in a.keys() | b.keys():
            found |= _differences(a.get(k), b.get(k), f"{prefix}.{k}" if prefix else k)
        return found
    return {} if a == b else {prefix: (a, b)}


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
