"""Options of the verbs that make new shards from shards: encode, losers, teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from af.cli.kinds import Count, Device, OutFolder, Overwrite, Seed, Source, Workers
from af.cli.options import More
from af.data.parts import WHOLE, Share, clear

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "finished shards are kept, and the same command makes the others"
ShareOption = Annotated[
    Share,
    Share.parse,
    More(metavar="I/N"),
    "do the I-th of N shares, for a job array: the same command with every I from 1 to N, on any machines that share the "
    "output folder; the last one to end writes the index",
]


@dataclass(kw_only=True)
class Derived:
    """What is read and written, and how the work is divided."""

    data: Annotated[Source, "shards to read (with train/, val/, test/), a folder or a URL"]
    out: Annotated[OutFolder, "folder for the new shards"]
    workers: Workers = 1
    device: Device = "auto"
    share: ShareOption = WHOLE
    overwrite: Overwrite = False

    def options(self, *read: Path | None) -> dict[str, Any]:
        """What the verbs' functions share; deletes the content of `out` if requested (not if `read` is in it)."""
        clear(self.out, self.overwrite, self.share, [self.data, *(place for place in read if place is not None)])
        return {"device": self.device, "workers": self.workers, "share": self.share}


@dataclass(kw_only=True)
class RolledOut(Derived):
    """The same for roll-outs by a denoiser."""

    splits: Annotated[str, "splits of the data, separated by commas"] = "train,val"
    seed: Annotated[Seed, "of the noise and of the choice of other users"] = 0
    batch: Annotated[Count, "clips rolled out together"] = 32

    def options(self, *read: Path | None) -> dict[str, Any]:
        """As of `Derived`."""
        splits = [name.strip() for name in self.splits.split(",")]
        return {**super().options(*read), "seed": self.seed, "batch": self.batch, "splits": splits}
