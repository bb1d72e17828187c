"""Shards of one conversation twice: train/ and val/ hold the same clips and differ in which frames count.

One second in `--every` is held out: its frames are valid in val/ alone, and 0.2 s on either side in neither. With
`--last` it is the last seconds of the conversation instead. The people are the same in both, which `af shards split`
refuses on purpose: such a model is of these people alone.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from af.clock import FPS
from af.data.index import Index, build_index
from af.data.schema import ROLES, spans
from af.data.shards import ShardReader, write_shard

GUARD = FPS // 5  # frames


def held_out(frames: int, *, every: int, last: int) -> np.ndarray:
    """Which frames are held out: the last second of every `every`, or the last `last` seconds when that is not 0."""
    n = np.arange(frames)
    return n >= frames - last * FPS if last else n // FPS % every == every - 1


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path, help="split folder with the clips, made with af ingest")
parser.add_argument("out", type=Path)
parser.add_argument("--every", type=int, default=4, help="hold out one second in this many (default 4)")
parser.add_argument("--last", type=int, default=0, metavar="SECONDS", help="hold out the end of each clip instead")
args = parser.parse_args()
reader = ShardReader(Index.load(args.folder))
for split in ("train", "val"):
    samples = []
    for n, entry in enumerate(reader.index.samples):
        meta, seen = reader.read_meta(n), held_out(entry.frames, every=args.every, last=args.last)
        near = np.convolve(seen, np.ones(2 * GUARD + 1), "same") > 0
        chosen = seen if split == "val" else ~near
        valid = {role: spans(meta.valid_mask(role) & chosen) for role in ROLES}
        members = {field: reader.read_bytes(n, field) for field in entry.members if field != "json"}
        samples.append((entry.key, replace(meta, split=split, valid=valid), members))
    write_shard(args.out / split / "000000.tar", samples)
    index = build_index(args.out / split)
    print(split, {s.key: {role: int(sum(b - a for a, b in s.valid[role])) for role in ROLES} for s in index.samples})
