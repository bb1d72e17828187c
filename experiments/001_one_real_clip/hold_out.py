"""Shards of one person's conversation into train/ (all clips but the last) and val/ (the last in time): frames never seen.

The people are the same in both, which `af shards split` refuses on purpose: such a model is of these people alone.
"""

import argparse
from pathlib import Path

from af.data.index import Index, build_index
from af.data.rearrange import Pick, write_picks

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help="split folder with the clips, made with af ingest --max-seconds")
parser.add_argument("out", type=Path)
args = parser.parse_args()
index = Index.load(args.folder)
picks = [Pick(0, n, sample.key) for n, sample in enumerate(index.samples)]
if len(picks) < 2:
    parser.error(f"{args.folder}: one clip alone cannot be divided; use a shorter --max-seconds")
for split, chosen in (("train", picks[:-1]), ("val", picks[-1:])):
    write_picks(args.out / split / "000000.tar", (str(args.folder),), chosen, split)
    print(build_index(args.out / split).split, [pick.key for pick in chosen])
