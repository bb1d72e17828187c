"""Start or continue one training run in its folder.

A run folder holds `config.json` (resolved), `environment.json`, `checkpoints/` (the newest whole one is continued from),
`tensorboard/` and, at the end, `export/` (the model folder other commands read) and `done.json`.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import signal
import subprocess
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from af.errors import UserError
from af.files import write_json
from af.nn.precision import choose
from af.training.callbacks import ValidationLog
from af.training.checkpoints import SafeCheckpointIO, checkpointers
from af.training.ranks import find_ranks
from af.training.signals import LeaveAtOnce
from af.training.switches import switch
from af.training.throughput import Throughput

#: Lightning's precisions that the stages are made for, by the names that it takes for them.
PRECISIONS: Final = {"auto": "auto", "32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"} | {
    name: name for name in ("32-true", "64-true", "16-mixed", "bf16-mixed")
}
#: Keys that say how a run is carried out and not what comes out of it: they may change when it goes on.
FREE: Final = (
    "run",
    "tags",
    "launch",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.log_every_n_steps",
    "data.workers",
    "data.cache_gb",
    "callbacks.progress",
    "callbacks.gradients",
    "callbacks.heartbeat",
    "callbacks.throughput",
)


def fit(
    folder: Path,
    module: LightningModule,
    data: LightningDataModule,
    *,
    config: Mapping[str, Any],
    command: Sequence[str],
    callbacks: Sequence[Callback],
    checkpoint_every_n_steps: int,
    keep_best: Mapping[str, Any] | None = None,
    activation_checkpointing: bool = False,
    compile: bool | str = False,
    precision: str | int = "32-true",
    **trainer_options: Any,
) -> Trainer:
    """Train until `max_steps`; a folder with a checkpoint is continued. The switches are for the module's `part`.

    Raises UserError when the folder belongs to a run of another configuration.
    """
    folder = Path(folder)
    _quiet()
    ranks = find_ranks()
    lightning_precision, why = trainer_precision(precision, str(trainer_options.get("accelerator", "auto")))
    if ranks.rank == 0:
        _claim(folder, config, command, lightning_precision)
        if why:
            print(f"precision: {lightning_precision} ({why})", flush=True)
    checkpoints = folder / "checkpoints"
    switch(getattr(module, config["part"]), activation_checkpointing=activation_checkpointing, compiled=compile)
    clocks = [callback.data for callback in callbacks if isinstance(callback, Throughput)]
    trainer = Trainer(
        profiler=clocks[0] if clocks else None,
        default_root_dir=folder,
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
        callbacks=[
            *callbacks,
            LeaveAtOnce(),
            ValidationLog(folder / "validation.jsonl"),
            *checkpointers(checkpoints, checkpoint_every_n_steps, keep_best),
        ],
        plugins=[SafeCheckpointIO(), ranks.environment()],
        max_epochs=-1,
        use_distributed_sampler=False,  # the plan already says who reads what
        enable_progress_bar=False,
        enable_model_summary=False,
        precision=lightning_precision,  # type: ignore[arg-type]
        check_val_every_n_epoch=None,
        **trainer_options,
    )
    resumed = str(checkpoints) if any(checkpoints.glob("*.ckpt")) else None
    start = time.monotonic()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None  # Lightning would end with 0, as if all were done
    except SystemExit:
        if trainer.interrupted:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
        raise
    if ranks.rank == 0:
        write_json(folder / "done.json", {"steps": trainer.global_step, "seconds": time.monotonic() - start})
    return trainer


def trainer_precision(wanted: str | int, accelerator: str) -> tuple[str, str]:
    """Lightning's name for a precision, and where it is worth a line, the reason: `auto` takes bf16-mixed where the
    accelerator is fast in it and 32-true elsewhere, and bf16-mixed that was asked for may be slow. UserError for others.
    """
    if str(wanted) not in PRECISIONS:
        raise UserError(f"trainer.precision: {wanted!r}; allowed: auto, 32-true, bf16-mixed, 16-mixed, 64-true")
    name = PRECISIONS[str(wanted)]
    if name not in ("auto", "bf16-mixed"):
        return name, ""
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = "cuda" if accelerator == "gpu" else accelerator
    chosen = choose("auto" if name == "auto" else "bf16", device)
    if name == "auto":
        return {"bf16": "bf16-mixed", "fp32": "32-true"}[chosen.name], chosen.reason
    return name, chosen.reason if "slow" in chosen.reason else ""


def _quiet() -> None:
    """Leave the console to the progress bar: no advertisements, no warnings about what is meant."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*LeafSpec.*", "Checkpoint directory .* exists", ".*does not have many workers.*"):
        warnings.filterwarnings("ignore", message=message)


def finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the run in `folder` has ended, with this configuration (but for what is `FREE`)."""
    return (folder / "done.json").is_file() and not changed(_read_json(folder / "config.json"), config)


def changed(known: Any, config: Mapping[str, Any]) -> list[str]:
    """The keys in which two configurations would give different runs."""
    different = _differences(known, _plain(config))
    return sorted(key for key in different if not any(key == free or key.startswith(f"{free}.") for free in FREE))


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


def _claim(folder: Path, config: Mapping[str, Any], command: Sequence[str], precision: str) -> None:
    known = _read_json(folder / "config.json")
    if known is not None and (different := changed(known, config)):
        raise UserError(
            f"{folder} holds a run with another configuration (different: {', '.join(different[:8])}); "
            "choose another run=FOLDER, or delete that one"
        )
    write_json(folder / "config.json", _plain(config))
    write_json(folder / "environment.json", {**environment(command), "precision": precision})


def _plain(config: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(config))


def _differences(a: Any, b: Any, prefix: str = "") -> set[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return set().union(
            *(_differences(a.get(k), b.get(k), f"{prefix}.{k}" if prefix else k) for k in a.keys() | b.keys())
        )
    return set() if a == b else {prefix}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
