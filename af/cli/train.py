"""Train one stage: the motion VAE or the denoiser.

An experiment of conf/experiment/ says everything; any value can be overridden:

  af train experiment=vae_demo run=runs/vae data.root=data/demo
  af train experiment=denoiser_demo run=runs/denoiser data.root=data/demo-latents module.lr=3e-4

The run folder holds the resolved configuration, checkpoints, TensorBoard files and, at the end, export/ (the model that
`af encode`, `af generate` and `af evaluate` read). The same command continues a stopped run from its last checkpoint.

Several GPUs: `trainer=ddp trainer.devices=4` composes once and starts four ranks with torchrun. Several machines: start
`torchrun --nnodes ... -m af.cli.main train ... trainer=ddp trainer.devices=8 trainer.num_nodes=2` on each of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from af.cli.config import add_config_arguments, compose, instantiate, resolve, to_yaml
from af.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af train`."""
    add_config_arguments(parser)
    parser.add_argument("--resolved", type=Path, help=argparse.SUPPRESS)  # what the started ranks read


def run(args: argparse.Namespace) -> int:
    """Compose, check, train (or say that it is done)."""
    if args.resolved is not None:
        return train(json.loads(args.resolved.read_text()))
    config = compose("train", args.overrides, args.config_dir)
    if args.print_config:
        print(to_yaml(config), end="")
        return 0
    plain = resolve(config)
    devices = plain["trainer"]["devices"]
    if isinstance(devices, int) and devices > 1 and not _is_rank():
        _start_ranks(plain, devices)
    return train(plain)


def train(config: dict[str, Any]) -> int:
    """Train what a resolved configuration describes, in this process; one at a time in a folder."""
    from af.files import exclusive

    folder = Path(config["run"])
    _refuse_spawn(config["trainer"].get("strategy"))
    if _is_rank():
        return _train(folder, config)
    with exclusive(folder / "lock", waiting=lambda: print(f"{folder} is being trained by another process; waiting")):
        return _train(folder, config)


def _train(folder: Path, config: dict[str, Any]) -> int:
    import torch

    from af.training import launch
    from af.training.callbacks import Export

    if launch.finished(folder, config):
        print(f"{folder} is finished (delete {folder / 'done.json'} to train on)")
        return 0
    torch.set_float32_matmul_precision(config["matmul_precision"])
    # weights start from the seed, under a forked random state: nothing else is reseeded
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        module = instantiate(config["module"])
    data = instantiate(config["data"])
    callbacks = [instantiate(callback) for callback in config["callbacks"].values()]
    info = {"stage": config["stage"], **{k: config[k] for k in ("features",) if k in config}, **data.provenance()}
    export = Export(folder / "export", config["part"], config["model"], info)
    trainer = launch.fit(
        folder, module, data, config=config, callbacks=[*callbacks, export], **config["launch"], **config["trainer"]
    )
    if trainer.global_rank == 0:
        print(f"trained to step {trainer.global_step}; model in {folder / 'export'}")
    return 0


def _refuse_spawn(strategy: Any) -> None:
    """Strategies that start ranks by running this process again would start its sweep again as well."""
    if (
        isinstance(strategy, str)
        and strategy.startswith("ddp_")
        and strategy.removeprefix("ddp_").split("_")[0] in ("spawn", "fork", "notebook")
    ):
        raise UserError(f"trainer.strategy={strategy}: ranks are started by torchrun here; use trainer=ddp")


def _is_rank() -> bool:
    return "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ


def _start_ranks(config: dict[str, Any], devices: int) -> None:
    """Replace this process by torchrun on the resolved configuration: it is composed once, by one process."""
    from af.files import write_json

    if config["trainer"].get("num_nodes", 1) != 1:
        raise UserError(
            "trainer.num_nodes > 1: start `torchrun --nnodes ... -m af.cli.main train ...` on every machine"
        )
    resolved = Path(config["run"]) / "launch.json"
    write_json(resolved, config)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, "-m", "af.cli.main", "train", "--resolved", str(resolved)])
