"""One-sided copies of shards of conversations, for tests of samples that show one person."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from af.data.index import build_index, split_folders
from af.data.schema import MUTE
from af.data.shards import ShardReader, write_shard
from af.pipeline.encode import STATISTICS_NAME


def one_sided(root: Path, out: Path, *, mute: int | None = None) -> Path:
    """Person a of every sample of `root`, under keys of their own; sample `mute` of each split has no voice."""
    for folder in split_folders(root):
        reader = ShardReader(folder)
        samples = []
        for i, entry in enumerate(reader.index.samples):
            meta = reader.read_meta(i)
            alone = {
                "participants": ("solo-" + meta.participants[0],) * 2,
                "valid": {"a": meta.valid["a"], "b": ()},
                "crop_boxes": {r: rows for r, rows in meta.crop_boxes.items() if r == "a"},
                "source": {r: name for r, name in meta.source.items() if r == "a"},
                "one_sided": True,
            }
            members = {f: reader.read_bytes(i, f) for f in entry.members if f.startswith("a.")}
            if i == mute:
                alone["separation"] = MUTE
                members.pop("a.audio.npy", None)
            samples.append((f"solo-{entry.key}", replace(meta, **alone), members))
        write_shard(out / folder.name / "000000.tar", samples)
        build_index(out / folder.name)
    if (root / STATISTICS_NAME).is_file():
        shutil.copy(root / STATISTICS_NAME, out / STATISTICS_NAME)
    return out
