"""Preference study: a blinded A/B page that opens from disk, and the score of its answers."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template
from typing import Any

import numpy as np

#: The paper's five questions.
QUESTIONS = (
    ("reactiveness", "Who reacts better to the other person?", "smiles back, nods, follows what is said and done"),
    ("motion_richness", "Whose expressions and head movements are richer?", "lively rather than stiff"),
    ("verbal_alignment", "Whose lips fit the speech better?", "look at mouth and sound"),
    ("non_verbal_alignment", "Whose behaviour fits the other person's behaviour better?", "apart from speech"),
    ("overall", "Whom would you rather talk with?", "everything together"),
)
INTRODUCTION = (
    "Two animated people take part in the same conversation. Watch both, then say for each question which is better. "
    "There are no right answers; choose “No difference” when you see none."
)


@dataclass(frozen=True)
class Trial:
    """A comparison: mp4 bytes by token, the user's video if it is shown. Tokens say nothing about the system."""

    name: str
    videos: Mapping[str, bytes]
    user: bytes | None = None


@dataclass(frozen=True)
class StudyKey:
    """What the page must not know: system by token, and the token that is right in each attention check."""

    study: str
    systems: Mapping[str, str]
    trials: Mapping[str, str]
    checks: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For the key file."""
        return {
            "study": self.study,
            "systems": dict(self.systems),
            "trials": dict(self.trials),
            "checks": dict(self.checks),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StudyKey:
        """From the key file; KeyError names what is missing."""
        return cls(value["study"], dict(value["systems"]), dict(value["trials"]), dict(value.get("checks", {})))


def study_html(study: str, title: str, trials: Sequence[Trial], introduction: str = INTRODUCTION) -> str:
    """The page with its videos: opens from disk, asks no server, saves the answers as a JSON file."""

    def text(video: bytes | None) -> str | None:
        return None if video is None else base64.b64encode(video).decode()

    data = {
        "id": study,
        "title": title,
        "introduction": introduction,
        "questions": [{"id": i, "text": t, "help": h} for i, t, h in QUESTIONS],
        "trials": [
            {"id": t.name, "videos": {k: text(v) for k, v in t.videos.items()}, "user": text(t.user)} for t in trials
        ],
    }
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = resources.files("af.metrics").joinpath("assets/study.html").read_text(encoding="utf-8")
    return Template(page).substitute(title=html.escape(title), data=content)


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
    """One person: answers given, attention checks failed of how many, share of answers equal to the others' majority."""

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
    """Clopper–Pearson interval of a share; (nan, nan) of nothing."""
    from scipy.stats import beta

    if decided == 0:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low = 0.0 if wins == 0 else float(beta.ppf(tail, wins, decided - wins + 1))
    high = 1.0 if wins == decided else float(beta.ppf(1 - tail, wins + 1, decided - wins))
    return low, high


def fleiss_kappa(counts: np.ndarray) -> float:
    """Agreement beyond chance of items x categories counts (items with one rater do not count); NaN without any."""
    counts = counts[counts.sum(1) > 1].astype(float)
    if len(counts) == 0:
        return float("nan")
    raters = counts.sum(1)
    observed = np.mean((np.square(counts).sum(1) - raters) / (raters * (raters - 1)))
    chance = np.square(counts.sum(0) / counts.sum()).sum()
    return float((observed - chance) / (1 - chance)) if chance < 1 else float("nan")


def score_answers(key: StudyKey, answers: Sequence[Mapping[str, Any]], max_failed: int = 0) -> Score:
    """Preference rates over all raters who failed at most `max_failed` attention checks.

    A rater fails a check when the overall question is answered for the wrong side, or as a tie. p is the exact two-sided
    sign test on decided answers. Raises ValueError for answers to another study or with tokens that the key lacks.
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
    """Share of a rater's answers that equal the other used raters' most frequent answer (undecided items left out)."""
    same = total = 0
    for item, own in votes[rater].items():
        others = [votes[r][item] for r in used if r != rater and item in votes[r]]
        ranked = sorted(((others.count(c), c) for c in set(others)), reverse=True)
        if ranked and (len(ranked) == 1 or ranked[0][0] > ranked[1][0]):
            same, total = same + (ranked[0][1] == own), total + 1
    return same / total if total else float("nan")


def score_markdown(score: Score) -> str:
    """The score as two Markdown tables; – where nothing was decided or nobody to agree with."""

    def percent(value: float) -> str:
        return "–" if np.isnan(value) else f"{value:.1%}"

    def number(value: float, digits: str) -> str:
        return "–" if np.isnan(value) else format(value, digits)

    lines = [
        f"| question | {score.a} | tie | {score.b} | preferred {score.a} | 95 % interval (exact) | sign test p | Fleiss κ |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {p.question} | {p.wins_a} | {p.ties} | {p.wins_b} | {percent(p.rate)} | "
        f"{percent(p.low)} … {percent(p.high)} | {number(p.p, '.2g')} | {number(p.kappa, '.2f')} |"
        for p in score.preferences
    ]
    lines += [
        "",
        "| rater | answers | checks failed | agreement with the others | used |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {r.name} | {r.answers} | {r.failed} of {r.checks} | {percent(r.agreement)} | {'yes' if r.used else 'no'} |"
        for r in score.raters
    ]
    return "\n".join(lines) + "\n"
