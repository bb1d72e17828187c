"""Print the table of README.md from the evaluations beside it, or of others.

python experiments/018_own_histories/table.py
python experiments/018_own_histories/table.py experiments/015_blocks_of_five/{band_0,band_0.1}.json
python experiments/018_own_histories/table.py --seeds experiments/021_midpoint/{euler,midpoint}_?.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("control", "at_once", "guessed", "control_band", "at_once_band", "guessed_band")
TAGS = (
    *("lip/corr", "mouth/corr", "react/smile", "react/tilt", "react/nod", "reaction_gain", "rpcc/exp", "rpcc/pose"),
    *(
        f"var_ratio/{name}"
        for name in ("smile", "mouth_open", "blink", "brow", "gaze_x", "yaw", "pitch", "roll", "scale")
    ),
    *(f"speed_ratio/{name}" for name in ("roll", "yaw", "scale", "smile")),
    *("border_ratio/pose", "c2st/motion", "c2st/pair", "c2st/block"),
    *("drift/distance/first", "drift/distance/last"),
)


def main() -> None:
    """The table in Markdown: a column an evaluation, and the truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [Path(__file__).with_name(f"{name}.json") for name in COLUMNS]
    parser.add_argument("files", nargs="*", type=Path, default=usual, help="evaluations' metrics.json")
    parser.add_argument(
        "--seeds", action="store_true", help="join NAME_SEED.json: mean ± standard deviation over seeds"
    )
    parser.add_argument("--all", action="store_true", help="variances and speeds of all parameters")
    args = parser.parse_args()
    found = {file.stem: json.loads(file.read_text()) for file in args.files}
    families = {tag for metrics in found.values() for tag in metrics if tag.count("/") == 1}
    others = sorted(tag for tag in families if tag.startswith(("var_ratio/", "speed_ratio/")) and tag not in TAGS)
    tags = (*TAGS, *others) if args.all else TAGS
    found = over_seeds(found, tags) if args.seeds else found
    print(
        f"| | {' | '.join(name.replace('_band', ', band').replace('_midpoint', ', midpoint') for name in found)} | ground truth |"
    )
    print(f"| --- |{' ---: |' * (len(found) + 1)}")
    truth = next(iter(found.values()))
    for tag in tags:
        digits = 1 if tag.startswith("drift") else 2 if "ratio" in tag or "c2st" in tag else 3
        cells: list[str] = []
        if not any(tag in metrics for metrics in found.values()):
            continue
        for metrics in found.values():
            value, error = metrics.get(tag), metrics.get(f"{tag}/se")
            cell = "–" if value is None else f"{value:.{digits}f}"
            cells.append(cell if value is None or not error else f"{cell} ± {error:.{digits}f}")
        true = truth.get(f"{tag}/true")
        print(f"| `{tag}` | {' | '.join(cells)} | {'–' if true is None else f'{true:.{digits}f}'} |")


def over_seeds(found: dict[str, Any], tags: Sequence[str]) -> dict[str, Any]:
    """Means of the evaluations whose names differ in the part after the last underscore, with deviations as errors."""
    joined: dict[str, Any] = {}
    for name in dict.fromkeys(stem.rpartition("_")[0] for stem in found):
        seeds = [metrics for stem, metrics in found.items() if stem.rpartition("_")[0] == name]
        joined[name] = dict(seeds[0])
        for tag in tags:
            values = [metrics[tag] for metrics in seeds if metrics.get(tag) is not None]
            if len(values) == len(seeds) > 1:
                joined[name] |= {tag: statistics.mean(values), f"{tag}/se": statistics.stdev(values)}
    return joined


if __name__ == "__main__":
    main()
