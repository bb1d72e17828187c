"""A blinded preference study of two systems: make the page, score the answers.

    af study make ours/ baseline/ --user users/ --out study/
    af study score study/key.json answers-*.json --out study/result

`make` pairs videos of the same name in both folders and writes study/study.html, one file that opens from disk and holds
all videos, and study/key.json, which alone knows which video is whose: send the page, keep the key. Order and sides are
drawn anew for every rater; attention checks (one side frozen and blurred) are mixed in. Raters answer the paper's five
questions (reactiveness, motion richness, verbal and non-verbal alignment, overall) and save a JSON file.
`score` gives preference rates with exact binomial intervals, sign tests, and each rater's checks and agreement.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from af.cli.options import count, out_folder, seed, whole
from af.errors import UserError

if TYPE_CHECKING:
    from af.evaluation.study import Trial

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")


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
    return make_study(args) if args.action == "make" else score_study(args)


def paired_videos(a: Path, b: Path, user: Path | None) -> list[tuple[str, Path, Path, Path | None]]:
    """(name, video of A, of B, of the user) for names in both folders. UserError naming folders without a common one."""
    found = []
    for folder in (a, b, *([user] if user else [])):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        found.append({p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in VIDEOS})
    names = [n for n in found[0] if n in found[1]]
    if not names:
        raise UserError(f"{a} and {b}: no video has the same name in both ({len(found[0])} and {len(found[1])} videos)")
    if user and (missing := [n for n in names if n not in found[2]]):
        raise UserError(f"{user}: no video called {missing[0]}")
    return [(n, found[0][n], found[1][n], found[2][n] if user else None) for n in names]


def make_study(args: argparse.Namespace) -> int:
    """Write the page and the key."""
    from af.console import progress_bar
    from af.evaluation.study import StudyKey, study_html
    from af.files import write_json, write_text

    rng = np.random.default_rng(args.seed)
    pairs = paired_videos(args.folder_a, args.folder_b, args.user)
    if args.limit is not None and args.limit < len(pairs):
        pairs = [pairs[i] for i in sorted(rng.choice(len(pairs), args.limit, replace=False))]
    names = args.names.split(",") if args.names else [args.folder_a.resolve().name, args.folder_b.resolve().name]
    if len(names) != 2 or names[0] == names[1] or "check" in names:
        raise UserError(f"the two systems need two different names, got {names}: use --names A,B")
    study = f"{int(rng.integers(1 << 32)):08x}"
    systems: dict[str, str] = {}
    trials: list[Trial] = []
    key_trials: dict[str, str] = {}
    checks: dict[str, str] = {}

    def token(system: str) -> str:
        while (text := f"{int(rng.integers(1 << 40)):010x}") in systems:
            pass
        systems[text] = system
        return text

    chosen = rng.choice(len(pairs), min(args.checks, len(pairs)), replace=False)
    with progress_bar() as progress:
        task = progress.add_task("preparing videos", total=len(pairs) + len(chosen))
        for n, (name, a, b, user) in enumerate(pairs):
            videos = {token(s): prepare(p, args.max_side) for s, p in zip(names, (a, b), strict=True)}
            if len(set(videos.values())) == 1:
                raise UserError(
                    f"{a} and {b} are the same video: nobody can prefer one; leave {name!r} out of a folder"
                )
            user_video = prepare(user, args.max_side) if user else None
            trials.append(_shuffled(f"t{n}", videos, user_video, rng))
            key_trials[f"t{n}"] = name
            progress.advance(task)
        for n, i in enumerate(chosen):
            name, a, _, user = pairs[i]
            right, wrong = token("check"), token("check")
            videos = {right: prepare(a, args.max_side), wrong: prepare(a, args.max_side, spoiled=True)}
            trials.append(_shuffled(f"t{len(pairs) + n}", videos, prepare(user, args.max_side) if user else None, rng))
            checks[f"t{len(pairs) + n}"] = right
            key_trials[f"t{len(pairs) + n}"] = f"check on {name}"
            progress.advance(task)
    order = rng.permutation(len(trials))
    page = args.out / "study.html"
    write_text(page, study_html(study, args.title, [trials[i] for i in order]))
    key = StudyKey(study, systems, key_trials, checks).to_json()
    write_json(args.out / "key.json", key)
    print(f"{page}: {len(pairs)} comparisons and {len(checks)} checks; give this file to the raters")
    print(f"{args.out / 'key.json'}: keep it; af study score needs it")
    return 0


def _shuffled(name: str, videos: dict[str, bytes], user: bytes | None, rng: np.random.Generator) -> Trial:
    """A trial whose order of videos says nothing."""
    from af.evaluation.study import Trial

    tokens = list(videos)
    return Trial(name, {tokens[i]: videos[tokens[i]] for i in rng.permutation(len(tokens))}, user)


def prepare(path: Path, max_side: int, spoiled: bool = False) -> bytes:
    """The video as a small mp4 without a trace of its origin; `spoiled`: its first frame, blurred, with the same sound."""
    import tempfile

    from af.data.audio import read_audio
    from af.data.container import MediaError
    from af.data.video import iter_video
    from af.data.video_writer import write_video

    try:
        audio = read_audio(path)
    except MediaError as error:
        if error.reason != "no_audio":
            raise
        audio = None

    def frames() -> Iterator[np.ndarray]:
        import cv2

        still = None
        for frame in iter_video(path, max_side=max_side):
            if spoiled and still is None:
                still = cv2.GaussianBlur(frame, (0, 0), max(frame.shape[:2]) / 25)
            yield frame if still is None else still

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "video.mp4"
        write_video(target, frames(), audio, crf=20)
        return target.read_bytes()


def score_study(args: argparse.Namespace) -> int:
    """Print and write the score."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.markdown import Markdown

    from af.evaluation.study import StudyKey, score_answers, score_markdown
    from af.files import write_json, write_text

    def load(path: Path):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as JSON ({error})") from error

    try:
        key = StudyKey.from_json(load(args.key))
    except (KeyError, TypeError) as error:
        raise UserError(f"{args.key}: is not a key of `af study make` ({error} is missing)") from error
    sheets = []
    for path in args.answers:
        sheet = load(path)
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
