"""Ingesting many conversations into one folder of shards: parallel, resumable, with a report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from af.clock import frames_to_seconds
from af.console import progress_bar
from af.data.container import MediaError, Notes
from af.data.index import build_index, tars
from af.data.model_files import FACE_LANDMARKER
from af.data.parts import WHOLE, Part, Share, run_parts, tell_unfinished
from af.data.schema import SPLITS
from af.data.shards import write_shard
from af.data.tables import shown
from af.errors import UserError
from af.files import claim_folder, exclusive, remove_stale, write_json
from af.ingest.clips import Cut, cut_out, examine
from af.ingest.detection import Detector, Watch, detector_here, make_detector
from af.ingest.landmarks import INSTALL
from af.ingest.options import IngestOptions
from af.ingest.page import PAGE, forget_strips, write_first_look, write_page, write_strips
from af.ingest.report import REPORT, IngestReport, Outcome, empty_splits
from af.ingest.sources import Rejected, Source
from af.ingest.splits import assign_splits, one_person

LEDGER: Final = ".ingest"
_FACES_BY: Final = {
    "mediapipe": "faces were found by MediaPipe (--detector)",
    "haar": "faces were found by OpenCV's frontal cascade, which loses turned and hidden ones and measures none; with "
    f"`{INSTALL}` and `af fetch {FACE_LANDMARKER.name}` MediaPipe finds them (--detector)",
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
    """Ingest one conversation: write a shard to `out`/`split` if there are clips, then its outcome as JSON to `path`.

    Bad input is an outcome, not an error. `detector` None means the one named by `options`. Raises `UserError` when the
    output cannot be written.
    """
    shard = out / split / f"{source.id}.tar"
    shard.unlink(missing_ok=True)  # from an earlier state of the files
    outcome = Outcome(source.name, split, source.participants, fingerprint=source.fingerprint(), id=source.id)
    strips = path.with_suffix("")
    forget_strips(strips)
    notes = Notes()
    try:
        finder = detector or make_detector(options.detector, options.detector_model)
        with _reading(source):
            recording = examine(source, options, finder, watch, notes)
        lost = {k: frames_to_seconds(n) for k, n in recording.dropped.items() if n}
        outcome = replace(outcome, dropped_s=lost, media=dict(recording.media))
        if recording.clips:
            cuts: list[Cut] = []
            samples = cut_out(source, recording, options, split, watch, finder, told=cuts.append)
            clips, frames = write_shard(shard, _read(source, samples))
            write_strips(strips, cuts)
            outcome = replace(outcome, cuts=tuple(map(_described, cuts)))
            if clips:
                outcome = replace(outcome, clips=clips, kept_s=frames_to_seconds(frames), shard=shard.name)
            else:
                shard.unlink()
                line = f"none of its {len(cuts)} clips is kept by --keep {options.keep!r} ({cuts[0].objection})"
                outcome = replace(outcome, reason="quality", line=f"{source.name}: {line}")
            if len(cuts) > clips:
                lost["quality"] = round(sum(c.stop_s - c.start_s for c in cuts if c.objection), 2)
        else:
            faces_s = frames_to_seconds(recording.dropped["too_short"])
            seen = "a face" if source.single else "both faces"
            line = f"no stretch of {options.min_s:g} s with {seen} and no scene cut ({faces_s:.1f} s with {seen})"
            outcome = replace(outcome, reason="no_clip", line=f"{source.name}: {line}")
    except MediaError as error:
        outcome = replace(outcome, reason=error.reason, line=shown(str(error)))
    except OSError as error:
        raise UserError(f"{shard}: cannot be written ({error.strerror or error})") from error
    except (UserError, MemoryError):
        raise  # not the input's fault, so stop
    except Exception as error:
        line = shown(f"{source.name}: {type(error).__name__}: {str(error).strip()}")
        outcome = replace(outcome, reason="unexpected", line=line)
    if not outcome.cuts:
        write_first_look(strips, source)
    noted = tuple({"kind": note.kind, "text": shown(note.text)} for note in notes)
    write_json(path, asdict(replace(outcome, notes=noted)))


def _described(cut: Cut) -> dict[str, Any]:
    """A clip in the report."""
    seconds = [cut.start_s, cut.stop_s]
    return {"key": cut.key, "seconds": seconds, "dropped": cut.objection, "quality": cut.quality}


@contextlib.contextmanager
def _reading(source: Source) -> Iterator[None]:
    """Turn system errors on reading (no permission, name too long, missing drive) into `MediaError`s."""
    try:
        yield
    except OSError as error:
        path = error.filename or source.name
        raise MediaError(shown(str(path)), "unreadable", f"cannot be read ({error.strerror or error})") from error


def _read(source: Source, samples: Iterator[Any]) -> Iterator[Any]:
    with _reading(source):
        yield from samples


def run_ingest(
    sources: Sequence[Source],
    out: Path | str,
    options: IngestOptions,
    *,
    split: str = "train",
    fractions: Sequence[float] | None = None,
    workers: int = 1,
    detector: Detector | None = None,
    share: Share = WHOLE,
    rejected: Sequence[Rejected] = (),
) -> IngestReport:
    """Ingest `sources` into `out`/{train,val,test} and index them; conversations already done from unchanged files are
    skipped.

    `fractions` of train, val and test assign conversations by a hash over connected people; None puts all into `split`.
    `rejected` conversations are only reported. A `share` ingests its own conversations and reports on them; the share
    that ends last indexes the splits and reports on all. Raises `UserError` for faults that concern all: settings that
    differ from the folder's, a full disk, a missing detector.
    """
    if not sources and not rejected:
        raise UserError("nothing to ingest: give --pair, --side-by-side, --single, --manifest or --from")
    if options.offset_s and (whole := next((s.name for s in sources if not s.a), None)):
        raise UserError(f"--offset is for two videos, and {whole} is one: give the column offset of a manifest instead")
    out = Path(out)
    once = {s.id: s for s in reversed(sources)}
    refused = [Outcome(r.name, split, ("", ""), reason=r.reason, line=r.line) for r in rejected]
    # flags and a manifest may name the same conversation
    refused += [Outcome.dropped(s, split, "listed_twice", "listed twice") for s in sources if once[s.id] is not s]
    sources = [s for s in sources if once[s.id] is s]
    faces_by: list[str] = []
    if detector is None:
        named = options.detector
        options = replace(options, detector=detector_here(named, options.detector_model))  # type: ignore[arg-type]
        make_detector(options.detector, options.detector_model)  # fails before any work
        faces_by = [_FACES_BY[options.detector]] if named == "auto" else []
    claim_folder(out / LEDGER / "options.json", asdict(options))
    same, remarks = one_person(sources)
    remarks = [*remarks, *faces_by]
    parts, objections = _plan(sources, out, options, split, fractions, detector, share, same)
    mine = share.of(parts)

    def drop(part: Part) -> None:
        _, source, where, *_ = part.args
        remove_stale(out / where)
        line = "reading it ends the process (it crashes a decoder or needs too much memory); "
        outcome = Outcome.dropped(source, where, "crash", f"{line}delete {part.path} to try it again")
        write_json(part.path, asdict(replace(outcome, fingerprint=source.fingerprint())))

    with progress_bar() as bar:
        inner = bar.add_task("", total=None, visible=False)
        here = partial(  # in this process: show the progress within a file
            ingest_one,
            watch=lambda step, frames: bar.update(inner, description=step, completed=frames, visible=True),
        )
        done = run_parts(
            mine,
            ingest_one,
            workers=workers,
            description="conversations",
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
        outcome = objections.get(source.id) or Outcome.read(out / LEDGER / f"{source.id}.json")
        assert outcome is not None
        outcomes.append(outcome)
    if not missing:
        remarks += empty_splits(out, sources, same, split, fractions)
    report = IngestReport((*outcomes, *refused), done.skipped, tuple(remarks), not missing)
    if not missing:
        with exclusive(out / LEDGER / ".finishing"):
            for name in SPLITS:
                if tars(out / name):
                    build_index(out / name)
            write_json(out / REPORT, report.to_json())
            write_page(out / PAGE, report, out / LEDGER, f"Ingestion into {out.name}", options.keep)
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
    """One part per conversation, and the outcomes of conversations that fit no split. Changed conversations of this
    share are done again.
    """
    earlier = {p.stem: Outcome.read(p) for p in (out / LEDGER).glob("*.json") if p.stem != "options"}
    ours = {s.id for s in sources}

    def in_place(outcome: Outcome) -> bool:
        return outcome.shard is None or (out / outcome.split / outcome.shard).is_file()

    assigned = {
        person: o.split
        for key, o in earlier.items()
        if o is not None and o.clips and (key not in ours or in_place(o))
        for person in o.participants
    }
    parts: list[Part] = []
    objections: dict[str, Outcome] = {}
    placed = assign_splits(sources, split=split, fractions=fractions, assigned=assigned, same=same)
    for source, (where, objection) in zip(sources, placed, strict=True):
        if objection is None:
            parts.append(Part(out / LEDGER / f"{source.id}.json", (out, source, where, options, detector)))
        else:
            objections[source.id] = Outcome.dropped(source, where, "identity_overlap", objection)
    for part in share.of(parts):
        before, now = earlier.get(part.path.stem), part.args[1].fingerprint()
        good = before is not None and before.fingerprint == now and in_place(before)
        if before is None or not good or before.reason in ("unexpected", "memory"):
            part.path.unlink(missing_ok=True)
    return parts, objections
