"""Check shards, say what is in them, or index them again.

  af shards validate data/mine            every member of every sample, checksums, splits without a common person
  af shards validate data/mine --quick    the same without decoding the videos
  af shards stats data/mine [--json]      hours, people, sizes, feature specs of each split
  af shards index data/mine               write index.json again after adding or removing .tar files
  af shards extract data/mine/test --sample 3 --out clip   one sample as files: videos with sound, wav, first frames

DIR is a folder with train/, val/ or test/ in it, or one of these; validate, stats and extract also take the URL of one
(https://…, s3://…; docs/data.md). A shard is a tar file that WebDataset reads too; its
members are json, npy, flac and mp4 only, and nothing in it is ever executed.
"""

from __future__ import annotations

import argparse
import json

from af.data.stores import local_path, location


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("action", choices=("validate", "stats", "index", "extract"), help="what to do")
    parser.add_argument("folder", type=location, metavar="DIR", help="root or split folder, or its URL")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--quick", action="store_true", help="validate: do not decode every video frame")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="extract: number of the sample (default 0)")
    parser.add_argument("--out", type=local_path, metavar="FOLDER", help="extract: folder for the files")
    parser.add_argument("--most", type=int, default=50, help="validate: problems to print (default 50)")


def run(args: argparse.Namespace) -> int:
    """Do what the action says; validate returns 1 when something is wrong."""
    return {"validate": _validate, "stats": _stats, "index": _index, "extract": _extract}[args.action](args)


def _validate(args: argparse.Namespace) -> int:
    from af.data.parts import progress_bar
    from af.data.shards import validate

    with progress_bar() as bar:
        task = bar.add_task("shards", total=None)
        report = validate(
            args.folder, deep=not args.quick, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if args.json:
        print(json.dumps(report.to_json(), indent=1))
        return 0 if report.ok else 1
    for problem in report.problems[: args.most]:
        print(f"{problem.reason}: {problem}")
    if len(report.problems) > args.most:
        print(f"... and {len(report.problems) - args.most} more (--json prints all)")
    print(f"{report.shards} shards, {report.samples} samples, {report.frames} frames: ", end="")
    counts = ", ".join(f"{count} x {reason}" for reason, count in sorted(report.counts.items()))
    print("nothing wrong" if report.ok else f"{len(report.problems)} problems ({counts})")
    return 0 if report.ok else 1


def _stats(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from af.data.stats import stats

    found = stats(args.folder)
    if args.json:
        print(json.dumps([s.to_json() for s in found], indent=1))
        return 0
    table = Table(title=str(args.folder))
    table.add_column("")
    for s in found:
        table.add_column(s.split, justify="right")
    rows = {
        "samples": [f"{s.samples:,}" for s in found],
        "hours": [f"{s.hours:.2f}" for s in found],
        "people": [f"{s.people:,}" for s in found],
        "sessions": [f"{s.sessions:,}" for s in found],
        "shards": [f"{s.shards:,}" for s in found],
        "GB": [f"{s.gigabytes:.3f}" for s in found],
        "pixels": [str(s.image_size or "-") for s in found],
        "clip s (shortest, median, longest)": [", ".join(f"{v:g}" for v in s.clip_s) for s in found],
        "frames with a face": [f"{s.valid:.1%}" for s in found],
    }
    for part in sorted({name.partition(".")[2] for s in found for name in s.fields if name != "json"}):
        sizes = [sum(s.gigabytes_by_field.get(f"{r}.{part}", 0.0) for r in "ab") for s in found]
        rows[f"GB of {part}"] = [f"{size:.3f}" for size in sizes]
    for name in ("audio", "motion", "face"):
        rows[f"{name} spec"] = [_spec(s.specs.get(name)) for s in found]
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console().print(table)
    return 0


def _spec(spec: dict | None) -> str:
    if spec is None:
        return "-"
    if "extractor" in spec:
        window = f" {spec['block_frames']}/{spec['window_frames']}" if spec["block_frames"] else ""
        return f"{spec['extractor']} {spec['version']}, {spec['dim']} dims, {spec['mode']}{window}"
    if "autoencoder" in spec:
        return f"{spec['dim']} dims, {spec['directions']} directions, {spec['autoencoder'][:8]}"
    return f"{len(spec['names'])} parameters, {spec['tracker']}"


def _index(args: argparse.Namespace) -> int:
    from af.data.parts import progress_bar
    from af.data.shards import build_index, split_folders

    with progress_bar() as bar:
        for folder in split_folders(args.folder):
            task = bar.add_task(str(folder), total=None)
            index = build_index(folder, progress=lambda done, total, t=task: bar.update(t, completed=done, total=total))  # type: ignore[misc]
            bar.console.print(
                f"{folder}: {len(index.shards)} shards, {len(index.samples)} samples, {index.frames} frames"
            )
    return 0


def _extract(args: argparse.Namespace) -> int:
    from af.data.extract import extract
    from af.errors import UserError

    if args.out is None:
        raise UserError("extract needs --out FOLDER")
    for path in extract(args.folder, args.sample, args.out):
        print(path)
    return 0
