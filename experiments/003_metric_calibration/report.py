"""README.md's results, results.json and the plots, from the measured conditions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from conditions import AGAIN, BASE, BLIND, CONDITIONS, STILL, TRUTH

from af.evaluation.plots import COLOURS
from af.files import write_text

if TYPE_CHECKING:
    from run import Result

METRICS = (
    "reaction_gain", "reaction_gain/user", "react/smile", "react/tilt", "react/nod", "tlcc/exp/peak", "tlcc/exp/lag",
    "tlcc/pose/peak", "tlcc/pose/lag", "rpcc/exp", "rpcc/pose", "rpcc/exp/clip", "rpcc/pose/clip", "rpcc/exp/dim",
    "rpcc/pose/dim", "pfd/exp", "pfd/pose", "lip/corr", "lip/lag", "mouth/corr", "mouth/lag", "sid/exp", "sid/pose",
    "var/exp", "var/pose", "var_ratio/exp", "var_ratio/pose", "fd/exp", "fd/pose", "border_ratio/exp",
    "border_ratio/pose", "jerk/exp", "jerk/pose", "c2st/motion", "c2st/pair", "c2st/block", "fd_img/thumbnail4-1",
    "kd_img/thumbnail4-1", "csim/thumbnail8-1", "psnr", "ssim", "l1", "sharpness",
)  # fmt: skip
SEEN, LEAST = 3.0, 0.02  # a fault is seen: standard errors of the change, and its share of the value
FAMILIES = list(dict.fromkeys(c.family for c in CONDITIONS if c.family))
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def compare(base: Result, other: Result, tag: str, sessions: int) -> dict[str, Any]:
    """Change of a metric: in bootstrap standard errors (z), per session (d = z/√N), p, and whether it looks better."""
    before, after = base.values[tag], other.values[tag]
    change = after["value"] - before["value"]
    draws = other.draws[tag] - base.draws[tag]
    error = float(np.nanstd(draws, ddof=1)) if np.isfinite(draws).sum() > 1 else float("nan")
    if not np.isfinite(change):
        return {
            "value": None,
            "z": None,
            "d": None,
            "p": None,
            "seen": bool(np.isfinite(before["value"])),
            "better": False,
        }
    z = (
        0.0
        if change == 0
        else float(np.clip(change / error, -99, 99))
        if error > 1e-12
        else float(np.sign(change) * 99)
    )
    tail = min(np.mean(draws <= 0), np.mean(draws >= 0)) if change else 0.5

    def badness(row: Mapping[str, Any]) -> float:
        if row["better"] == "true":
            return abs(row["value"] - (row["truth"] or 0.0))
        return row["value"] if row["better"] == "lower" else -row["value"]

    # a classifier that is right less often than by chance has found nothing
    found = z if tag.startswith("c2st/") else abs(z)
    seen = found >= SEEN and abs(change) > LEAST * abs(before["value"])
    return {
        "value": after["value"], "z": z, "d": z / np.sqrt(sessions), "p": float(max(2 * tail, 1 / len(draws))),
        "seen": seen, "better": bool(seen and badness(after) < badness(before)),
    }  # fmt: skip


def summarise(results: Mapping[str, Result], settings: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """{condition: {tag: comparison with "another sample"}}."""
    base = results[BASE]
    drawn = {"fd_img", "kd_img", "csim", "psnr", "ssim", "l1", "sharpness"}

    def count(tag: str) -> int:
        return settings["rendered"] if tag.split("/")[0] in drawn else settings["sessions"]

    return {
        name: {
            tag: compare(base, result, tag, count(tag))
            for tag in METRICS
            if tag in base.values and tag in result.values
        }
        for name, result in results.items()
    }


def number(value: float | None) -> str:
    """Three digits."""
    return "n/a" if value is None else "0" if value == 0 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def sees(summary: Mapping[str, Mapping[str, Any]], tag: str, family: str) -> str:
    """The smallest dose that a metric sees; "–" none; "!" after it when some seen dose looks better than no fault."""
    members = [c for c in CONDITIONS if c.family == family and tag in summary[c.name]]
    seen = [c for c in members if summary[c.name][tag]["seen"]]
    if not seen:
        return "–"
    return seen[0].dose + ("!" if any(summary[c.name][tag]["better"] for c in seen) else "")


def headline(results: Mapping[str, Result], summary: Mapping[str, Mapping[str, Any]]) -> str:
    """What the reaction gain gives with reactions, without, and for a talking face at rest."""

    def said(name: str, tag: str) -> str:
        low, high = np.nanpercentile(results[name].draws[tag], [2.5, 97.5])
        return f"{results[name].values[tag]['value']:.4f} [{low:.4f}, {high:.4f}]"

    row = summary[BLIND]["reaction_gain"]
    least = f"< {2 / len(results[BASE].draws['reaction_gain']):.1g}" if row["p"] <= 1e-3 else f"= {row['p']:.2g}"
    return (
        f"Without reactions the reaction gain falls from {said(BASE, 'reaction_gain')} nats to "
        f"{said(BLIND, 'reaction_gain')} (z = {row['z']:+.1f}, p {least}); lips moving in a face at rest get "
        f"{said(STILL, 'reaction_gain')}. With the user alone shifted in the null the three get "
        f"{said(BASE, 'reaction_gain/user')}, {said(BLIND, 'reaction_gain/user')} and {said(STILL, 'reaction_gain/user')}."
    )


def sight_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a metric, a column a fault."""
    tags = [t for t in METRICS if t in summary[BASE]]
    lines = [
        "| metric | " + " | ".join(FAMILIES) + " | false alarm, z |",
        "| --- |" + " --- |" * len(FAMILIES) + " ---: |",
    ]
    for tag in tags:
        z = summary[AGAIN][tag]["z"]
        alarm = "n/a" if z is None else f"**{z:+.1f}**" if abs(z) >= SEEN else f"{z:+.1f}"
        lines.append(f"| `{tag}` | " + " | ".join(sees(summary, tag, f) for f in FAMILIES) + f" | {alarm} |")
    return "\n".join(lines)


