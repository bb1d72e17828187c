"""A blinded preference study of two systems: make the page, score the answers.

af study make ours/ baseline/ --user users/ --out study/
    af study score study/key.json answers-*.json --out study/result

`make` pairs videos of the same name in both folders and writes study/study.html, one file that opens from disk and
holds all videos, and study/key.json, which alone knows which video is whose: send the page, keep the key. Order and
sides are random for every rater; attention checks (one side frozen and blurred) are mixed in. Raters answer the paper's
five questions (reactiveness, motion richness, verbal and non-verbal alignment, overall) and save a JSON file. `score`
gives preference rates with exact binomial intervals, sign tests, and each rater's checks and agreement.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from af.cli.options import count, out_folder, seed, whole
from af.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Sub-commands make and score."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="make|score")
    make = actions.add_parser("make", help="page and key from two folders of videos")
    make.add_argument("folder_a", type=Path, metavar="A")
    make.add_argument("folder_b", type=Path, metavar="B")
    make.add_argument("--user", type=Path, metavar="FOLDER", help="videos of the person they talk with, shown between")
    make.add_argument("--out", type=out_folder, required=True, help="folder for study.html and key.json")
    make.add_argument("--title", default="Which one would you rather talk with?")
    make.add_argument("--names", metavar="A,B", help="names of the systems in the key (default: the folders')")
    make.add_argument("--checks", type=whole, default=2, metavar="N", help="attention checks (default 2)")
    make.add_argument("--limit", type=count, metavar="N", help="at most N comparisons, drawn at random")
    make.add_argument(
        "--max-side", type=count, default=320, metavar="PX", help="largest side of the videos (default 320)"
    )
    make.add_argument("--seed", type=seed, default=0)
    score = actions.add_parser("score", help="preference rates from the answers")
    score.add_argument("key", type=Path, metavar="key.json")
    score.add_argument("answers", type=Path, nargs="+", metavar="answers.json")
    score.add_argument("--out", type=out_folder, metavar="FOLDER", help="write score.json and score.md there")
    score.add_argument(
        "--max-failed", type=whole, default=0, metavar="N", help="leave out raters who failed more checks"
    )


def run(args: argparse.Namespace) -> int:
    """Make or score."""
    return _make(args) if args.action == "make" else _score(args)


def _make(args: argparse.Namespace) -> int:
    from af.console import progress_bar
    from af.evaluation.study import make_study, paired_videos

    pairs = paired_videos(args.folder_a, args.folder_b, args.user)
    names = args.names.split(",") if args.names else [args.folder_a.resolve().name, args.folder_b.resolve().name]
    how = {"title": args.title, "checks": args.checks, "limit": args.limit, "max_side": args.max_side}
    shown = min(len(pairs), args.limit or len(pairs))
    with progress_bar() as progress:
        task = progress.add_task("preparing videos", total=shown + min(args.checks, shown))
        key = make_study(pairs, names, args.out, seed=args.seed, advance=lambda: progress.advance(task), **how)
    print(f"{args.out / 'study.html'}: {shown} comparisons and {len(key.checks)} checks; give this file to the raters")
    print(f"{args.out / 'key.json'}: keep it; af study score needs it")
    return 0


def _score(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rich.console import Console
    from rich.markdown import Markdown

    from af.evaluation.study import StudyKey
    from af.evaluation.study_score import score_answers, score_markdown
    from af.files import write_json, write_text

    try:
        key = StudyKey.from_json(_read(args.key))
    except (KeyError, TypeError) as error:
        raise UserError(f"{args.key}: is not a key of `af study make` ({error} is missing)") from error
    sheets = []
    for path in args.answers:
        sheet = _read(path)
        if not isinstance(sheet, dict) or not {"study", "rater", "answers"} <= sheet.keys():
            raise UserError(f"{path}: is not a file of answers saved by the page")
        sheets.append(sheet)
    try:
        score = score_answers(key, sheets, args.max_failed)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the answers do not fit {args.key}: {error}") from error
    text = score_markdown(score)
    Console().print(Markdown(text))
    if args.out:
        write_text(args.out / "score.md", f"# {score.a} against {score.b}\n\n{text}")
        plain = json.loads(json.dumps(asdict(score)), parse_constant=lambda _: None)
        write_json(args.out / "score.json", plain)
        print(f"written to {args.out}: score.md, score.json")
    return 0


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
