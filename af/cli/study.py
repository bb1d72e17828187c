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

from pathlib import Path
from typing import Annotated

from af.cli.kinds import Count, OutFolder, Seed, Whole
from af.cli.options import More


def make(
    folder_a: Annotated[Path, More(metavar="A"), "videos of one system"],
    folder_b: Annotated[Path, More(metavar="B"), "videos of the other, of the same names"],
    *,
    user: Annotated[Path | None, More(metavar="FOLDER"), "videos of the person they talk with, shown between"] = None,
    out: Annotated[OutFolder, "folder for study.html and key.json"],
    title: Annotated[str, "of the page"] = "Which one would you rather talk with?",
    names: Annotated[str | None, More(metavar="A,B"), "names of the systems in the key (default: the folders')"] = None,
    checks: Annotated[Whole, More(metavar="N"), "attention checks"] = 2,
    limit: Annotated[Count | None, More(metavar="N"), "at most N comparisons, drawn at random"] = None,
    max_side: Annotated[Count, More(metavar="PX"), "largest side of the videos"] = 320,
    seed: Seed = 0,
) -> None:
    """Page and key from two folders of videos."""
    from af.console import progress_bar
    from af.evaluation.study import make_study, paired_videos

    pairs = paired_videos(folder_a, folder_b, user)
    systems = names.split(",") if names else [folder_a.resolve().name, folder_b.resolve().name]
    how = {"title": title, "checks": checks, "limit": limit, "max_side": max_side, "seed": seed}
    shown = min(len(pairs), limit or len(pairs))
    with progress_bar() as progress:
        task = progress.add_task("preparing videos", total=shown + min(checks, shown))
        key = make_study(pairs, systems, out, advance=lambda: progress.advance(task), **how)  # type: ignore[arg-type]
    print(f"{out / 'study.html'}: {shown} comparisons and {len(key.checks)} checks; give this file to the raters")
    print(f"{out / 'key.json'}: keep it; af study score needs it")


def score(
    key: Annotated[Path, More(metavar="key.json"), "what `make` wrote beside the page"],
    answers: Annotated[list[Path], More(nargs="+", metavar="answers.json"), "what the raters have saved"],
    *,
    out: Annotated[OutFolder | None, "write score.json and score.md there"] = None,
    max_failed: Annotated[Whole, More(metavar="N"), "leave out raters who failed more checks"] = 0,
) -> None:
    """Preference rates from the answers."""
    from rich.console import Console
    from rich.markdown import Markdown

    from af.evaluation.study_score import score_files, score_markdown, write_score

    found = score_files(key, answers, max_failed)
    Console().print(Markdown(score_markdown(found)))
    if out:
        write_score(out, found)
        print(f"written to {out}: score.md, score.json")


VERBS = (make, score)
