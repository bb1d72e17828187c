"""Check, describe, index or rearrange shards.

af shards validate data/mine            every member of every sample, checksums, splits without a common person
  af shards validate data/mine --quick    the same without decoding the videos
  af shards stats data/mine [--json]      hours, people, sizes, feature specs of each split
  af shards index data/mine               write index.json again after adding or removing .tar files
  af shards extract data/mine/test --sample 3 --out clip   one sample as files: videos with sound, wav, first frames

af shards reshard data/mine --out data/larger --shard-gb 1     shards of another size, optionally --shuffle SEED
  af shards split data/mine --out data/split --fractions 0.8,0.1,0.1   new splits without a common person
  af shards merge data/calls data/talks --out data/both          several folders as one

DIR is a folder with train/, val/ or test/ in it, or one of these; all verbs but index also take its URL (https://…,
s3://…; docs/data.md). A shard is a tar file that WebDataset reads too; its members are json, npy, flac and mp4 only, and
nothing in it is ever executed. `af shards VERB --help` explains a verb.

reshard, split and merge copy members byte for byte into an empty folder of this machine and check them on the way. A stopped
one goes on with the same command, --share divides it among machines, and motion statistics are made again where there were
some.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from af.cli.options import add_share, count, fractions, out_folder, positive, seed, whole
from af.console import show
from af.data.stores import Location, location

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "finished shards are kept, and the same command makes the others; checks start again"
_ROOT = "root or split folder, or its URL"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare verbs and flags."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="VERB")

    def verb(name: str, text: str, folders: str = _ROOT, **more) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("folder", type=location, metavar="DIR", help=folders, **more)
        return sub

    check = verb("validate", "check archives, names, members, checksums, and that no person is in two splits")
    check.add_argument("--json", action="store_true", help="print JSON instead of text")
    check.add_argument("--quick", action="store_true", help="do not decode every video frame")
    check.add_argument("--most", type=count, default=50, help="problems to print (default 50)")
    verb("stats", "print hours, people, sizes and feature specs of each split").add_argument(
        "--json", action="store_true", help="print JSON instead of text"
    )
    verb("index", "rewrite index.json after adding or removing .tar files", "root or split folder of this machine")
    one = verb("extract", "write one sample as ordinary files: videos with audio, wav, first frames")
    one.add_argument("--sample", type=whole, default=0, metavar="N", help="number of the sample (default 0)")
    one.add_argument("--out", type=out_folder, required=True, metavar="FOLDER", help="folder for the files")

    reshard = verb("reshard", "write the same samples into shards of another size, in order or shuffled")
    reshard.add_argument("--shuffle", type=whole, metavar="SEED", help="shuffle the samples of each split by this seed")
    split = verb(
        "split",
        "put all samples into new splits without a common person: people who met in a conversation stay together",
    )
    split.add_argument(
        "--fractions", type=fractions, default=(0.8, 0.1, 0.1), metavar="TRAIN,VAL,TEST", help="fractions of the frames"
    )
    split.add_argument("--seed", type=seed, default=0, help="another one chooses other people (default 0)")
    split.add_argument(
        "--rename", action="store_true", help="put the old split before every key, to make keys different"
    )
    merge = verb("merge", "write the splits of several folders into one", "root folders, or their URLs", nargs="+")
    merge.add_argument("--rename", action="store_true", help="put the folder's number before every key")
    for sub in (reshard, split, merge):
        sub.add_argument(
            "--out", type=out_folder, required=True, metavar="FOLDER", help="empty folder for the new shards"
        )
        sub.add_argument("--shard-gb", type=positive, default=1.0, metavar="GB", help="size of a shard (default 1)")
        sub.add_argument("--workers", type=count, default=1, help="processes (default 1)")
        add_share(sub)


def run(args: argparse.Namespace) -> int:
    """Run the verb; validate returns 1 if there are problems."""
    verbs = {"validate": _validate, "stats": _stats, "index": _index, "extract": _extract}
    return verbs.get(args.action, _arrange)(args)


def _arrange(args: argparse.Namespace) -> int:
    from af.data import rearrange

    how = {"shard_bytes": int(args.shard_gb * 1e9), "workers": args.workers, "share": args.share}
    roots: Sequence[Location] = args.folder if args.action == "merge" else [args.folder]
    if args.action == "reshard":
        made = rearrange.reshard(args.folder, args.out, shuffle=args.shuffle, **how)
    elif args.action == "split":
        chosen = {"seed": args.seed, "rename": args.rename}
        made = rearrange.split_by_identity(args.folder, args.out, args.fractions, **chosen, **how)
    else:
        made = rearrange.merge(roots, args.out, rename=args.rename, **how)
    if made is None:
        return 0
    from af.pipeline.encode import carry_statistics

    carry_statistics(roots, args.out, made)
    for index in made:
        people = len({p for s in index.samples for p in s.participants})
        totals = f"{len(index.samples)} samples, {people} people, {index.frames} frames"
        print(f"{index.folder}: {len(index.shards)} shards, {totals}")
    return 0


def _validate(args: argparse.Namespace) -> int:
    from af.console import progress_bar
    from af.data.validate import validate

    with progress_bar() as bar:
        task = bar.add_task("shards", total=None)
        report = validate(
            args.folder, deep=not args.quick, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    print(json.dumps(report.to_json(), indent=1) if args.json else report.text(args.most))
    return 0 if report.ok else 1


def _stats(args: argparse.Namespace) -> int:
    from rich.table import Column, Table

    from af.data.contents import stats

    found = stats(args.folder)
    if args.json:
        print(json.dumps([s.to_json() for s in found], indent=1))
        return 0
    table = Table("", *(Column(one.split, justify="right") for one in found), title=str(args.folder))
    rows = [one.rows() for one in found]
    for name in dict.fromkeys(name for row in rows for name in row):
        table.add_row(name, *(row.get(name, "-") for row in rows))
    show(table)
    return 0


def _index(args: argparse.Namespace) -> int:
    from af.console import progress_bar
    from af.data.index import build_index, split_folders

    with progress_bar() as bar:
        for folder in split_folders(args.folder):
            task = bar.add_task(str(folder), total=None)
            index = build_index(folder, progress=lambda done, total, t=task: bar.update(t, completed=done, total=total))  # type: ignore[misc]
            bar.console.print(
                f"{folder}: {len(index.shards)} shards, {len(index.samples)} samples, {index.frames} frames"
            )
    return 0


def _extract(args: argparse.Namespace) -> int:
    from af.data.contents import extract

    for path in extract(args.folder, args.sample, args.out):
        print(path)
    return 0
