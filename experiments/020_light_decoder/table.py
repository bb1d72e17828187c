"""Print the table of README.md: the full decoder, the light one, and their difference.

python experiments/020_light_decoder/table.py        # of full_64.json and light_64.json beside it
python experiments/020_light_decoder/table.py 256
python experiments/020_light_decoder/table.py 256_300    # the light one after 300 steps
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FACE = ("expression", "pose", "mouth_open", "smile", "blink", "brow", "gaze_x", "yaw", "roll")
TAGS = ("psnr", "ssim", "transfer/psnr", *(f"transfer/r2/{name}" for name in FACE))


def main() -> None:
    """The table in Markdown."""
    size = (sys.argv[1:] or ["64"])[0]
    names = f"full_{size.partition('_')[0]}", f"light_{size}"
    full, light = (json.loads(Path(__file__).with_name(f"{name}.json").read_text()) for name in names)
    print("| | full | light | difference | right images | source unchanged |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for tag in TAGS:
        digits = 2 if tag.endswith("psnr") else 3
        true, null = (full.get(f"{tag}/{side}") for side in ("true", "null"))
        cells = [full[tag], light[tag], light[tag] - full[tag], true, null]
        print(f"| `{tag}` | {' | '.join('–' if c is None else f'{c:.{digits}f}' for c in cells)} |")


if __name__ == "__main__":
    main()
