"""Which numbers of `af compare` notice which fault, with the tracker of real faces: copies of true clips, one fault each.

    python experiments/014_real_people/faults.py DATA/test OUT

DATA/test is a split of shards (`af ingest`) of people who speak, alone or in conversations; nothing is trained. OUT gets the
copies (they show these people: keep it to yourself) and `faults.md` and `faults.json`, which hold numbers only. The
same command again measures only what is missing. Exit code 1: a number did not move as it must.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float32, UInt8
from rich.progress import track
from scipy.ndimage import gaussian_filter

from af.clock import SAMPLE_RATE, frames_to_samples, frames_to_seconds
from af.data.schema import ROLES, other_role
from af.data.shards import ShardReader
from af.data.video_writer import write_video
from af.evaluation.extractors import thumbnail
from af.evaluation.manifest import ManifestClip
from af.evaluation.measured import fill_gaps, hints
from af.evaluation.read_videos import Reader
from af.evaluation.settings import FilesSettings
from af.evaluation.table import markdown, number_text
from af.files import atomic_path, write_json, write_text
from af.ingest.landmarks import FaceLandmarker
from af.metrics import evaluate_clips, families
from af.metrics.records import MetricResult, Protocol
from af.metrics.two_sample import TwoSample

Frames = UInt8[np.ndarray, "T Y X 3"]
#: Rows that need a true user, whom a person alone lacks.
COUPLED = ("rpcc", "pcc", "tlcc", "pfd", "reaction_gain", "react", "response", "c2st/pair")
COPY = "copy"
LATE, LATER, VOICE = 3, 8, 5  # frames


@dataclass(frozen=True)
class Person:
    """One person in one clip; `user` is the other one in it, or None."""

    name: str
    identity: str
    session: str
    frames: Frames
    voice: Float32[np.ndarray, " S"]
    user: Person | None = None


@dataclass(frozen=True)
class Fault:
    """`images` makes the faulty frames of a person from theirs and those of somebody else; `voice` shifts the audio."""

    name: str
    images: Callable[[Frames, Frames], Frames]
    voice: int = 0


@dataclass(frozen=True)
class Cell:
    """A number under one fault, and whether it moved from the copy's."""

    value: float | None = None
    truth: float | None = None
    null: float | None = None
    moved: bool = False

    def to_json(self) -> dict[str, float | bool]:
        """What is known of it."""
        return {name: value for name, value in vars(self).items() if value is not None and isfinite(value)}


#: {tag: {fault: number}}
Rows = dict[str, dict[str, Cell]]


def _delayed(frames: Frames, by: int) -> Frames:
    return frames[np.maximum(np.arange(len(frames)) - by, 0)]


def _blurred(frames: Frames) -> Frames:
    sigma = frames.shape[1] / 100
    return gaussian_filter(frames, (0, sigma, sigma, 0))


FAULTS = (
    Fault(COPY, lambda own, other: own),
    Fault(f"{LATE} frames late", lambda own, other: _delayed(own, LATE)),
    Fault(f"{LATER} frames late", lambda own, other: _delayed(own, LATER)),
    Fault("mirrored", lambda own, other: own[:, :, ::-1]),
    Fault("frozen", lambda own, other: np.repeat(own[:1], len(own), 0)),
    Fault("another person", lambda own, other: other[np.arange(len(own)) % len(other)]),
    Fault("blurred", lambda own, other: _blurred(own)),
    Fault(f"voice {VOICE} frames late", lambda own, other: own, VOICE),
)


@dataclass(frozen=True)
class Expected:
    """How a tag must differ from the copy's: "up", "down", "same", or by so many frames, to half a one."""

    fault: str
    tag: str
    how: str | float

    def holds(self, rows: Rows) -> bool | None:
        """Whether it does (`moved`); None if the number is not there."""
        row = rows.get(self.tag, {})
        own, copy = (row.get(name, Cell()).value for name in (self.fault, COPY))
        if own is None or copy is None or not (isfinite(own) and isfinite(copy)):
            return None
        if not isinstance(self.how, str):
            return abs(own - copy - self.how) <= 0.5
        moved = row[self.fault].moved
        small = abs(own - copy) <= 0.05 * abs(copy)
        return {"up": moved and own > copy, "down": moved and own < copy, "same": not moved or small}[self.how]


