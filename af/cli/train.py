"""Train one stage: the motion VAE or the denoiser.

An experiment of conf/experiment/ says everything; any value can be overridden:

  af train experiment=vae_demo run=runs/vae data.root=data/demo
  af train experiment=denoiser_demo run=runs/denoiser data.root=data/demo-latents module.lr=3e-4

The run folder holds the resolved configuration, checkpoints, TensorBoard files and, at the end, export/ (the model that
`af encode`, `af generate` and `af evaluate` read). Ctrl-C (or SIGTERM) finishes the step at hand and saves it; the same
command goes on from there. What does not change the training may change then, and a larger trainer.max_steps makes it
longer, a finished one too; history.jsonl in the folder has a line for each start. start=FOLDER begins a new training
with the weights of a model. trainer.fast_dev_run=true tries a few steps and leaves nothing behind.

Several trainings, a process each: `af train experiment=denoiser_demo -m seed=0,1,2 module.lr=1e-4,3e-4` is a multirun of
Hydra's (docs/cluster.md). Each job has a folder in runs/NAME, named after its values. The same command goes on with what
is not finished; `af report runs/NAME` puts the numbers into one table.

Several GPUs: `trainer=ddp trainer.devices=4` composes once and starts four ranks with torchrun. Several machines: start
`torchrun --nnodes ... -m af.cli.main train ... trainer=ddp trainer.devices=8 trainer.num_nodes=2` on each of them, or
the ranks themselves with srun (docs/cluster.md).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from af.cli.config import add_config_arguments, compose, instantiate, resolve, to_yaml
from af.cli.keys import require_parts
from af.cli.multirun import multirun, sweeps
from af.cli.typed import require_types
from af.errors import UserError
from af.files import exclusive, read_json, write_json
from af.values import LARGEST_SEED, require_number

#: What is said after Ctrl-C.
WHEN_INTERRUPTED = "a run with a checkpoint goes on from it, another one starts anew"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af train`."""
    add_config_arguments(parser)
    parser.add_argument("-m", "--multirun", action="store_true", help="a training for each combination of values (a,b)")
    parser.add_argument("--resolved", type=Path, help=argparse.SUPPRESS)  # what started ranks and jobs read


def run(args: argparse.Namespace) -> int:
    """Compose, check, train (or say that it is done)."""
    from af.training.ranks import check_ranks, find_ranks, ranks_per_node

    if args.multirun:
        multirun(args.overrides, args.config_dir)
        return 0
    ranks = find_ranks()
    if args.resolved is not None:
        started = read_json(args.resolved)
        plain, command = started["config"], started["command"]
    else:
        if several := [word for word in args.overrides if sweeps(word)]:
            raise UserError(
                f"{several[0]}: a training has one value; `af train -m …` runs one a value, in processes of their own "
                "(a list is written key=[a,b])"
            )
        config = compose("train", args.overrides, args.config_dir)
        if args.print_config:
            print(to_yaml(config), end="")
            return 0
        plain, command = resolve(config), sys.argv
    require_parts(plain)
    check_ranks(plain["trainer"], ranks)
    devices = ranks_per_node(plain["trainer"])
    if devices > 1 and ranks.launcher is None:
        _start_ranks(plain, command, devices)
    return train(plain, command, held=args.resolved is not None and ranks.launcher == "torchrun")


def train(config: dict[str, Any], command: Sequence[str], held: bool = False) -> int:
    """Train what a resolved configuration describes, in this process; one at a time in a folder, unless that is `held`."""
    from af.training.claim import finished
    from af.training.ranks import find_ranks

    _check(config)
    if config["trainer"].get("fast_dev_run"):
        return _smoke(config, command)
    ranks, folder = find_ranks(), Path(config["run"])
    if held or ranks.rank > 0:  # torchrun, or the first one, holds the folder for all
        return _train(config, command)
    before = finished(folder, config)
    with _alone(folder):
        if ranks.world > 1 and not before and finished(folder, config):
            raise UserError(f"{folder} was finished by another process meanwhile")  # the other ranks go on: end them
        return _train(config, command)


