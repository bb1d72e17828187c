"""Start or continue one training run in its folder.

A run folder holds `config.json` (resolved), `environment.json`, `checkpoints/` (the newest whole one is continued from),
`tensorboard/` and, at the end, `export/` (the model folder other commands read) and `done.json`.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from af.errors import UserError
from af.files import write_json
from af.training.callbacks import ValidationLog
from af.training.checkpoints import SafeCheckpointIO, checkpointers
from af.training.signals import LeaveAtOnce


def fit(
    folder: Path,
    module: LightningModule,
    data: LightningDataModule,
    *,
    config: Mapping[str, Any],
    callbacks: Sequence[Callback],
    checkpoint_every_n_steps: int,
    keep_best: Mapping[str, Any] | None = None,
    **trainer_options: Any,
) -> Trainer:
    """Train until `max_steps`; a folder with a checkpoint is continued, a finished one returns at once.

    Raises UserError when the folder belongs to a run of another configuration.
    """
    folder = Path(folder)
    _quiet()
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
    if rank == 0:
        _claim(folder, config)
    checkpoints = folder / "checkpoints"
    trainer = Trainer(
        default_root_dir=folder,
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
        callbacks=[
            *callbacks,
            LeaveAtOnce(),
            ValidationLog(folder / "validation.jsonl"),
            *checkpointers(checkpoints, checkpoint_every_n_steps, keep_best),
        ],
        plugins=[SafeCheckpointIO()],
        max_epochs=-1,
        use_distributed_sampler=False,  # the plan already says who reads what
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=None,
        **trainer_options,
    )
    resumed = str(checkpoints) if any(checkpoints.glob("*.ckpt")) else None
    start = time.monotonic()
    trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if rank == 0:
        write_json(folder / "done.json", {"steps": trainer.global_step, "seconds": time.monotonic() - start})
    return trainer


def _quiet() -> None:
    """Leave the console to the progress bar: no advertisements, no warnings about what is meant."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*LeafSpec.*", "Checkpoint directory .* exists", ".*does not have many workers.*"):
        warnings.filterwarnings("ignore", message=message)


def finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the run in `folder` has ended, with this very configuration."""
    return (folder / "done.json").is_file() and _read_json(folder / "config.json") == _plain(config)


def environment() -> dict[str, Any]:
    """Versions, commit and command: what one needs to know to run the same again."""
    packages = ["torch", "lightning", "torchmetrics", "transformers", "webdataset", "hydra-core", "numpy", "av"]
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_diff": _git("diff", "HEAD"),
        "cpu_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _claim(folder: Path, config: Mapping[str, Any]) -> None:
    known = _read_json(folder / "config.json")
    if known is not None and known != _plain(config):
        changed = sorted(_differences(known, _plain(config)))
        raise UserError(
            f"{folder} holds a run with another configuration (different: {', '.join(changed[:8])}); "
            "choose another run=FOLDER, or delete that one"
        )
    write_json(folder / "config.json", _plain(config))
    write_json(folder / "environment.json", environment())


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
