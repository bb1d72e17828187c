"""Print the table of README.md from the evaluations beside it: the first and the last minute, each with its truth."""

from __future__ import annotations

import json
from pathlib import Path

TAGS = (
    *("lip/corr", "mouth/corr", "react/smile", "react/tilt", "react/nod", "fd/exp", "fd/pose", "sharpness"),
    *(f"var_ratio/{name}" for name in ("smile", "mouth_open", "blink", "brow", "yaw", "pitch", "roll", "scale")),
    *("speed_ratio/roll", "speed_ratio/yaw", "border_ratio/pose", "c2st/motion"),
)


def main() -> None:
    """The table in Markdown."""
    minutes = [json.loads(Path(__file__).with_name(f"{name}.json").read_text()) for name in ("first", "last")]
    print("| | first minute | truth | last minute | truth |\n| --- | ---: | ---: | ---: | ---: |")
    for tag in TAGS:
        digits = 0 if tag == "sharpness" else 2 if "ratio" in tag or "c2st" in tag else 3
        cells = []
        for found in minutes:
            error, true = found.get(f"{tag}/se"), found.get(f"{tag}/true")
            cells.append(f"{found[tag]:.{digits}f}" + (f" ± {error:.{digits}f}" if error else ""))
            cells.append("–" if true is None else f"{true:.{digits}f}")
        print(f"| `{tag}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
