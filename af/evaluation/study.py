"""A blinded preference study of two systems: an A/B page that opens from disk, and its secret key."""

from __future__ import annotations

import base64
import html
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np

from af.data.audio import read_audio
from af.data.container import MediaError
from af.data.generated import refuse_marked
from af.data.video import iter_video
from af.data.video_writer import write_video
from af.errors import UserError
from af.files import write_json, write_text

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")
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
    """A comparison: mp4 bytes by token, and the user's video if shown. Tokens do not reveal the system."""

    name: str
    videos: Mapping[str, bytes]
    user: bytes | None = None


@dataclass(frozen=True)
class StudyKey:
    """Kept from the page: the system of each token, the content of each trial, and the right token of each attention
    check.
    """

    study: str
    systems: Mapping[str, str]
    trials: Mapping[str, str]
    checks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StudyKey:
        """Read from the key file. Raises KeyError for missing entries."""
        return cls(value["study"], dict(value["systems"]), dict(value["trials"]), dict(value.get("checks", {})))


Pair = tuple[str, Path, Path, Path | None]


def make_study(
    pairs: Sequence[Pair],
    names: Sequence[str],
    out: Path,
    *,
    title: str,
    checks: int = 2,
    limit: int | None = None,
    max_side: int = 320,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> StudyKey:
    """Write `out`/study.html and key.json for `pairs` (name, video of A, of B, of the user) of two systems of these
    `names`.

    Draws at most `limit` comparisons and mixes in `checks` attention checks (one side frozen and blurred). Order and
    sides are random for every rater. `advance` is called per video pair. Raises UserError for equal videos or names.
    """
    if len(names) != 2 or names[0] == names[1] or "check" in names:
        raise UserError(f"the two systems need two different names, got {list(names)}: use --names A,B")
    rng = np.random.default_rng(seed)
    if limit is not None and limit < len(pairs):
        pairs = [pairs[i] for i in sorted(rng.choice(len(pairs), limit, replace=False))]
    key = StudyKey(f"{int(rng.integers(1 << 32)):08x}", {}, {}, {})
    trials: list[Trial] = []

    def token(system: str) -> str:
        while (text := f"{int(rng.integers(1 << 40)):010x}") in key.systems:
            pass
        key.systems[text] = system  # type: ignore[index]
        return text

    def add(about: str, videos: Mapping[str, bytes], user: Path | None, right: str | None = None) -> None:
        """Add a trial with its videos in random order."""
        name, tokens = f"t{len(trials)}", list(videos)
        seen = prepare(user, max_side) if user else None
        trials.append(Trial(name, {tokens[i]: videos[tokens[i]] for i in rng.permutation(len(tokens))}, seen))
        key.trials[name] = about  # type: ignore[index]
        if right is not None:
            key.checks[name] = right  # type: ignore[index]
        advance()

    chosen = rng.choice(len(pairs), min(checks, len(pairs)), replace=False)
    for name, a, b, user in pairs:
        videos = {token(s): prepare(p, max_side) for s, p in zip(names, (a, b), strict=True)}
        if len(set(videos.values())) == 1:
            raise UserError(f"{a} and {b} are the same video, so nobody can prefer one; remove {name!r} from a folder")
        add(name, videos, user)
    for name, a, _, user in (pairs[i] for i in chosen):
        right, wrong = token("check"), token("check")
        videos = {right: prepare(a, max_side), wrong: prepare(a, max_side, spoiled=True)}
        add(f"check on {name}", videos, user, right)
    order = rng.permutation(len(trials))
    write_text(out / "study.html", study_html(key.study, title, [trials[i] for i in order]))
    write_json(out / "key.json", asdict(key))
    return key


def paired_videos(a: Path, b: Path, user: Path | None) -> list[Pair]:
    """(name, video of A, of B, of the user) for names in both folders. Raises UserError without a common name."""
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


def prepare(path: Path, max_side: int, spoiled: bool = False) -> bytes:
    """A small mp4 without traces of the video's origin; if `spoiled`, its blurred first frame with its audio.

    Raises `MediaError` for a video that says by a visible mark that it is generated.
    """
    refuse_marked(path)
    try:
        audio = read_audio(path)
    except MediaError as error:
        if error.reason != "no_audio":
            raise
        audio = None

    def frames() -> Iterator[np.ndarray]:
        still = None
        for frame in iter_video(path, max_side=max_side):
            if spoiled and still is None:
                still = cv2.GaussianBlur(frame, (0, 0), max(frame.shape[:2]) / 25)
            yield frame if still is None else still

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "video.mp4"
        write_video(target, frames(), audio, crf=20)
        return target.read_bytes()


def study_html(study: str, title: str, trials: Sequence[Trial], introduction: str = INTRODUCTION) -> str:
    """The page with its videos, which opens from disk without a server and saves answers as a JSON file."""

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
    page = resources.files("af.evaluation").joinpath("assets/study.html").read_text(encoding="utf-8")
    return Template(page).substitute(title=html.escape(title), data=content)
