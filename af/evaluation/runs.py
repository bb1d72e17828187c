"""Finds evaluated runs below some folders and says how they differ: what `af report` makes a table of."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from af.cli.jobs import LEDGER, Job, ledger_states
from af.errors import UserError
from af.files import read_json

METRICS: Final = "metrics.json"


@dataclass(frozen=True)
class Run:
    """An evaluation, or a job of a sweep that has none yet (`metrics` None): settings, configuration, commands."""

    folder: Path
    settings: Mapping[str, Any]
    config: Mapping[str, Any]
    commands: tuple[str, ...]
    state: str
    metrics: Mapping[str, Any] | None = None

    @property
    def seed(self) -> Any:
        """The run's seed, where it is known."""
        return next((v for k, v in self.settings.items() if k.rpartition(".")[2] == "seed"), None)

    def has_come_to(self, key: str) -> bool:
        """Whether its configuration says something about a key, if only that it is not set."""
        return key in self.config or (bool(self.config) and self.metrics is not None)


@dataclass
class Group:
    """Runs that differ in their seed alone, under the name of what they share."""

    name: str
    runs: list[Run] = field(default_factory=list)


def gather(places: Sequence[Path], tag: str | None = None) -> list[Run]:
    """Every evaluation below `places`, and every job of a sweep there that has none. With `tag`, runs that carry it.

    UserError for a place that does not exist, or when nothing is found.
    """
    for place in places:
        if not place.exists():
            raise UserError(f"{place}: no such folder")
    jobs = {folder.resolve(): folder for place in places for folder in _jobs(place)}
    runs = [run for folder in sorted(jobs.values()) for run in _job_runs(folder)]
    known: set[Path] = set()
    for place in places:
        for file in sorted(place.rglob(METRICS)):
            whole = file.resolve()
            if whole not in known and not jobs.keys() & set(whole.parents) and _is_evaluation(file):
                known.add(whole)
                runs.append(_plain_run(file, place))
    if tag is not None:
        runs = [run for run in runs if tag in _tags(run)]
    if not runs:
        what = f" with the tag {tag!r}" if tag is not None else ""
        raise UserError(f"no evaluation{what} below {', '.join(map(str, places))}; `af evaluate` makes them")
    return runs


def grouped(runs: Iterable[Run]) -> list[Group]:
    """Runs by what they share: settings of sweeps but the seed, and what else differs between runs of one name.

    Folders and hashes, which differ between seeds, tell nothing unless they differ between runs of one seed, too.
    """
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(_name(run.settings) or run.folder.as_posix(), []).append(run)
    groups: dict[str, Group] = {}
    for name, members in by_name.items():
        keys = distinguishing(members, telling)
        alike: dict[str, list[Run]] = {}
        for run in members:
            alike.setdefault(_with_values(name, run, keys), []).append(run)
        for full, repeated in alike.items():
            places = _contradictions(repeated)
            for run in repeated:
                whole = _with_values(full, run, places)
                groups.setdefault(whole, Group(whole)).runs.append(run)
    return list(groups.values())


def _with_values(name: str, run: Run, keys: Sequence[str]) -> str:
    return ", ".join([name, *(f"{key}={_short(run.config.get(key))}" for key in keys if run.has_come_to(key))])


def _contradictions(runs: Sequence[Run]) -> list[str]:
    """Keys, of folders too, whose values differ between runs of one seed: such runs do not repeat each other."""
    by_seed: dict[str, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(json.dumps(run.seed), []).append(run)
    return sorted({key for same in by_seed.values() for key in distinguishing(same, _but_seed)})


def _but_seed(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if _last(key) not in ("seed", "run", "denoiser")}


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all configurations."""
    keys = sorted({key for config in configs for key in config})
    return [key for key in keys if len({json.dumps(config.get(key)) for config in configs}) > 1]


def distinguishing(runs: Sequence[Run], config: Callable[[Run], Mapping[str, Any]]) -> list[str]:
    """Keys that are not the same in all runs. Of a job that has not ended, what it has not come to yet tells nothing."""
    keys = set(differing([config(run) for run in runs if run.config and run.metrics is not None]))
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in config(run).items():
            values.setdefault(key, set()).add(json.dumps(value))
    return sorted(keys | {key for key, found in values.items() if len(found) > 1})


def _jobs(place: Path) -> list[Path]:
    return [
        file.parent for file in ([place / "job.json"] if (place / "job.json").is_file() else place.rglob("job.json"))
    ]


def _job_runs(folder: Path) -> list[Run]:
    job = Job.read(folder)
    state = ledger_states(folder.parent / LEDGER).get(folder.name, "to do")
    commands = tuple(f"af {shlex.join(arguments)}" for arguments in job.stages.values())
    evaluations = [file for file in sorted(folder.rglob(METRICS)) if _is_evaluation(file)]
    found = []
    for file in evaluations:
        more = {"evaluation": file.parent.relative_to(folder).as_posix()} if len(evaluations) > 1 else {}
        config = _configs(folder, file)
        found.append(Run(file.parent, {**job.settings, **more}, config, commands, state, read_json(file)))
    return found or [Run(folder, job.settings, _configs(folder, None), commands, state)]


def _plain_run(file: Path, place: Path) -> Run:
    """An evaluation outside of sweeps: configuration and command of the runs beside it."""
    top = file.parent.parent if file.parent != place else file.parent
    environments = sorted(top.glob("*/environment.json"))
    commands = tuple(shlex.join(read_json(e)["command"]) for e in environments)
    return Run(file.parent, {}, _configs(top, file), commands, "finished", read_json(file))


def _is_evaluation(file: Path) -> bool:
    """Whether it is one of its own, not a row of `af evaluate --conditions all`."""
    in_table = file.parent.parent.name == "conditions" and "signals" in read_json(file)
    return (file.parent / "metrics.md").is_file() and not in_table


def _configs(folder: Path, metrics: Path | None) -> dict[str, Any]:
    """Configurations of the trainings in a folder and of the evaluation, flat: {"denoiser/module.lr": 1e-4, …}."""
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*/config.json")):
        found |= flat(read_json(file), f"{file.parent.name}/")
    if metrics is not None and (metrics.parent / "evaluation.json").is_file():
        found |= flat(read_json(metrics.parent / "evaluation.json"), "evaluation/")
    return found


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    if not isinstance(value, Mapping):
        return {prefix.rstrip("."): value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}{key}.")
    return found


def telling(run: Run) -> dict[str, Any]:
    """The configuration without what always differs: seeds, folders, hashes."""
    return {
        key: value
        for key, value in run.config.items()
        if _last(key) not in ("seed", "run", "denoiser", "autoencoder", "data")
        and not (isinstance(value, str) and "/" in value)
    }


def _last(key: str) -> str:
    return key.rpartition(".")[2].rpartition("/")[2]


def require_one_tracker(runs: Sequence[Run]) -> None:
    """UserError when faces were read in more than one way: numbers of two trackers do not go into one table."""
    read_by = {str(by): run.folder for run in runs if (by := run.config.get("evaluation/faces")) is not None}
    if len(read_by) > 1:
        found = "".join(f"\n  {tracker}: {folder}" for tracker, folder in sorted(read_by.items()))
        raise UserError(f"faces were read by several trackers, whose numbers do not go into one table:{found}")


def _tags(run: Run) -> list[str]:
    return [t for key, value in run.config.items() if key.endswith("/tags") for t in value]


def _name(settings: Mapping[str, Any]) -> str:
    parts = [f"{k}={_short(v)}" for k, v in settings.items() if k.rpartition(".")[2] != "seed"]
    return ", ".join(parts) or ("all" if settings else "")


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
