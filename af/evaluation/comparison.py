"""Comparison of settings in one table: mean ± standard error, ground truth, null, best values marked."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from af.evaluation.table import markdown, number_text
from af.files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

#: The flat metrics of one run, as written by `af evaluate`: {tag: value, tag/true: …, tag/null: …}.
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """Mean over runs with the number, its standard error (None for a single run), and their count."""

    mean: float
    standard_error: float | None
    runs: int

    def text(self) -> str:
        """mean ± standard error."""
        if not self.runs:
            return "–"
        return number_text(self.mean) + (
            "" if self.standard_error is None else f" ± {number_text(self.standard_error)}"
        )


def cell(values: Sequence[float | None]) -> Cell:
    """Mean and standard error (ddof 1) of the finite values."""
    known = np.array([v for v in values if v is not None and math.isfinite(v)], np.float64)
    if not len(known):
        return Cell(math.nan, None, 0)
    error = float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else None
    return Cell(float(known.mean()), error, len(known))


@dataclass(frozen=True)
class Setting:
    """One row: a name and the metrics of its runs (one per seed); empty if none has finished."""

    name: str
    runs: tuple[Metrics, ...]


@dataclass(frozen=True)
class Comparison:
    """Settings by metrics. `better` is the better direction: lower, higher, or true (close to the ground truth)."""

    settings: tuple[Setting, ...]
    tags: tuple[str, ...]
    better: Mapping[str, str]

    @classmethod
    def of(cls, settings: Sequence[Setting], tags: Sequence[str] | None = None) -> Comparison:
        """A table with the columns `tags`; by default the headlines of any run."""
        runs = [run for setting in settings for run in setting.runs]
        better = {tag: way for run in runs for tag, way in run.get("better", {}).items()}
        headlines = dict.fromkeys(tag for run in runs for tag in run.get("headline", ()))
        return cls(tuple(settings), tuple(headlines if tags is None else tags), better)

    def cell(self, setting: Setting, tag: str) -> Cell:
        """The value of a setting for generated clips; the standard error is over runs, of a single run over its clips."""
        found = cell([run.get(tag) for run in setting.runs])
        own = setting.runs[0].get(f"{tag}/se") if len(setting.runs) == 1 else None
        return replace(found, standard_error=own) if found.runs and own is not None else found

    def side(self, tag: str, side: str) -> Cell:
        """The ground truth ("true") or the null of a metric, over all runs of all settings."""
        return cell([run.get(f"{tag}/{side}") for setting in self.settings for run in setting.runs])

    def best(self, tag: str) -> set[str]:
        """Names of the settings with the best mean, and of those within two standard errors (of the difference) of it;
        empty if the better direction is unknown.
        """
        cells = {s.name: c for s in self.settings if (c := self.cell(s, tag)).runs}
        direction, true = self.better.get(tag), self.side(tag, "true")
        if not cells or direction is None or (direction == "true" and not true.runs):
            return set()
        costs = {"lower": lambda v: v, "higher": lambda v: -v, "true": lambda v: abs(v - true.mean)}
        cost = {name: costs[direction](c.mean) for name, c in cells.items()}
        first = min(cost, key=cost.__getitem__)

        def as_good(name: str) -> bool:
            errors = [cells[n].standard_error or 0.0 for n in (name, first)]
            return cost[name] == cost[first] or cost[name] - cost[first] < 2 * math.hypot(*errors)

        return {name for name in cost if as_good(name)}

    def rows(self, mark: str = "{}") -> list[list[str]]:
        """Cells as text: name, runs, one per metric; ground truth and null last. `mark` encloses the best."""
        best = {tag: self.best(tag) for tag in self.tags}
        found = []
        for s in self.settings:
            texts = [(self.cell(s, tag).text(), s.name in best[tag]) for tag in self.tags]
            found.append([s.name, str(len(s.runs)), *(mark.format(t) if is_best else t for t, is_best in texts)])
        for name, side in (("ground truth", "true"), ("null", "null")):
            # these differ between runs only by their clips: no standard error over settings
            sides = [self.side(tag, side) for tag in self.tags]
            found.append([name, "", *(number_text(c.mean) if c.runs else "–" for c in sides)])
        return found

    def header(self) -> list[str]:
        """Names of the columns, with an arrow where lower or higher is better."""
        arrows = {"lower": " ↓", "higher": " ↑"}
        return ["setting", "runs", *(tag + arrows.get(self.better.get(tag, ""), "") for tag in self.tags)]

    def markdown(self) -> str:
        """The table in Markdown, the best in bold."""
        return markdown(self.header(), self.rows("**{}**"))

    def console(self, title: str | None = None) -> Table:
        """The table for the terminal, with settings as columns if they are fewer than the metrics."""
        from rich.table import Table

        columns = [self.header(), *self.rows("[bold]{}[/bold]")]
        table = Table(title=title)
        for number, column in enumerate(columns):
            table.add_column(column[0], justify="right" if number else "left", no_wrap=not number)
        for line in zip(*(column[1:] for column in columns), strict=True):
            table.add_row(*line)
        return table

    def records(self) -> list[dict[str, Any]]:
        """Numbers in long form, for CSV: setting, metric, mean, standard error, runs, ground truth, null, whether best."""
        found = []
        for tag in self.tags:
            best, true, null = self.best(tag), self.side(tag, "true"), self.side(tag, "null")
            for setting in self.settings:
                value = self.cell(setting, tag)
                found.append(
                    {
                        "setting": setting.name,
                        "metric": tag,
                        "mean": value.mean if value.runs else None,
                        "standard_error": value.standard_error,
                        "runs": value.runs,
                        "ground_truth": true.mean if true.runs else None,
                        "null": null.mean if null.runs else None,
                        "best": setting.name in best,
                    }
                )
        return found

    def figures(self) -> dict[str, Figure]:
        """One figure per metric: mean ± standard error and runs of every setting; ground truth and null as lines."""
        from matplotlib.figure import Figure

        figures = {}
        for tag in self.tags:
            figure = Figure(figsize=(7.0, 1.3 + 0.28 * len(self.settings)), layout="constrained")
            axes = figure.subplots()
            for y, setting in enumerate(self.settings):
                value = self.cell(setting, tag)
                if not value.runs:
                    continue
                each = [run[tag] for run in setting.runs if run.get(tag) is not None]
                axes.plot(each, [y] * len(each), ".", color="#9aa5b1", ms=5)
                axes.errorbar(value.mean, y, xerr=value.standard_error, fmt="o", color="#d1495b", ms=5, capsize=3)
            for side, colour in (("true", "#222222"), ("null", "#9aa5b1")):
                if (known := self.side(tag, side)).runs:
                    name = "ground truth" if side == "true" else "null"
                    axes.axvline(known.mean, color=colour, lw=1, ls="--", label=name)
            axes.set_yticks(range(len(self.settings)), [s.name for s in self.settings], fontsize=8)
            axes.set_ylim(len(self.settings) - 0.4, -0.6)
            axes.set_title(f"{tag}{_meaning(self.better.get(tag))}", fontsize=10)
            axes.grid(alpha=0.25, axis="x")
            axes.spines[["top", "right"]].set_visible(False)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=8)
            figures[tag.replace("/", "_")] = figure
        return figures


def _meaning(better: str | None) -> str:
    return {
        "lower": " (lower is better)",
        "higher": " (higher is better)",
        "true": " (closer to the truth is better)",
    }.get(better or "", "")


def write_comparison(
    out: Path, comparison: Comparison, title: str, *, text: str = "", content: Mapping[str, Any] | None = None
) -> None:
    """Write table.md (with `text` below the table), table.csv (long form), table.json (with `content`) and plots/, each
    atomically.
    """
    from af.evaluation.plots import save_figures

    records = comparison.records()
    figures = comparison.figures()
    save_figures(out / "plots", figures)
    pictures = "".join(f"\n![{name}](plots/{name}.png)\n" for name in figures)
    explained = (
        "Mean ± standard error (over runs; of a single run over its clips); in bold the best and what is within two standard "
        "errors of it; – is not computed.\n"
    )
    write_text(out / "table.md", f"# {title}\n\n{comparison.markdown()}\n{explained}{text}{pictures}")
    table = io.StringIO()
    if records:
        writer = csv.DictWriter(table, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    write_text(out / "table.csv", table.getvalue())
    numbers = {"title": title, "better": dict(comparison.better), "table": records, **(content or {})}
    write_json(out / "table.json", numbers)