def _expected(*claims: tuple[str, str | float, str]) -> tuple[Expected, ...]:
    """One for every tag of (fault, how, tags)."""
    return tuple(Expected(fault, tag, how) for fault, how, tags in claims for tag in tags.split())


ALONE = _expected(
    (f"{LATE} frames late", LATE, "mouth/lag lip/lag"),
    (f"{LATE} frames late", "down", "psnr ssim"),
    (f"{LATE} frames late", "same", "lip/corr mouth/corr var_ratio/exp var_ratio/pose sid/exp sharpness"),
    (f"{LATER} frames late", LATER, "lip/lag"),
    (f"{LATER} frames late", "down", "mouth/corr psnr ssim"),
    ("mirrored", 0.0, "mouth/lag lip/lag"),
    ("mirrored", "up", "fd/exp fd/pose c2st/motion fd_img/thumbnail8-1 l1"),
    ("mirrored", "down", "psnr ssim"),
    ("mirrored", "same", "lip/corr var_ratio/exp var_ratio/pose sharpness"),
    ("frozen", "up", "fd/exp fd/pose c2st/motion fd_img/thumbnail8-1 l1"),
    (
        "frozen",
        "down",
        "var_ratio/exp var_ratio/pose sid/exp sid/pose jerk/exp jerk/pose lip/corr mouth/corr psnr ssim",
    ),
    ("another person", "up", "fd/exp fd/pose fd_img/thumbnail8-1 l1"),
    ("another person", "down", "mouth/corr lip/corr psnr ssim"),
    ("blurred", "down", "sharpness psnr ssim"),
    ("blurred", "down", "mouth/corr"),  # the tracker reads soft lips less well
    ("blurred", "up", "fd/exp fd/pose"),
    ("blurred", 0.0, "mouth/lag lip/lag"),
    (f"voice {VOICE} frames late", -VOICE, "lip/lag"),
    (f"voice {VOICE} frames late", "same", "mouth/corr lip/corr psnr"),
)
CONVERSATIONS = _expected(
    (f"{LATER} frames late", "up", "rpcc/exp/clip pfd/exp pfd/pose"),
    ("mirrored", "up", "rpcc/pose/clip pfd/exp pfd/pose"),
    ("frozen", "up", "rpcc/exp/clip pfd/exp pfd/pose"),
    ("another person", "up", "pfd/exp pfd/pose"),
)


def people(split: Path, longest: int) -> list[Person]:
    """Everybody with a voice in a split: the first `longest` frames of one clip of each person alone, whole conversations."""
    reader, found, alone = ShardReader(split), list[Person](), set[str]()
    for i in track(range(len(reader)), description="reading clips"):
        meta = reader.read_meta(i)
        roles = reader.index.samples[i].roles
        if len(roles) == 1 and (meta.participants[0] in alone or not reader.has(i, "a.flac")):
            continue
        clip, both = reader.read(i, ("video", "audio")), dict[str, Person]()
        for role, identity in zip(ROLES, meta.participants, strict=True):
            if role in roles:
                end = meta.frames if len(roles) > 1 else longest
                frames, voice = getattr(clip, role).video[:end], getattr(clip, role).audio[: frames_to_samples(end)]
                both[role] = Person(f"{clip.key}-{role}", identity, meta.session, frames, voice)
        alone |= {meta.participants[0]} if len(roles) == 1 else set()
        for role, person in both.items():
            found.append(Person(**{**vars(person), "user": both.get(other_role(role))}))
    return found


