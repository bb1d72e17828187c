"""Train one stage: the motion VAE, the denoiser, its preference stage or a student of few steps.

An experiment defines all values; any value can be overridden, and any group chosen by name:

  af train experiment=vae_demo run=runs/vae data.root=data/demo
  af train experiment=denoiser_demo run=runs/denoiser data.root=data/demo-latents optimizer.lr=3e-4
  af train experiment=denoiser_demo logger=[tensorboard,csv] callbacks.ema=null debug=limit

The run folder holds the resolved configuration, checkpoints, what the loggers write and, at the end, export/ (the model
that `af encode`, `af generate` and `af evaluate` read); with evaluation=NAME also evaluation/, its numbers. Ctrl-C (or
SIGTERM) finishes and saves the current step; the same command continues from there. Options that do not change the
results may change then, and a larger trainer.max_steps prolongs a training, even a finished one (a schedule then
follows the new length); history.jsonl in the folder has a line for each start. start=FOLDER begins a new training with
the weights of a model. trainer.NAME=VALUE takes any option of Lightning's Trainer; debug=fast tries a few steps and
keeps nothing.

Several trainings, a process each: `af train experiment=denoiser_demo -m seed=0,1,2 optimizer.lr=1e-4,3e-4` is a
multirun of Hydra's (docs/cluster.md). Each job has a folder in runs/NAME, named after its values. The same command
continues unfinished jobs; `af report runs/NAME` puts the numbers into one table.

Several GPUs: `trainer=ddp trainer.devices=4` composes once and starts four ranks with torchrun. Several machines: start
`torchrun --nnodes ... -m af.cli.main train ... trainer=ddp trainer.devices=8 trainer.num_nodes=2` on each of them, or
the ranks themselves with srun (docs/cluster.md).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from af.cli.child import become_ranks
from af.cli.config import Configured, instantiate, instantiate_each, list_choices
from af.cli.keys import require_parts
from af.cli.multirun import multirun, sweeps
from af.cli.typed import require_types
from af.errors import UserError
from af.files import exclusive, read_json
from af.values import LARGEST_SEED, require_number

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "a run with a checkpoint continues from it, any other starts again"


def add_help(parser: argparse.ArgumentParser) -> None:
    """The help lists the experiments."""
    list_choices(parser, "experiment")


def run(
    config: Configured,
    *,
    several: Annotated[bool, "-m", "--multirun", "a training for each combination of values (a,b)"] = False,
    resolved: Annotated[Path | None, argparse.SUPPRESS] = None,  # what started ranks and jobs read
) -> int:
    """Compose, check, train (or say that it is done)."""
    from af.training.ranks import check_ranks, find_ranks, ranks_per_node

    if several:
        multirun(config.overrides, config.config_dir)
        return 0
    ranks = find_ranks()
    if resolved is not None:
        started = read_json(resolved)
        plain, command = started["config"], started["command"]
    else:
        if swept := [word for word in config.overrides if sweeps(word)]:
            raise UserError(
                f"{swept[0]}: a training has one value; `af train -m …` runs one a value, in processes of their own "
                "(a list is written key=[a,b])"
            )
        if (plain := config.resolved("train")) is None:
            return 0
        command = sys.argv
    require_parts(plain)
    check_ranks(plain["trainer"], ranks)
    devices = ranks_per_node(plain["trainer"])
    if devices > 1 and ranks.launcher is None:
        with _alone(folder := Path(plain["run"])):  # torchrun holds the lock on
            become_ranks(devices, folder / "launch.json", {"command": command, "config": plain}, "train", "--resolved")
    return train(plain, command, held=resolved is not None and ranks.launcher == "torchrun")


def train(config: dict[str, Any], command: Sequence[str], held: bool = False) -> int:
    """Train what a resolved configuration describes, in this process; one at a time in a folder, unless that is `held`."""
    from af.training.claim import finished
    from af.training.ranks import find_ranks

    _check(config)
    if config["trainer"].get("fast_dev_run"):
        with tempfile.TemporaryDirectory() as place:  # a few steps, which claim no folder and leave no results
            return _train({**config, "run": place, "logger": {}}, command, kept=False)
    ranks, folder = find_ranks(), Path(config["run"])
    if held or ranks.rank > 0:  # torchrun, or the first one, holds the folder for all
        return _train(config, command)
    before = finished(folder, config)
    with _alone(folder):
        if ranks.world > 1 and not before and finished(folder, config):
            raise UserError(f"{folder} was finished by another process meanwhile")  # the other ranks go on: end them
        return _train(config, command)


def _train(config: dict[str, Any], command: Sequence[str], kept: bool = True) -> int:
    import torch

    from af.models.artifact import ADAPTER
    from af.models.checkpoint import FOLDER
    from af.pipeline.sampling import plain_sampling
    from af.training.adapt import described
    from af.training.callbacks import Export, ValidationLog
    from af.training.claim import Claim, finished, recipe
    from af.training.compile import prepare
    from af.training.launch import finish, fit, make_trainer, over

    folder, evaluation = Path(config["run"]), _evaluation(config)
    if finished(folder, config):
        print(_what_now(config, folder))
        return evaluation()
    start = config.get("start") or config["module"].get("start")
    info: dict[str, Any] = {key: config[key] for key in ("stage", "features") if key in config}
    if said := _sampling(config, start):
        info["sampling"] = plain_sampling(said)
    if config.get("adapt"):
        info[ADAPTER] = described(config["adapt"])
    export = Export(config["part"], config["model"], {**info, "recipe": recipe(command)}, start)
    callbacks = [
        Claim(folder, config, command),
        *instantiate_each(config["callbacks"], "callbacks", "on_train_batch_end"),
        export,
        ValidationLog(folder / "validation.jsonl"),
        *instantiate(config["checkpoints"], "checkpoints", folder=folder / FOLDER),
    ]
    loggers = instantiate_each(config["logger"], "logger", "log_metrics")
    trainer = make_trainer(instantiate(config["trainer"], "trainer"), folder, callbacks=callbacks, loggers=loggers)
    torch.set_float32_matmul_precision(config["matmul_precision"])
    # weights start from the seed, under a forked random state: nothing else is reseeded
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        module = instantiate(config["module"], "module")
    if config["part"] == "denoiser":
        module.said = said
    prepare(
        module, config["part"], compile=config["compile"], activation_checkpointing=config["activation_checkpointing"]
    )
    data = instantiate(config["data"], "data")
    seconds = fit(trainer, module, data, folder)
    if trainer.global_rank == 0:
        export.write(trainer, module, folder / "export")
        done = finish(trainer, folder, seconds)
        where = f"model in {folder / 'export'}" if kept else "a smoke run (trainer.fast_dev_run): nothing is kept"
        print(f"trained to step {trainer.global_step}; {where}")
        if not done:
            print("its time was over (trainer.max_time); the same command continues")
    return evaluation() if kept and over(trainer) else 0


def _sampling(config: dict[str, Any], start: str | None) -> Mapping[str, Any]:
    """How the trained model will say that it is sampled: a student in its steps, others as the model that they start from."""
    from af.models.artifact import model_info
    from af.pipeline.sampling import ONE_PASS, inherited

    if config.get("stage") == "distill":
        return {**ONE_PASS, "steps": config["steps"]}
    return {} if start is None else inherited(model_info(start))


def _evaluation(config: dict[str, Any]) -> Callable[[], int]:
    """What measures the exported model, where the configuration says how: checked now, run at the end."""
    if not (asked := config.get("evaluation")):
        return lambda: 0
    from af.training.evaluation import evaluate, require_settings
    from af.training.ranks import ranks_per_node

    folder, trainer = Path(config["run"]), config["trainer"]
    settings = require_settings(instantiate(asked, "evaluation"), config["part"])
    device = "cpu" if trainer["accelerator"] == "cpu" else "auto"
    ranks = {"devices": ranks_per_node(trainer), "num_nodes": trainer["num_nodes"]}
    where = folder / "export", settings, folder / "evaluation"
    return lambda: evaluate(*where, device=device, request=asked, **ranks)


def _check(config: dict[str, Any]) -> None:
    """Raise UserError for values that can be checked before any work."""
    require_number("seed", config["seed"], least=0, most=LARGEST_SEED, whole=True)
    if config["matmul_precision"] not in ("highest", "high", "medium"):
        raise UserError(f"matmul_precision={config['matmul_precision']}: give highest, high or medium")
    # under the names that people give them, not where they are put
    for name in ("model", "features", "loss", "optimizer", "scheduler"):
        require_types(config.get(name), name)


def _what_now(config: dict[str, Any], folder: Path) -> str:
    """What may be done with a finished training."""
    made = folder / "export"
    again = "" if made.is_dir() else f"; af export {folder} --out {made} makes its model folder again"
    longer = f"trainer.max_steps={2 * config['trainer']['max_steps']}"
    return f"{folder} is finished; {longer}, say, trains it on, start={made} another run=FOLDER{again}"


def _alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the run's folder."""
    return exclusive(
        folder / "lock", waiting=lambda: print(f"{folder} is being trained by another process; waiting"), children=True
    )
