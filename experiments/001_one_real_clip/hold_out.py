"""Shards of one conversation twice: train/ and val/ hold the same clips and differ in which frames count.

One second in `--every` is held out: its frames are valid in val/ alone, and 0.2 s on either side in neither. With
`--last` it is the last seconds of the conversation instead. The people are the same in both, which `af shards split`
refuses on purpose: such a model is of these people alone.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from af.clock import FPS
from af.data.index import Index, build_index
from af.data.rearrange import Pick, write_picks
from af.data.schema import ROLES, ClipMeta, spans

GUARD = FPS // 5  # frames


def described(meta: ClipMeta, split: str, every: int, last: int) -> ClipMeta:
    """The clip with the frames that count in a split: the last second of every `every`, or the last `last` seconds when
    that is not 0, are held out.
    """
    n = np.arange(meta.frames)
    seen = n >= meta.frames - last * FPS if last else n // FPS % every == every - 1
    near = np.convolve(seen, np.ones(2 * GUARD + 1), "same") > 0
    chosen = seen if split == "val" else ~near
    return replace(meta, valid={role: spans(meta.valid_mask(role) & chosen) for role in ROLES})


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path, help="split folder with the clips, made with af ingest")
parser.add_argument("out", type=Path)
parser.add_argument("--every", type=int, default=4, help="hold out one second in this many (default 4)")
parser.add_argument("--last", type=int, default=0, metavar="SECONDS", help="hold out the end of each clip instead")
args = parser.parse_args()
picks = [Pick(0, n, sample.key) for n, sample in enumerate(Index.load(args.folder).samples)]
for split in ("train", "val"):
    describe = partial(described, split=split, every=args.every, last=args.last)
    write_picks(args.out / split / "000000.tar", (str(args.folder),), picks, split, describe)
    index = build_index(args.out / split)
    print(split, {s.key: {role: sum(b - a for a, b in s.valid[role]) for role in ROLES} for s in index.samples})
