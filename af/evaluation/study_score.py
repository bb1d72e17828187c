"""Scoring a preference study: rates with exact intervals, sign tests, attention checks and agreement of raters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from af.errors import UserError
from af.evaluation.study import QUESTIONS, StudyKey
from af.evaluation.table import markdown
from af.files import read_json, write_json, write_text


@dataclass(frozen=True)
class Preference:
    """One question: wins of A and B, ties, A's share of the decided answers with its exact 95 % interval."""

    question: str
    wins_a: int
    ties: int
    wins_b: int
    rate: float
    low: float
    high: float
    p: float
    kappa: float


@dataclass(frozen=True)
class Rater:
    """One person: number of answers, failed and total attention checks, agreement with the others' majority."""

    name: str
    answers: int
    failed: int
    checks: int
    agreement: float
    used: bool


@dataclass(frozen=True)
class Score:
    """The result of a study of systems `a` and `b`."""

    a: str
    b: str
    preferences: tuple[Preference, ...]
    raters: tuple[Rater, ...]


def exact_interval(wins: int, decided: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson interval of a share; (nan, nan) without data."""
    from scipy.stats import binomtest

    if decided == 0:
        return float("nan"), float("nan")
    found = binomtest(wins, decided).proportion_ci(level, "exact")
    return float(found.low), float(found.high)


def fleiss_kappa(counts: np.ndarray) -> float:
    """Agreement beyond chance for items x categories counts, ignoring items with one rater; NaN without any."""
    counts = counts[counts.sum(1) > 1].astype(float)
    if len(counts) == 0:
        return float("nan")
    raters = counts.sum(1)
    observed = np.mean((np.square(counts).sum(1) - raters) / (raters * (raters - 1)))
    chance = np.square(counts.sum(0) / counts.sum()).sum()
    return float((observed - chance) / (1 - chance)) if chance < 1 else float("nan")


def score_files(key_file: Path, answers: Sequence[Path], max_failed: int = 0) -> Score:
    """`score_answers` of the files that the study and its raters have saved. Raises UserError for others."""
    try:
        key = StudyKey.from_json(read_json(key_file))
    except (KeyError, TypeError) as error:
        raise UserError(f"{key_file}: is not a key of `af study make` ({error} is missing)") from error
    sheets = [read_json(file) for file in answers]
    for file, sheet in zip(answers, sheets, strict=True):
        if not isinstance(sheet, dict) or not {"study", "rater", "answers"} <= sheet.keys():
            raise UserError(f"{file}: is not a file of answers saved by the page")
    try:
        return score_answers(key, sheets, max_failed)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the answers do not fit {key_file}: {error}") from error


def score_answers(key: StudyKey, answers: Sequence[Mapping[str, Any]], max_failed: int = 0) -> Score:
    """Preference rates over all raters who failed at most `max_failed` attention checks.

    A rater fails a check by choosing the wrong side, or a tie, in the overall question. p is from the exact two-sided
    sign test on decided answers. Raises ValueError for answers to another study or with unknown tokens.
    """
    from scipy.stats import binomtest

    names = [n for n in dict.fromkeys(key.systems.values()) if n != "check"]  # A comes first, as in `af study make A B`
    if len(names) != 2:
        raise ValueError(f"the key names {len(names)} systems, not two: {names}")
    a, b = names
    votes: dict[str, dict[tuple[str, str], str]] = {}  # rater -> (trial, question) -> system or tie
    failed: dict[str, int] = {}
    seen: dict[str, int] = {}
    for sheet in answers:
        rater = str(sheet["rater"])
        if sheet["study"] != key.study:
            raise ValueError(f"answers of {rater!r} belong to study {sheet['study']!r}, the key to {key.study!r}")
        if rater in votes:
            raise ValueError(f"two files of answers by {rater!r}: give raters different names")
        votes[rater], failed[rater], seen[rater] = {}, 0, 0
        for answer in sheet["answers"]:
            trial, choices = answer["trial"], answer["choices"]
            if trial in key.checks:
                seen[rater] += 1
                failed[rater] += choices.get("overall") != key.checks[trial]
                continue
            for question, choice in choices.items():
                if choice != "tie" and choice not in key.systems:
                    raise ValueError(f"answers of {rater!r}, trial {trial!r}: {choice!r} is not in the key")
                votes[rater][trial, question] = "tie" if choice == "tie" else key.systems[choice]
    used = [r for r in votes if failed[r] <= max_failed]
    preferences = []
    for question, *_ in QUESTIONS:
        given = [v[item] for r in used for v in [votes[r]] for item in v if item[1] == question]
        wins, losses = given.count(a), given.count(b)
        low, high = exact_interval(wins, wins + losses)
        items = sorted({item for r in used for item in votes[r] if item[1] == question})
        table = np.array([[sum(votes[r].get(i) == c for r in used) for c in (a, "tie", b)] for i in items])
        preferences.append(
            Preference(
                question, wins, given.count("tie"), losses, wins / (wins + losses) if wins + losses else float("nan"),
                low, high, binomtest(wins, wins + losses).pvalue if wins + losses else float("nan"),
                fleiss_kappa(table.reshape(len(items), 3)),
            )
        )  # fmt: skip
    raters = tuple(
        Rater(r, len(votes[r]), failed[r], seen[r], _agreement(r, votes, used), r in used) for r in sorted(votes)
    )
    return Score(a, b, tuple(preferences), raters)


def _agreement(rater: str, votes: Mapping[str, Mapping[tuple[str, str], str]], used: Sequence[str]) -> float:
    """Share of a rater's answers equal to the most frequent answer of the other used raters, without tied items."""
    same = total = 0
    for item, own in votes[rater].items():
        others = [votes[r][item] for r in used if r != rater and item in votes[r]]
        ranked = sorted(((others.count(c), c) for c in set(others)), reverse=True)
        if ranked and (len(ranked) == 1 or ranked[0][0] > ranked[1][0]):
            same, total = same + (ranked[0][1] == own), total + 1
    return same / total if total else float("nan")


def score_markdown(score: Score) -> str:
    """The score as two Markdown tables; – for missing values."""

    def percent(value: float) -> str:
        return "–" if np.isnan(value) else f"{value:.1%}"

    def number(value: float, digits: str) -> str:
        return "–" if np.isnan(value) else format(value, digits)

    questions = ["question", score.a, "tie", score.b, f"preferred {score.a}", "95 % interval (exact)"]
    answers = []
    for p in score.preferences:
        interval = f"{percent(p.low)} … {percent(p.high)}"
        counts = [str(p.wins_a), str(p.ties), str(p.wins_b)]
        answers.append([p.question, *counts, percent(p.rate), interval, number(p.p, ".2g"), number(p.kappa, ".2f")])
    raters = [
        [r.name, str(r.answers), f"{r.failed} of {r.checks}", percent(r.agreement), "yes" if r.used else "no"]
        for r in score.raters
    ]
    head = ["rater", "answers", "checks failed", "agreement with the others", "used"]
    return markdown([*questions, "sign test p", "Fleiss κ"], answers) + "\n" + markdown(head, raters, (0, 4))


def write_score(out: Path, score: Score) -> None:
    """Write score.md and score.json, where missing values are null."""
    write_text(out / "score.md", f"# {score.a} against {score.b}\n\n{score_markdown(score)}")
    write_json(out / "score.json", json.loads(json.dumps(asdict(score)), parse_constant=lambda _: None))