def _smoke(config: dict[str, Any], command: Sequence[str]) -> int:
    """A few steps that claim nothing, and leave nothing that looks trained."""
    with tempfile.TemporaryDirectory() as folder:
        return _train({**config, "run": folder}, command, kept=False)


def _check(config: dict[str, Any]) -> None:
    """UserError for values that can be judged before anything is made."""
    from af.training import launch
    from af.training.ranks import check_ranks, find_ranks

    check_ranks(config["trainer"], find_ranks())
    launch.check(config)
    try:
        require_number("seed", config["seed"], least=0, most=LARGEST_SEED, whole=True)
    except ValueError as error:
        raise UserError(str(error)) from error
    if config["matmul_precision"] not in ("highest", "high", "medium"):
        raise UserError(f"matmul_precision={config['matmul_precision']}: give highest, high or medium")
    for name in ("model", "features", "loss"):  # under the names that people give them, not where they are put
        require_types(config.get(name), name)


def _train(config: dict[str, Any], command: Sequence[str], kept: bool = True) -> int:
    import torch

    from af.data.provenance import with_earlier_people
    from af.models.artifact import model_info
    from af.training import launch
    from af.training.callbacks import Export
    from af.training.claim import finished

    folder = Path(config["run"])
    if finished(folder, config):
        longer = f"trainer.max_steps={2 * config['trainer']['max_steps']}"
        made = folder / "export"
        again = "" if made.is_dir() else f"; af export {folder} --out {made} makes its model folder again"
        print(f"{folder} is finished; {longer}, say, trains it on, start={made} another run=FOLDER{again}")
        return 0
    callbacks = _callbacks(config["callbacks"])
    torch.set_float32_matmul_precision(config["matmul_precision"])
    # weights start from the seed, under a forked random state: nothing else is reseeded
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        module = instantiate(config["module"], "module")
    if not isinstance(getattr(module, config["part"], None), torch.nn.Module):
        raise UserError(f"part={config['part']}: {type(module).__name__} has no network of this name")
    data = instantiate(config["data"], "data")
    info = {"stage": config["stage"], **{k: config[k] for k in ("features",) if k in config}, **data.provenance()}
    start = config.get("start") or config["module"].get("start")
    info = with_earlier_people(info, model_info(start) if start else None)
    export = Export(folder / "export", config["part"], config["model"], info)
    trainer = launch.fit(
        folder,
        module,
        data,
        config=config,
        command=command,
        callbacks=[*callbacks, export],
        **config["launch"],
        **instantiate(config["trainer"], "trainer"),
    )
    if trainer.global_rank == 0:
        where = f"model in {folder / 'export'}" if kept else "a smoke run (trainer.fast_dev_run): nothing is kept"
        print(f"trained to step {trainer.global_step}; {where}")
        if kept and not finished(folder, config):
            print("its time was over (trainer.max_time); the same command goes on")
    return 0


def _callbacks(configs: Any) -> list[Any]:
    """The callbacks of a configuration; those that are null are left out. UserError for what is none."""
    if not isinstance(configs, dict):
        raise UserError(f"callbacks={configs}: give callbacks by name; callbacks.NAME=null leaves one out")
    found = []
    for name, config in configs.items():
        if config is None:
            continue
        callback = (
            instantiate(config, f"callbacks.{name}") if isinstance(config, dict) and "_target_" in config else None
        )
        if not hasattr(callback, "on_train_batch_end"):
            raise UserError(f"callbacks.{name}: give the _target_ of a Lightning callback and its settings, or null")
        found.append(callback)
    return found


def _alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the run's folder."""
    return exclusive(
        folder / "lock", waiting=lambda: print(f"{folder} is being trained by another process; waiting"), children=True
    )


def _start_ranks(config: dict[str, Any], command: Sequence[str], devices: int) -> None:
    """Replace this process by torchrun on the resolved configuration: it is composed once, by one process."""
    resolved = Path(config["run"]) / "launch.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    with _alone(Path(config["run"])):  # torchrun holds the lock on
        write_json(resolved, {"command": command, "config": config})
        sys.stdout.flush()
        os.execv(sys.executable, [*torchrun, "-m", "af.cli.main", "train", "--resolved", str(resolved)])
