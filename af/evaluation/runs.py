"""Evaluated runs below folders, how they differ, and the table of `af report`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from af.errors import UserError
from af.files import flat, read_json

if TYPE_CHECKING:
    from af.evaluation.comparison import Comparison

METRICS: Final = "metrics.json"
#: Name of the file that marks a job of a multirun.
JOB: Final = "job.json"


@dataclass(frozen=True)
class Run:
    """An evaluation, or a job of a multirun without one yet (`metrics` None).

    `swept` are the overrides that name a job, `config` is the flat configuration, `commands` made the run.
    """

    folder: Path
    swept: Mapping[str, Any]
    config: Mapping[str, Any]
    commands: tuple[str, ...] = ()
    metrics: Mapping[str, Any] | None = None

    @property
    def seed(self) -> Any:
        """The run's seed, if known."""
        return next((v for k, v in self.swept.items() if _last(k) == "seed"), self.config.get("seed"))

    def has_come_to(self, key: str) -> bool:
        """Whether its configuration contains a key, even as unset."""
        return key in self.config or (bool(self.config) and self.metrics is not None)


def find_runs(places: Sequence[Path], tag: str | None = None) -> list[Run]:
    """All evaluations below `places`, and jobs of multiruns without one; with `tag`, only runs with this tag.

    Raises UserError for a missing folder, or when nothing is found.
    """
    for place in places:
        if not place.exists():
            raise UserError(f"{place}: no such folder")
    found = {file.resolve(): file.parent for place in places for file in sorted(place.rglob(METRICS))}
    evaluations = [folder for folder in found.values() if _is_evaluation(folder)]
    homes = [_home(folder) for folder in evaluations]
    several = {home for home in homes if home is not None and homes.count(home) > 1}
    runs = []
    for folder, home in zip(evaluations, homes, strict=True):
        more = {"evaluation": folder.relative_to(home).as_posix()} if home in several and home is not None else {}
        runs.append(_run(folder, home, more))
    evaluated = {home.resolve() for home in homes if home is not None}
    jobs = {file.parent.resolve(): file.parent for place in places for file in sorted(place.rglob(JOB))}
    runs += [_run(folder, folder, {}) for whole, folder in jobs.items() if whole not in evaluated]
    if tag is not None:
        runs = [run for run in runs if tag in _tags(run)]
    if not runs:
        what = f" with the tag {tag!r}" if tag is not None else ""
        raise UserError(f"no evaluation{what} below {', '.join(map(str, places))}; `af evaluate` makes them")
    return runs


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """{name: runs that differ only in their seed}, named by swept and other differing values.

    Folders and hashes differ between seeds, so they count only if they also differ between runs of one seed.
    """
    groups: dict[str, list[Run]] = {}
    for name, members in _by(runs, lambda run: _name(run.swept) or run.folder.as_posix()).items():
        keys = distinguishing(members)
        for full, alike in _by(members, lambda run: _with_values(name, run, keys)).items():  # noqa: B023
            same_seed = _by(alike, lambda run: json.dumps(run.seed)).values()
            places = sorted({key for same in same_seed for key in distinguishing(same, places=True)})
            for run in alike:
                groups.setdefault(_with_values(full, run, places), []).append(run)
    return groups


