"""Writes the demo's table in README.md from docs/demo_runs/: a column a run. `make docs` runs it, a test compares.

python docs/demo_table.py --add "a laptop" runs/demo/metrics.json   # keep what the table shows of a run, then write it
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RUNS = Path(__file__).with_name("demo_runs")
README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- demo table: made by docs/demo_table.py, do not edit -->\n", "<!-- end of demo table -->"
#: Tags of the table: what they are, and their decimals.
ROWS = {
    "psnr": ("PSNR of cross-frame reconstruction, dB (null: copying the source)", 2),
    "mouth/corr": ("mouth opening against the true one", 3),
    "mouth/lag": ("its lag, frames", 0),
    "lip/corr": ("mouth opening against the loudness of the voice", 3),
    "react/smile": ("smiles back", 3),
    "react/tilt": ("tilts back", 3),
    "react/nod": ("nods at phrase ends, rad", 3),
    "reaction_gain": ("reaction gain, nats", 3),
    "rpcc/exp": ("coupling with the user, expression: distance from the true one, pooled (true: 0)", 3),
    "rpcc/pose": ("the same, pose", 3),
    "var_ratio/mouth_open": ("variance of mouth openings on the video, of the true one's", 2),
    "var_ratio/smile": ("variance of smiles on the video, of the true one's", 2),
    "var_ratio/blink": ("variance of blinks on the video, of the true one's", 2),
    "border_ratio/pose": ("motion at block borders / elsewhere", 2),
}
SIDES = ("", "/se", "/true", "/true/se", "/null", "/null/se")
#: Of the whole run: what it took, and where.
PLAIN = {
    "seconds/total": ("minutes, all stages", lambda seconds: f"{seconds / 60:.1f}"),
    "seconds/vae": ("of them: motion VAE", lambda seconds: f"{seconds / 60:.1f}"),
    "seconds/denoiser": ("of them: denoiser", lambda seconds: f"{seconds / 60:.1f}"),
    "peak_memory_gb": ("peak memory of all processes, GiB", lambda value: f"{value:.2f}"),
    "machine": ("processor", lambda machine: f"{machine['processor']}, {machine['cores']} cores"),
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Keep a run if asked to, and write the table into README.md."""
    if arguments[:1] == ["--add"]:
        name, file = arguments[1:]
        add(name, json.loads(Path(file).read_text("utf-8")), RUNS)
    README.write_text(inserted(README.read_text("utf-8"), table(runs(RUNS))), "utf-8")
    return 0


def add(name: str, metrics: Mapping[str, Any], folder: Path) -> Path:
    """Keep what the table shows of a run under its name."""
    wanted = [*(f"{tag}{side}" for tag in ROWS for side in SIDES), *PLAIN]
    kept = {key: metrics[key] for key in wanted if metrics.get(key) is not None}
    path = folder / f"{len(list(folder.glob('*.json'))):02d}.json"
    path.write_text(json.dumps({"name": name, "metrics": kept}, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path


def runs(folder: Path) -> list[dict[str, Any]]:
    """The runs that are kept, the oldest first."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


def inserted(text: str, made: str) -> str:
    """README.md with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{README}: the lines {BEGIN.strip()} and {END} are missing")
    return f"{before}{BEGIN}{made}{end}{after}"


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown; with several runs a column says how far apart they lie."""
    names, metrics = [run["name"] for run in found], [run["metrics"] for run in found]
    spread = ["largest difference"] if len(found) > 1 else []
    header = ["tag", "what", *names, *spread, "ground truth", "null"]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    for tag, (words, digits) in ROWS.items():
        values = [run[tag] for run in metrics if tag in run]
        if not values:
            continue
        apart = [f"{max(values) - min(values):.{digits}f}" if len(values) > 1 else "–"] if spread else []
        own = [_cell(run, tag, digits) for run in metrics]
        lines.append(
            [f"`{tag}`", words, *own, *apart, *(_side(metrics, f"{tag}/{s}", digits) for s in ("true", "null"))]
        )
    for key, (words, text) in PLAIN.items():
        if any(key in run for run in metrics):
            known = [run[key] for run in metrics if key in run]
            numbers = len(known) > 1 and all(isinstance(value, (int, float)) for value in known)
            apart = [text(max(known) - min(known)) if numbers else "–"] if spread else []
            lines.append(["", words, *(text(run[key]) if key in run else "–" for run in metrics), *apart, "", ""])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(run: Mapping[str, Any], tag: str, digits: int) -> str:
    if tag not in run:
        return "–"
    return f"{run[tag]:.{digits}f}" + (f" ± {run[f'{tag}/se']:.{digits}f}" if f"{tag}/se" in run else "")


def _side(metrics: Sequence[Mapping[str, Any]], key: str, digits: int) -> str:
    """The ground truth or the null: one number, or what it is in each run where that differs."""
    cells = dict.fromkeys(_cell(run, key, digits) for run in metrics if key in run)
    return " · ".join(cells) or "–"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
