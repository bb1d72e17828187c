"""Check, describe, index or rearrange shards.

  af shards validate data/mine            every member of every sample, checksums, splits without a common person
  af shards validate data/mine --quick    the same without decoding the videos
  af shards stats data/mine [--json]      hours, people, sizes, feature specs of each split
  af shards index data/mine               write index.json again after adding or removing .tar files
  af shards extract data/mine/test --sample 3 --out clip   one sample as files: videos with sound, wav, first frames

  af shards reshard data/mine --out data/larger --shard-gb 1     shards of another size, optionally --shuffle SEED
  af shards split data/mine --out data/split --fractions 0.8,0.1,0.1   new splits without a common person
  af shards merge data/calls data/talks --out data/both          several folders as one
  af shards holdout data/me --out data/me-held --seconds 10      the last clips for val and test, of the same people

DIR is a folder with train/, val/ or test/ in it, or one of these; all verbs but index also take its URL (https://…,
s3://…; docs/data.md). A shard is a tar file that WebDataset reads too; its members are json, npy, flac and mp4 only, and
nothing in it is ever executed. `af shards VERB --help` explains a verb.

reshard, split, merge and holdout copy members byte for byte into an empty folder of this machine and check them on the way. A stopped
one goes on with the same command, --share divides it among machines, and motion statistics are made again where there were
some.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from json import dumps
from typing import Annotated, Any

from af.cli.derived import WHOLE, ShareOption
from af.cli.kinds import Count, Fractions, OutFolder, Positive, Seed, Source, Whole, Workers
from af.cli.options import More
from af.console import show
from af.data.index import Index
from af.data.stores import Location, location

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "finished shards are kept, and the same command makes the others; checks start again"
Folder = Annotated[Source, More(metavar="DIR"), "root or split folder, or its URL"]
Json = Annotated[bool, "print JSON instead of text"]


@dataclass(kw_only=True)
class Arranged:
    """Where new shards go, and how the work is divided."""

    out: Annotated[OutFolder, "empty folder for the new shards"]
    shard_gb: Annotated[Positive, More(metavar="GB"), "size of a shard"] = 1.0
    workers: Workers = 1
    share: ShareOption = WHOLE

    def options(self) -> dict[str, Any]:
        """As `af.data.rearrange` takes them."""
        return {"shard_bytes": int(self.shard_gb * 1e9), "workers": self.workers, "share": self.share}

    def finish(self, roots: Sequence[Location], made: Sequence[Index] | None) -> None:
        """Make the statistics again and report; nothing while other shares are not done."""
        from af.pipeline.encode import carry_statistics

        if made is not None:
            carry_statistics(roots, self.out, made)
        for index in made or []:
            people = len({p for s in index.samples for p in s.participants})
            totals = f"{len(index.samples)} samples, {people} people, {index.frames} frames"
            print(f"{index.folder}: {len(index.shards)} shards, {totals}")


def validate(
    folder: Folder,
    *,
    json: Json = False,
    quick: Annotated[bool, "do not decode every video frame"] = False,
    most: Annotated[Count, "problems to print"] = 50,
) -> int:
    """Check archives, names, members, checksums, and that no person is in two splits."""
    from af.console import progress_bar
    from af.data.validate import validate

    with progress_bar() as bar:
        task = bar.add_task("shards", total=None)
        report = validate(
            folder, deep=not quick, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    print(dumps(report.to_json(), indent=1) if json else report.text(most))
    return 0 if report.ok else 1


def stats(folder: Folder, *, json: Json = False) -> None:
    """Print hours, people, sizes and feature specs of each split."""
    from rich.table import Column, Table

    from af.data.contents import stats

    found = stats(folder)
    if json:
        print(dumps([s.to_json() for s in found], indent=1))
        return
    table = Table("", *(Column(one.split, justify="right") for one in found), title=str(folder))
    rows = [one.rows() for one in found]
    for name in dict.fromkeys(name for row in rows for name in row):
        table.add_row(name, *(row.get(name, "-") for row in rows))
    show(table)


def index(folder: Annotated[Folder, "root or split folder of this machine"]) -> None:
    """Rewrite index.json after adding or removing .tar files."""
    from af.console import progress_bar
    from af.data.index import build_index, split_folders

    with progress_bar() as bar:
        for split in split_folders(folder):
            task = bar.add_task(str(split), total=None)
            made = build_index(split, progress=lambda done, total, t=task: bar.update(t, completed=done, total=total))  # type: ignore[misc]
            bar.console.print(f"{split}: {len(made.shards)} shards, {len(made.samples)} samples, {made.frames} frames")


def extract(
    folder: Folder,
    *,
    sample: Annotated[Whole, More(metavar="N"), "number of the sample"] = 0,
    out: Annotated[OutFolder, "folder for the files"],
) -> None:
    """Write one sample as ordinary files: videos with audio, wav, first frames."""
    from af.data.contents import extract

    for path in extract(folder, sample, out):
        print(path)


def reshard(
    folder: Folder,
    new: Arranged,
    *,
    shuffle: Annotated[Whole | None, More(metavar="SEED"), "shuffle the samples of each split by this seed"] = None,
) -> None:
    """Write the same samples into shards of another size, in order or shuffled."""
    from af.data.rearrange import reshard

    new.finish([folder], reshard(folder, new.out, shuffle=shuffle, **new.options()))


def split(
    folder: Folder,
    new: Arranged,
    *,
    fractions: Annotated[Fractions, "fractions of the frames"] = (0.8, 0.1, 0.1),
    seed: Annotated[Seed, "another one chooses other people"] = 0,
    rename: Annotated[bool, "put the old split before every key, to make keys different"] = False,
) -> None:
    """Put all samples into new splits without a common person: people who met in a conversation stay together."""
    from af.data.rearrange import split_by_identity

    made = split_by_identity(folder, new.out, fractions, seed=seed, rename=rename, **new.options())
    new.finish([folder], made)


def merge(
    folder: Annotated[list[Any], location, More(nargs="+", metavar="DIR"), "root folders, or their URLs"],
    new: Arranged,
    *,
    rename: Annotated[bool, "put the folder's number before every key"] = False,
) -> None:
    """Write the splits of several folders into one."""
    from af.data.rearrange import merge

    new.finish(folder, merge(folder, new.out, rename=rename, **new.options()))


def holdout(
    folder: Folder,
    new: Arranged,
    *,
    seconds: Annotated[Positive, "held out, at least, for val and for test"] = 10.0,
) -> None:
    """Hold out the last clips for val and test, of the same people: for a model of these people alone."""
    from af.data.rearrange import holdout

    new.finish([folder], holdout(folder, new.out, seconds, **new.options()))


VERBS = (validate, stats, index, extract, reshard, split, merge, holdout)