def gain_table(results: Mapping[str, Result], summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Both forms of the reaction gain under the conditions that matter to it."""
    names = [c.name for c in CONDITIONS if c.family.startswith(("reactions", "only", "copies"))]
    lines = [
        "| avatar | `reaction_gain`, nats [95 %] | z, p against another sample | user shifted alone, nats [95 %] | z, p |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in (TRUTH, BASE, AGAIN, *names):
        cells = []
        for tag in ("reaction_gain", "reaction_gain/user"):
            low, high = np.nanpercentile(results[name].draws[tag], [2.5, 97.5])
            row = summary[name][tag]
            cells.append(f"{row['value']:.4f} [{low:.4f}, {high:.4f}]")
            cells.append("" if name == BASE else f"{row['z']:+.1f}, {row['p']:.2g}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def value_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Every value, bold where a fault is seen: for results.md."""
    tags = [t for t in METRICS if t in summary[BASE]]
    lines = ["| condition | " + " | ".join(f"`{t}`" for t in tags) + " |", "| --- |" + " ---: |" * len(tags)]
    for name, row in summary.items():
        cells = []
        for tag in tags:
            cell = row[tag]
            text = number(cell["value"])
            cells.append(f"**{text}** ({cell['z']:+.0f})" if cell["seen"] and cell["z"] is not None else text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_map(summary: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """All z scores."""
    from matplotlib.figure import Figure

    tags, names = [t for t in METRICS if t in summary[BASE]], [n for n in summary if n != BASE]
    scores = np.array([[np.nan if (z := summary[n][t]["z"]) is None else z for t in tags] for n in names])
    figure = Figure(figsize=(0.36 * len(tags) + 2.6, 0.25 * len(names) + 2.0), layout="constrained")
    axes = figure.subplots()
    size = np.maximum(np.abs(scores), 1e-9)
    shown = np.where(size >= SEEN, np.sign(scores) * np.log2(size / SEEN * 2), np.where(np.isnan(scores), np.nan, 0.0))
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-6, vmax=6, aspect="auto")
    axes.set_facecolor("#bbbbbb")
    for (r, c), score in np.ndenumerate(scores):
        if abs(score) >= SEEN:
            colour = "white" if abs(shown[r, c]) > 3.4 else "black"
            axes.text(c, r, f"{score:+.0f}", ha="center", va="center", fontsize=5.5, color=colour)
    axes.set_xticks(range(len(tags)), tags, rotation=70, ha="right", rotation_mode="anchor", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_title(
        "change from another perfect sample, in standard errors (white: under 3, grey: no value)", fontsize=9
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.5, ticks=[-5.06, -2.74, -1, 1, 2.74, 5.06])
    bar.ax.set_yticklabels(["−50", "−10", "−3", "+3", "+10", "+50"], fontsize=7)
    figure.savefig(path, dpi=100)


def plot_doses(results: Mapping[str, Result], path: Path) -> None:
    """Dose and response of late reactions and late lips; the reaction gain by lag."""
    from matplotlib.figure import Figure

    def value(name: str, tag: str) -> float:
        return results[name].values[tag]["value"]

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    delays = [(0.0, BASE), *((d / 25, f"reactions {d / 25:.1f} s late") for d in (5, 10, 15, 20, 25))]
    lines = (
        ("reaction_gain", "#d1495b"),
        ("react/smile", "#3d7ea6"),
        ("react/nod", "#66a182"),
    )
    for tag, colour in lines:
        left.plot(
            [d for d, _ in delays], [value(n, tag) / value(BASE, tag) for _, n in delays], "o-", color=colour, label=tag
        )
        left.axhline(value(BLIND, tag) / value(BASE, tag), color=colour, ls=":", lw=1)
    left.set_xlabel("reactions late by (s); dotted: removed")
    left.set_ylabel("value / value of a perfect sample")
    left.set_ylim(-1.2, 1.6)
    shifts = [(0, BASE), *((n, f"lips {n} frames late") for n in (1, 2, 3, 5, 7, 10))]
    for tag, style in (("lip/lag", "o-"), ("mouth/lag", "s--")):
        middle.plot([s for s, _ in shifts], [value(n, tag) for _, n in shifts], style, label=tag)
    middle.set_xlabel("lips late by (frames)")
    middle.set_ylabel("measured lag (frames)")
    colours = (COLOURS["true"], COLOURS["user"], COLOURS["generated"])
    shown = [(name, result.by_lag) for name, result in results.items() if result.by_lag is not None]
    for (name, by_lag), colour in zip(shown, colours, strict=False):
        right.plot(*by_lag, "o-", ms=3, color=colour, label=name)
    right.set_xlabel("lag of the user's signal (s)")
    right.set_ylabel("reaction gain (nats)")
    for axes in (left, middle, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)


def write(folder: Path, results: Mapping[str, Result], settings: Mapping[str, int]) -> None:
    """Everything into `folder`; README.md keeps its words, its results are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(results, settings)
    write_text(
        folder / "results.json",
        json.dumps({"settings": dict(settings), "conditions": rounded(summary)}, indent=0) + "\n",
    )
    write_text(
        folder / "results.md",
        f"# Every value\n\nBold: at least {SEEN:.0f} standard errors (in brackets) from “{BASE}”.\n\n{value_table(summary)}\n",
    )
    plot_map(summary, folder / "map.png")
    plot_doses(results, folder / "doses.png")
    text = (
        f"{settings['sessions']} conversations of 16 s, {settings['rendered']} of them drawn, seed {settings['seed']}, "
        f"{settings['resamples']} bootstrap draws of sessions.\n\n### Reaction gain\n\n{headline(results, summary)}\n\n{gain_table(results, summary)}\n\n"
        f"### What each metric sees\n\nThe smallest dose at which it moves by {SEEN:.0f} standard errors and {LEAST:.0%} of its value, or has none any more (`c2st`: upwards only); “–”: "
        "blind to every dose tried; “!”: it calls the fault an improvement. Last column: the same on a third perfect "
        f"sample.\n\n{sight_table(summary)}\n"
    )  # fmt: skip
    readme = folder / "README.md"
    before, _, rest = (readme.read_text() if readme.is_file() else f"{BEGIN}\n{END}\n").partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(readme, f"{before}{BEGIN}\n{text}{END}{after}")
    print(text)


def rounded(value: Any) -> Any:
    """Four digits; NaN as null."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value