def _by(runs: Iterable[Run], key: Callable[[Run], str]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found


def _with_values(name: str, run: Run, keys: Sequence[str]) -> str:
    return ", ".join([name, *(f"{key}={_short(run.config.get(key))}" for key in keys if run.has_come_to(key))])


def distinguishing(runs: Sequence[Run], *, places: bool = False) -> list[str]:
    """Keys with different values, except seeds and names of runs; with `places` also folders and hashes. Keys that an
    unfinished job does not have yet are ignored.
    """
    found: dict[str, set[str]] = {}
    for run in runs:
        for key in {key for other in runs for key in other.config}:
            if run.has_come_to(key) and (places or not _is_place(key, run.config.get(key))):
                found.setdefault(key, set()).add(json.dumps(run.config.get(key)))
    return sorted(k for k, values in found.items() if len(values) > 1 and _last(k) not in ("seed", "run", "denoiser"))


def _is_place(key: str, value: Any) -> bool:
    return _last(key) in ("autoencoder", "data") or (isinstance(value, str) and "/" in value)


def _is_evaluation(folder: Path) -> bool:
    """Whether it is a separate evaluation, not a row of one over all subsets of the signals."""
    in_table = folder.parent.name == "conditions" and "signals" in read_json(folder / METRICS)
    return (folder / "metrics.md").is_file() and not in_table


def _home(evaluation: Path) -> Path | None:
    """The folder of an evaluation's run, at most two levels up."""
    parents = [evaluation.parent, evaluation.parent.parent]
    return next((folder for folder in parents if any((folder / name).is_file() for name in ("config.json", JOB))), None)


def _run(folder: Path, home: Path | None, more: Mapping[str, Any]) -> Run:
    """Read a run; an evaluation outside a run has the configurations and commands of the runs beside it."""
    homes = {f"{file.parent.name}/": file.parent for file in sorted(folder.parent.glob("*/config.json"))}
    if home is not None:
        homes = {"": home}
    config: dict[str, Any] = {}
    commands = []
    for prefix, run in homes.items():
        if (file := run / "config.json").is_file():
            config |= flat(read_json(file), prefix)
        if (file := run / "environment.json").is_file():
            commands.append(shlex.join(read_json(file)["command"]))
    if (file := folder / "evaluation.json").is_file():
        config |= flat(read_json(file), "evaluation/")
    job = read_json(home / JOB) if home is not None and (home / JOB).is_file() else {"swept": {}}
    metrics = read_json(folder / METRICS) if (folder / METRICS).is_file() else None
    return Run(folder, {**job["swept"], **more}, config, tuple(commands), metrics)


def _last(key: str) -> str:
    return key.rpartition(".")[2].rpartition("/")[2]


def require_one_tracker(runs: Sequence[Run]) -> None:
    """Raise UserError for more than one face tracker, whose numbers are not comparable."""
    read_by = {str(by): run.folder for run in runs if (by := run.config.get("evaluation/faces")) is not None}
    if len(read_by) > 1:
        found = "".join(f"\n  {tracker}: {folder}" for tracker, folder in sorted(read_by.items()))
        raise UserError(f"faces were read by several trackers, whose numbers are not comparable:{found}")


def _tags(run: Run) -> list[str]:
    return [tag for key, value in run.config.items() if _last(key) == "tags" for tag in value]


def _name(swept: Mapping[str, Any]) -> str:
    parts = [f"{key}={_short(value)}" for key, value in swept.items() if _last(key) != "seed"]
    return ", ".join(parts) or ("all" if swept else "")


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def write_runs(out: Path, runs: Sequence[Run], title: str, tags: Sequence[str] | None = None) -> Comparison:
    """Write the table of runs (`write_comparison`), with what differs between their settings and the commands of each.

    `tags` are the columns (None: the headlines). Raises UserError for faces read by several trackers.
    """
    from af.evaluation.comparison import Comparison, Setting, write_comparison
    from af.evaluation.table import markdown

    require_one_tracker(runs)
    groups = grouped(runs)
    settings = [Setting(name, tuple(r.metrics for r in group if r.metrics)) for name, group in groups.items()]
    differences = {key: {name: _values(group, key) for name, group in groups.items()} for key in distinguishing(runs)}
    text, commands, records = "", "", []
    if missing := [run for run in runs if run.metrics is None]:
        text += f"\n## Without numbers yet: {len(missing)} of {len(runs)}\n\n"
        text += "".join(f"- `{run.folder}`\n" for run in missing)
    if differences:
        rows = (
            [f"`{key}`", *(", ".join(map(str, v)) or "–" for v in found.values())] for key, found in differences.items()
        )
        text += f"\n## What differs\n\n{markdown(['', *groups], rows, range(len(groups) + 1))}"
    for name, group in groups.items():
        for run in group:
            known = {
                "swept": dict(run.swept),
                "commands": list(run.commands),
                "metrics": run.metrics and dict(run.metrics),
            }
            records.append({"setting": name, "folder": str(run.folder), "seed": run.seed, **known})
            if run.commands:
                commands += f"\n{name}, seed {run.seed}:\n\n```sh\n" + "\n".join(run.commands) + "\n```\n"
    text += f"\n## Commands\n{commands}" if commands else ""
    comparison = Comparison.of(settings, tags)
    write_comparison(out, comparison, title, text=text, content={"runs": records, "config_differences": differences})
    return comparison


def _values(runs: Sequence[Run], key: str) -> list[Any]:
    values = [run.config.get(key) for run in runs if run.has_come_to(key)]
    return [value for i, value in enumerate(values) if value not in values[:i]]
