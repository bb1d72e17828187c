"""Many conversations into one folder of shards: in parallel, each on its own, resumable, with a report."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from af.clock import frames_to_seconds
from af.console import progress_bar
from af.data.index import build_index, tars
from af.data.media import MediaError
from af.data.notes import Notes
from af.data.parts import WHOLE, Part, Share, run_parts, tell_unfinished
from af.data.schema import SPLITS
from af.data.shards import write_shard
from af.data.tables import shown
from af.errors import UserError
from af.files import exclusive, remove_stale, write_json
from af.ingest.detect import Detector, make_detector
from af.ingest.look import Watch
from af.ingest.options import IngestOptions
from af.ingest.recording import cut_out, examine
from af.ingest.sources import Rejected, Source
from af.ingest.splits import assign_splits, groups_of_people, one_person

LEDGER: Final = ".ingest"
REPORT: Final = "ingest_report.json"


@dataclass(frozen=True)
class Outcome:
    """What became of one conversation. `reason` is None when it gave clips, else a short word for counting.

    `dropped_s` are seconds left out of a usable conversation, by reason. `line` is the message for a person. `notes` are
    what is noteworthy and leaves it usable: {"kind", "text"} each.
    """

    name: str
    split: str
    participants: tuple[str, str]
    clips: int
    kept_s: float
    dropped_s: dict[str, float]
    reason: str | None
    line: str
    shard: str | None
    fingerprint: dict[str, Any]
    notes: tuple[dict[str, str], ...] = ()

    @classmethod
    def dropped(cls, source: Source, split: str, reason: str, line: str) -> Outcome:
        """Of a conversation that is not even read."""
        return cls(source.name, split, source.participants, 0, 0.0, {}, reason, line, None, {})


@dataclass(frozen=True)
class IngestReport:
    """All conversations of the folder that were asked for, and how many were done before.

    `notes` are lines about the whole: splits that stay empty, people under several names. `complete`: nothing is left to
    other shares, and the report is written.
    """

    outcomes: tuple[Outcome, ...]
    done_before: int
    notes: tuple[str, ...] = ()
    complete: bool = True

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Conversations that gave nothing."""
        return tuple(o for o in self.outcomes if o.reason is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with totals first."""
        dropped: Counter[str] = Counter()
        for outcome in self.outcomes:
            dropped.update(outcome.dropped_s)
        return {
            "conversations": len(self.outcomes),
            "clips": sum(o.clips for o in self.outcomes),
            "kept_s": round(sum(o.kept_s for o in self.outcomes), 2),
            "dropped_s": {k: round(v, 2) for k, v in sorted(dropped.items())},
            "failed": dict(Counter(str(o.reason) for o in self.failed)),
            "notes": list(self.notes),
            "notes_by_kind": dict(Counter(note["kind"] for o in self.outcomes for note in o.notes)),
            "outcomes": [asdict(o) for o in self.outcomes],
        }


def ingest_one(
    path: Path,
    out: Path,
    source: Source,
    split: str,
    options: IngestOptions,
    detector: Detector | None = None,
    watch: Watch | None = None,
) -> None:
    """Ingest one conversation: a shard in `out`/`split` when it gives clips, then its outcome as JSON in `path`.

    Bad input is an outcome, not an error. `detector` None: the one that `options` name. Raises `UserError` when the
    output cannot be written.
    """
    shard = out / split / f"{source.id}.tar"
    fingerprint = source.fingerprint()
    shard.unlink(missing_ok=True)  # of an earlier state of the files
    clips, kept_s, dropped_s, reason, line = 0, 0.0, {}, None, ""
    notes = Notes()
    try:
        finder = detector or make_detector(options.detector, options.detector_model)
        with _reading(source):
            recording = examine(source, options, finder, watch, notes)
        dropped_s = {k: frames_to_seconds(n) for k, n in recording.dropped.items() if n}
        if recording.clips:
            clips, frames = write_shard(shard, _read(source, cut_out(source, recording, options, split, watch)))
            kept_s = frames_to_seconds(frames)
        else:
            reason = "no_clip"
            faces = frames_to_seconds(recording.dropped["too_short"])
            line = f"{source.name}: no stretch of {options.min_s:g} s with both faces and no scene cut ({faces:.1f} s with both faces)"
    except MediaError as error:
        reason, line = error.reason, shown(str(error))
    except OSError as error:
        raise UserError(f"{shard}: cannot be written ({error.strerror or error})") from error
    except (UserError, MemoryError):
        raise  # not this input's fault: stop
    except Exception as error:
        reason, line = "unexpected", shown(f"{source.name}: {type(error).__name__}: {str(error).strip()}")
    outcome = Outcome(
        source.name,
        split,
        source.participants,
        clips,
        kept_s,
        dropped_s,
        reason,
        line,
        shard.name if clips else None,
        fingerprint,
        tuple({"kind": note.kind, "text": shown(note.text)} for note in notes),
    )
    write_json(path, asdict(outcome))


@contextlib.contextmanager
def _reading(source: Source) -> Iterator[None]:
    """A file that the system cannot give (no permission, too long a name, a drive that is gone) is the file's fault."""
    try:
        yield
    except OSError as error:
        path = error.filename or source.name
        raise MediaError(shown(str(path)), "unreadable", f"cannot be read ({error.strerror or error})") from error


def _read(source: Source, samples: Iterator[Any]) -> Iterator[Any]:
    with _reading(source):
        yield from samples


def _read_outcome(path: Path) -> Outcome | None:
    try:
        data = json.loads(path.read_text("utf-8"))
        return Outcome(**{**data, "participants": tuple(data["participants"]), "notes": tuple(data.get("notes", ()))})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _still_good(outcome: Outcome | None, source: Source, out: Path) -> bool:
    """Whether an earlier outcome holds: the same files, its shard in place, no accident."""
    if outcome is None or outcome.reason in ("unexpected", "memory") or outcome.fingerprint != source.fingerprint():
        return False
    return outcome.shard is None or (out / outcome.split / outcome.shard).is_file()


def _same_options(out: Path, options: IngestOptions) -> None:
    file = out / LEDGER / "options.json"
    if file.is_file():
        before = IngestOptions().to_json() | json.loads(file.read_text("utf-8"))
        now = options.to_json()
        changed = [f"{k} {before.get(k)!r} -> {now[k]!r}" for k in now if before.get(k) != now[k]]
        if changed:
            raise UserError(
                f"{out} was filled with other settings ({', '.join(changed)}): give another --out, or delete it"
            )
    write_json(file, options.to_json())


def run_ingest(
    sources: Sequence[Source],
    out: Path | str,
    options: IngestOptions,
    *,
    split: str = "train",
    fractions: Sequence[float] | None = None,
    workers: int = 1,
    detector: Detector | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    share: Share = WHOLE,
    rejected: Sequence[Rejected] = (),
) -> IngestReport:
    """Ingest `sources` into `out`/{train,val,test} and index them; what was done before, from unchanged files, is not
    done again.

    `fractions` of train, val and test assign conversations by a hash over connected people; None puts all into `split`.
    `on_outcome` sees each new outcome at once. `rejected` is what the list named and cannot be begun: reported with the
    rest. With a `share` of several, only its conversations are ingested; the share
    that ends last indexes the splits and writes the report of all, the report of the others has their own. Raises `UserError` for what concerns all: settings that differ from
    the folder's, a full disk, a missing detector.
    """
    out = Path(out)
    once = {s.id: s for s in reversed(sources)}
    refused = [Outcome(r.name, split, ("", ""), 0, 0.0, {}, r.reason, r.line, None, {}) for r in rejected]
    refused += [  # flags and a manifest may name one conversation each
        Outcome.dropped(s, split, "listed_twice", f"{s.name}: listed twice") for s in sources if once[s.id] is not s
    ]
    sources = [s for s in sources if once[s.id] is s]
    if detector is None:
        make_detector(options.detector, options.detector_model)  # fails before any work
    _same_options(out, options)
    same, remarks = one_person(sources)
    parts, objections = _plan(sources, out, options, split, fractions, detector, share, same)
    mine = share.of(parts)

    def tell(part: Part, _: Any) -> None:
        outcome = _read_outcome(part.path)
        if outcome is not None and on_outcome is not None:
            on_outcome(outcome)

    def drop(part: Part) -> None:
        _, source, where, *_ = part.args
        line = (
            f"{source.name}: reading it ends the process (a file that crashes a decoder, or more memory than there is); "
            f"delete {part.path} to try it again"
        )
        remove_stale(out / where)
        outcome = Outcome.dropped(source, where, "crash", line)
        write_json(part.path, asdict(replace(outcome, fingerprint=source.fingerprint())))

    with progress_bar() as bar:
        inner = bar.add_task("", total=None, visible=False)
        here = partial(  # within this process: show how far into a file it is
            ingest_one,
            watch=lambda step, frames: bar.update(inner, description=step, completed=frames, visible=True),
        )
        done = run_parts(
            mine,
            ingest_one,
            workers=workers,
            description="conversations",
            on_result=tell,
            progress=bar,
            here=here,
            on_death=drop,
        )
    chosen = sources
    if missing := sum(not part.path.exists() for part in parts):
        tell_unfinished(share, missing, len(parts))
        ours = {part.path.stem for part in mine}
        chosen = [source for source in sources if source.id in ours]
    outcomes = []
    for source in chosen:
        outcome = objections.get(source.id) or _read_outcome(out / LEDGER / f"{source.id}.json")
        assert outcome is not None
        outcomes.append(outcome)
    if not missing:
        remarks += _empty_splits(out, sources, same, split if fractions is None else None, fractions)
    report = IngestReport((*outcomes, *refused), done.skipped, tuple(remarks), not missing)
    if not missing:
        with exclusive(out / LEDGER / ".finishing"):
            for name in SPLITS:
                if tars(out / name):
                    build_index(out / name)
            write_json(out / REPORT, report.to_json())
    return report


def _plan(
    sources: Sequence[Source],
    out: Path,
    options: IngestOptions,
    split: str,
    fractions: Sequence[float] | None,
    detector: Detector | None,
    share: Share,
    same: Mapping[str, str],
) -> tuple[list[Part], dict[str, Outcome]]:
    """One part a conversation, and the outcomes of those that no split may have. What has changed is made anew: of this
    share, the others see to theirs.
    """
    ledger = out / LEDGER
    earlier = {p.stem: _read_outcome(p) for p in ledger.glob("*.json") if p.stem != "options"}
    ours = {s.id for s in sources}
    assigned = {
        person: o.split
        for key, o in earlier.items()
        if o is not None and o.clips and (key not in ours or (out / o.split / str(o.shard)).is_file())
        for person in o.participants
    }
    placed = assign_splits(sources, split=split, fractions=fractions, assigned=assigned, same=same)
    parts: list[Part] = []
    objections: dict[str, Outcome] = {}
    for source, (where, objection) in zip(sources, placed, strict=True):
        if objection is None:
            parts.append(Part(ledger / f"{source.id}.json", (out, source, where, options, detector)))
            continue
        objections[source.id] = Outcome.dropped(source, where, "identity_overlap", f"{source.name}: {objection}")
    for part in share.of(parts):
        if part.path.exists() and not _still_good(earlier.get(part.path.stem), part.args[1], out):
            part.path.unlink()
    return parts, objections


def _empty_splits(
    out: Path,
    sources: Sequence[Source],
    same: Mapping[str, str],
    split: str | None,
    fractions: Sequence[float] | None,
) -> list[str]:
    """A line about splits without a clip: why they are empty and what to do. None where only what was asked for is."""
    empty = [name for name in SPLITS if not tars(out / name)]
    if not empty or len(empty) == len(SPLITS):
        return []
    use = {"train": "to train", "val": "to watch a training by", "test": "for `af evaluate` and held-out films"}
    missing = ", ".join(f"no clips in {name} ({use[name]})" for name in empty)
    if fractions is None:
        if split != "train":
            return []  # one split of several runs
        return [
            f"{missing}: all went to {split}, as --split says by default; --split-by-identity 0.8,0.1,0.1 holds people out"
        ]
    asked = [name for name, share in zip(SPLITS, fractions, strict=True) if share > 0]
    if not (empty := [name for name in empty if name in asked]):
        return []
    groups = len(set(groups_of_people([(same[a], same[b]) for a, b in (s.participants for s in sources)]).values()))
    if groups < len(asked):
        why = (
            f"{len(sources)} conversation{'s' * (len(sources) != 1)} of {groups} group{'s' * (groups != 1)} of people who "
            f"never meet cannot fill {len(asked)} splits; add conversations of other people"
        )
    else:
        why = "the conversations that belong there were dropped, or people had their split before; add some, or begin anew"
    return [f"{', '.join(f'no clips in {name} ({use[name]})' for name in empty)}: {why}"]