def judged(
    persons: Sequence[Person], folder: Path, tracker: FaceLandmarker, resamples: int
) -> tuple[Rows, dict[str, str]]:
    """Write the copies of these people and compare them with the true clips: the rows, and {tag: why it has none}."""
    settings = FilesSettings(
        tracker=tracker,
        tracker_of_arrays=tracker.face_spec.tracker,
        networks={"thumbnail": thumbnail()},
        protocol=Protocol(block=10, clusters=((40, 20),), gain_bands=(), resamples=resamples),
    )
    true = folder / "true"
    true.mkdir(parents=True, exist_ok=True)
    for person in track(persons, description="true clips"):
        if not (true / f"{person.name}.npy").is_file():
            soundfile.write(true / f"{person.name}.wav", person.voice, SAMPLE_RATE)
            write_video(true / f"{person.name}.mp4", person.frames)
            values = fill_gaps(tracker.track(person.frames), person.name)[0]
            with atomic_path(true / f"{person.name}.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, values)
    metrics = [m for m in families(settings.named_protocol) if not isinstance(m, TwoSample)]
    metrics.append(TwoSample(10, None, alone=False, resamples=resamples))
    results, absent = dict[str, MetricResult](), dict[str, str]()
    for fault in FAULTS:
        reader = Reader(settings, folder / fault.name.replace(" ", "_") / "cache")
        place = reader.cache.parent
        clips = [
            reader.read(_with_fault(n, persons, fault, true, place))
            for n in track(range(len(persons)), description=fault.name)
        ]
        results[fault.name] = result = evaluate_clips([clip.clip for clip in clips], metrics=metrics)
        absent |= {tag: why for tag, why in hints(clips, 10, "", "").items() if tag in result.absent}
        absent = {**result.absent, "drift, latency, speed": "measured on a running system, not on files", **absent}
        if fault.name == COPY:
            absent |= {row.tag: row.note or "not a number" for row in result.rows if not isfinite(row.value)}
    if persons[0].user is None:
        absent |= dict.fromkeys(COUPLED, "people alone have no user")
    return _rows(results, absent, {*tracker.face_spec.names}), absent


def _rows(results: dict[str, MetricResult], absent: Collection[str], parameters: Collection[str]) -> Rows:
    """The numbers of all faults, without single parameters' and those that mean nothing here."""
    rows: Rows = {}
    for name, result in results.items():
        before = results[COPY].draws
        for row in result.rows:
            if row.tag.split("/")[-1] in parameters or any(f"{row.tag}/".startswith(f"{tag}/") for tag in absent):
                continue
            draws = [d for d in (result.draws.get(row.tag), before.get(row.tag)) if d is not None]
            error = float(np.nanstd(draws[0] - draws[1])) if len(draws) == 2 else 0.0
            copy = rows[row.tag][COPY].value if name != COPY and row.tag in rows else row.value
            step = abs(row.value - (copy or 0.0))
            cell = Cell(row.value, row.ground_truth, row.null, step > max(2 * error, 0.02 * abs(copy or 0.0)))
            rows.setdefault(row.tag, {})[name] = cell
    return rows


def _with_fault(n: int, persons: Sequence[Person], fault: Fault, true: Path, place: Path) -> ManifestClip:
    """Write the n-th person with a fault; their row in the list."""
    person = persons[n]
    other = next((p for p in [*persons[n + 1 :], *persons[:n]] if p.identity != person.identity), person)
    audio, generated = true / f"{person.name}.wav", place / f"{person.name}.mp4"
    if not generated.is_file():
        write_video(generated, np.ascontiguousarray(fault.images(person.frames, other.frames)))
    if fault.voice and not (audio := place / f"{person.name}.wav").is_file():
        delayed = np.pad(person.voice, (frames_to_samples(fault.voice), 0))[: len(person.voice)]
        soundfile.write(audio, delayed, SAMPLE_RATE)
    user, user_audio = true / f"{(person.user or other).name}.npy", None
    if person.user is not None:
        user_audio = true / f"{person.user.name}.wav"
    elif len(other.frames) != len(person.frames):  # a list needs users: somebody else's face, cut or repeated
        values, user = np.load(user), true / f"{person.name}-user.npy"
        if not user.is_file():
            np.save(user, values[np.arange(len(person.frames)) % len(values)])
    return ManifestClip(
        person.name,
        user,
        true / f"{person.name}.mp4",
        generated,
        audio,
        user_audio,
        true_face=true / f"{person.name}.npy",
        identity=person.identity,
        session=person.session,
    )


def _written(title: str, rows: Rows, absent: dict[str, str], expected: Sequence[Expected]) -> str:
    faults = [fault.name for fault in FAULTS]
    lines = []
    for tag, row in rows.items():
        copy, cells = row.get(COPY, Cell()), []
        for cell in (row.get(fault, Cell()) for fault in faults):
            text = f"**{number_text(cell.value)}**" if cell.moved else number_text(cell.value)
            other = cell.truth is not None and cell.truth != copy.truth  # a fault of the voice is one of the truth, too
            cells.append(f"{text} (truth {number_text(cell.truth)})" if other else text)
        lines.append([f"`{tag}`", number_text(copy.truth), number_text(copy.null), *cells])
    claims = [
        [
            claim.fault,
            f"`{claim.tag}`",
            claim.how if isinstance(claim.how, str) else f"{claim.how:+g}",
            *(number_text(rows.get(claim.tag, {}).get(name, Cell()).value) for name in (COPY, claim.fault)),
            {True: "yes", False: "**no**", None: "no row"}[claim.holds(rows)],
        ]
        for claim in expected
    ]
    missing = "".join(f"- `{tag}`: {why}\n" for tag, why in sorted(absent.items()))
    return (
        f"### {title}\n\n{markdown(['metric', 'truth', 'null', *faults], lines)}\n"
        "Bold: moved from the copy's value by two standard errors of the difference and 2 %.\n\nNo row:\n\n"
        f"{missing}\n{markdown(['fault', 'metric', 'must move', 'copy', 'fault', 'holds'], claims, (0, 1, 2, 5))}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the copies, judge them, write the tables, and say which expectations hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--frames", type=int, default=200, help="of each person alone, at most (default 200: 8 s)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap draws (default 1000)")
    args = parser.parse_args(arguments)
    tracker, everybody = FaceLandmarker(), people(args.split, args.frames)
    texts, numbers, broken = list[str](), dict[str, Any](), list[str]()
    kinds = (
        ("People alone", [p for p in everybody if p.user is None], ALONE),
        ("Conversations", [p for p in everybody if p.user is not None], CONVERSATIONS),
    )
    for kind, persons, expected in kinds:
        if not persons:
            continue
        rows, absent = judged(persons, args.out / kind.lower().replace(" ", "_"), tracker, args.resamples)
        seconds = frames_to_seconds(sum(len(p.frames) for p in persons))
        title = f"{kind}: {len(persons)} clips of {len({p.identity for p in persons})} people, {seconds:.0f} s"
        texts.append(_written(title, rows, absent, expected))
        holds = {f"{claim.fault}: {claim.tag} {claim.how}": claim.holds(rows) for claim in expected}
        broken += [claim for claim, held in holds.items() if held is False]
        cells = {tag: {fault: cell.to_json() for fault, cell in row.items()} for tag, row in rows.items()}
        numbers[kind] = {
            "clips": title,
            "tracker": tracker.face_spec.tracker,
            "rows": cells,
            "absent": absent,
            "holds": holds,
        }
    write_text(args.out / "faults.md", "\n".join(texts))
    write_json(args.out / "faults.json", numbers)
    print("\n".join(texts))
    print(f"{args.out}/faults.md; {len(broken)} not moving as they must", *broken, sep="\n", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
