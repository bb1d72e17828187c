"""`af train … -m`: a plain Hydra multirun whose jobs are `af train` on their own resolved configurations.

Hydra's launchers may run several jobs in one process, successively or in parallel, but a training leaves ranks, ports
and threads behind in its process. So the task of a job starts a process and waits for it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from af.cli.child import sigterm_ends, started
from af.cli.config import compose, config_folder, register_resolvers, resolve, searched
from af.errors import UserError, did_you_mean
from af.evaluation.runs import JOB, METRICS
from af.files import read_json, read_lines, write_json
from af.training.ranks import find_ranks

LOG: Final = "log.txt"


def sweeps(word: str) -> bool:
    """Whether an override names several values."""
    return (override := _parsed(word)) is not None and override.is_sweep_override()


def multirun(overrides: Sequence[str], config_dir: Path | None) -> None:
    """Run a job for each combination of values, by the launcher and sweeper in the configuration.

    Raises UserError before any job if one does not compose, and after all jobs if one failed.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    if find_ranks().launcher is not None:
        raise UserError("a multirun is started once, not by every rank: run `af train -m` without torchrun or srun")
    first = [first_value(word) for word in overrides]
    config = compose("train", [word for word in first if word], config_dir, hydra_too=True)
    flags = {word[2:] for word in config.hydra.overrides.task if word.startswith("++")}  # of Lightning's Trainer
    words = [f"++{word}" if one in flags else word for word, one in zip(overrides, first, strict=True)]
    swept = [*(config.hydra.sweeper.get("params") or {}), *(_key(word) for word in words if sweeps(word))]
    # a job's folder is named after what differs between jobs
    fixed = [key for key in map(_key, words) if key not in swept and not key.startswith("hydra")]
    words += searched(config_dir)
    words.append(f"hydra.job.config.override_dirname.exclude_keys={[*dict.fromkeys(fixed)]}".replace("'", '"'))
    GlobalHydra.instance().clear()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed with their traceback
    argv, sys.argv = sys.argv, [sys.argv[0], "--multirun", *words]
    try:
        with sigterm_ends():
            hydra.main(version_base="1.3", config_path=str(config_folder().resolve()), config_name="train")(job)()
    except (HydraException, RuntimeError, ValueError) as error:  # what a launcher or sweeper cannot do
        raise UserError(f"the multirun: {' '.join(str(error).split())}") from error
    finally:
        sys.argv = argv


def job(config: Any) -> float | None:
    """Train, export and evaluate what one job's configuration describes; returns its `objective`, None without one.

    A finished job returns at once, a stopped one continues. Raises UserError with the job's last line when it fails.
    """
    from hydra.core.hydra_config import HydraConfig

    register_resolvers()
    here = HydraConfig.get()
    config.run = os.path.normpath(os.path.join(here.sweep.dir, here.sweep.subdir))
    plain, folder = resolve(config), Path(config.run)
    if not _finished(folder, plain):
        words = [word for word in here.overrides.task if _key(word) != "run"]
        fixed = here.job.config.override_dirname.exclude_keys
        swept = {_key(word): word.partition("=")[2] for word in words if _key(word) not in fixed}
        command = ["af", "train", *words, f"run={folder}"]
        write_json(folder / JOB, {"swept": swept, "command": command, "config": plain})
        _train(folder / JOB, folder)
        print(f"finished: {folder}", flush=True)
    return None if plain["objective"] is None else objective(folder, plain["objective"])


def objective(folder: Path, name: str) -> float:
    """A number of a run's evaluation, or of its last validation. UserError when it has no such number."""
    found: dict[str, Any] = {}
    for line in read_lines(folder / "validation.jsonl"):
        found |= line
    if (evaluation := folder / "evaluation" / METRICS).is_file():
        found |= read_json(evaluation)
    known = [key for key, value in found.items() if isinstance(value, int | float)]
    if name not in known:
        raise UserError(
            f"objective={name}: neither evaluation nor validation of {folder} has it{did_you_mean(name, known)}"
        )
    return float(found[name])


def _finished(folder: Path, config: dict[str, Any]) -> bool:
    """Whether nothing is left to do, by a look at the files alone; what looks otherwise is `af train`'s to judge."""
    done, evaluated = folder / "done.json", folder / "evaluation" / METRICS
    if not done.is_file() or read_json(folder / "config.json") != config:
        return False
    return not config.get("evaluation") or (evaluated.is_file() and evaluated.stat().st_mtime >= done.stat().st_mtime)


def _train(file: Path, folder: Path) -> None:
    with open(folder / LOG, "ab") as log, started(["train", "--resolved", str(file)], log) as process:
        code = process.wait()
    if code:
        last = f"ended with {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
        if code > 0 and (said := (folder / LOG).read_text("utf-8", "replace").strip()):
            last = said.splitlines()[-1].removeprefix("af train: ")
        everything = (
            f"{folder / LOG} has everything; finished jobs are kept, the same command continues with the others"
        )
        raise UserError(f"{folder}: {last} ({everything})")


def _parsed(word: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None  # what is wrong with it is said when it is composed


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def first_value(word: str) -> str | None:
    """An override with the first of its values; None for a pattern, whose values Hydra alone knows."""
    override = _parsed(word)
    if override is None or not override.is_sweep_override():
        return word
    if override.value_type.name == "GLOB_CHOICE_SWEEP":
        return None
    discrete = override.is_discrete_sweep()
    value = next(iter(override.sweep_string_iterator())) if discrete else override.value().start
    return f"{override.get_key_element()}={value}"
