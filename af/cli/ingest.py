"""Turn videos of conversations into shards for training.

A conversation is two people at the same instants: two videos, or one video with the first person in its left half and
the second in its right half. The first is called "a" (the user), the second "b" (the avatar); both orders are trained.
Each video may be of any size and frame rate; the result is 25 fps, 16 kHz mono, square crops around the face, in clips
of 2 to 20 s without a scene cut in which both faces are seen. Sound comes from the videos or from separate files, one
voice each: mixed voices must be separated before, by a tool of your choice.

  af ingest --pair user.mp4 avatar.mp4 --out data/mine
  af ingest --pair user.mp4 avatar.mp4 --audio - avatar.wav --participants ann rumi --out data/mine
  af ingest --side-by-side call.mp4 --audio left.wav right.wav --out data/mine
  af ingest --manifest pairs.csv --split-by-identity 0.9,0.05,0.05 --workers 8 --size 512 --out data/mine

A manifest is a .csv with a header, a .json list of objects or .jsonl, with the columns a, b (or video, for
side-by-side ones), audio_a, audio_b ("silence" for a person who never speaks), participant_a, participant_b, session,
split, offset (seconds by which b's recording begins after a's), face_a, face_b (of several faces: talking, largest, left
or right). Only a and b, or video, are needed. Relative paths count from the manifest's folder.

A person has one id wherever they occur, and is in one split only. Without ids every file is taken for another person.
Input that cannot be used is named with the reason, the rest goes on; ingest_report.json in the output folder says what
was dropped and why, and what is noteworthy about the rest: the tracks and channels taken, several faces, damage, lengths,
and how far sound and lips, or the two recordings, seem to be apart. Nothing is moved by such an estimate. The same command again does only what is new or has changed. Many machines do it together with
--part, for instance as a job array (--array=1-16):

  af ingest --manifest pairs.csv --split-by-identity 0.9,0.05,0.05 --out data/mine --part $SLURM_ARRAY_TASK_ID/16
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from af.cli.options import count, number, out_folder, pixels, positive
from af.console import show
from af.data.parts import PART_HELP, WHOLE, Share
from af.ingest.options import FACES, LONGEST_OFFSET_S

if TYPE_CHECKING:
    from af.ingest.run import IngestReport

#: What is said after Ctrl-C.
WHEN_INTERRUPTED = "conversations that are done are kept, the same command goes on with the others"


def fractions(text: str) -> tuple[float, float, float]:
    """Shares of train, val and test, as argparse reads them."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or min(numbers) < 0 or sum(numbers) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected three numbers for train,val,test, such as 0.9,0.05,0.05")
    return numbers  # type: ignore[return-value]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add = parser.add_argument
    add("--pair", nargs=2, action="append", default=[], metavar=("USER", "AVATAR"), help="two videos (repeatable)")
    add("--side-by-side", action="append", default=[], metavar="VIDEO", help="one video with both (repeatable)")
    add("--manifest", metavar="FILE", help="list of conversations: .csv, .json or .jsonl")
    add(
        "--audio",
        nargs=2,
        action="append",
        default=[],
        metavar=("USER", "AVATAR"),
        help="sound files, once for each conversation in order; - for the video's own, 'silence' for none",
    )
    add(
        "--participants",
        nargs=2,
        action="append",
        default=[],
        metavar=("USER", "AVATAR"),
        help="ids of the people, once for each conversation in order",
    )
    add("--stereo", action="store_true", help="side-by-side videos: left channel = left person, right = right person")
    add("--out", type=out_folder, required=True, metavar="DIR", help="folder for train/, val/, test/ and the report")
    add("--size", type=pixels, default=512, help="pixels of the square crops (default 512)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--split", choices=("train", "val", "test"), default="train", help="where all goes (default train)"
    )
    where.add_argument(
        "--split-by-identity", type=fractions, metavar="TRAIN,VAL,TEST", help="shares, by hash of the people"
    )
    add("--workers", type=count, default=1, help="processes (default 1)")
    add("--part", type=Share.parse, default=WHOLE, metavar="I/N", help=PART_HELP)
    add("--margin", type=positive, default=2.0, help="side of the crop in face sizes (default 2.0)")
    add("--min-seconds", type=positive, default=2.0, help="shortest clip (default 2)")
    add("--max-seconds", type=positive, default=20.0, help="longest clip; longer ones are divided (default 20)")
    add("--length-tolerance", type=positive, default=1.0, help="seconds by which files may differ (default 1)")
    add(
        "--offset",
        type=number(float, least=-LONGEST_OFFSET_S, most=LONGEST_OFFSET_S),
        default=0.0,
        metavar="S",
        help="seconds by which the avatar's recording begins after the user's (default 0; a column of the manifest, too)",
    )
    add(
        "--offset-limit",
        type=positive,
        default=0.5,
        metavar="S",
        help="drop a conversation whose sides, or a side's sound and picture, are surely further apart (default 0.5)",
    )
    add(
        "--face",
        choices=FACES,
        default="talking",
        help="of several faces: the one that moves with the voice (default), the largest, the left or the right one",
    )
    add("--detect-every", type=count, default=5, help="look for faces in every n-th frame (default 5)")
    add(
        "--detector",
        choices=("haar", "mediapipe"),
        default="haar",
        help="haar needs no download; mediapipe sees turned faces",
    )
    add("--detector-model", metavar="FILE", help="model file of the mediapipe detector")
    add(
        "--crf",
        type=int,
        default=12,
        choices=range(0, 41),
        metavar="0..40",
        help="H.264 quality, less is better and larger (default 12: about 4 GB an hour at 512 pixels)",
    )
    add("--dataset", default="own", help="name recorded in the shards")
    add("--licence", default="unknown", help="licence recorded in the shards")


def run(args: argparse.Namespace) -> int:
    """Ingest what the flags say."""
    from pathlib import Path

    from rich.table import Table

    from af.errors import UserError
    from af.ingest.options import IngestOptions
    from af.ingest.run import REPORT, run_ingest
    from af.ingest.sources import from_flags, from_manifest

    sources, rejected = from_flags(args.pair, args.side_by_side, args.audio, args.participants, stereo=args.stereo)
    if args.manifest:
        listed, unusable = from_manifest(Path(args.manifest).expanduser(), stereo=args.stereo)
        sources, rejected = sources + listed, rejected + unusable
    if not sources and not rejected:
        raise UserError("nothing to ingest: give --pair, --side-by-side or --manifest")
    if args.max_seconds < args.min_seconds:
        raise UserError(f"--max-seconds {args.max_seconds:g} is less than --min-seconds {args.min_seconds:g}")
    if args.offset and (whole := next((s.name for s in sources if s.video), None)):
        raise UserError(f"--offset is for two videos, and {whole} is one: give the column offset of a manifest instead")
    options = IngestOptions(
        size=args.size,
        margin=args.margin,
        min_s=args.min_seconds,
        max_s=args.max_seconds,
        length_tolerance_s=args.length_tolerance,
        face=args.face,
        offset_s=args.offset,
        offset_limit_s=args.offset_limit,
        detect_every=args.detect_every,
        detector=args.detector,
        detector_model=args.detector_model and str(Path(args.detector_model).absolute()),
        crf=args.crf,
        dataset=args.dataset,
        licence=args.licence,
    )
    report = run_ingest(
        sources,
        args.out,
        options,
        split=args.split,
        fractions=args.split_by_identity,
        workers=args.workers,
        share=args.part,
        rejected=rejected,
    )
    totals = report.to_json()
    table = Table(title=f"{args.out}: {totals['clips']} clips, {totals['kept_s'] / 60:.1f} minutes")
    for column in ("conversation", "split", "clips", "kept s", "dropped s"):
        table.add_column(column, overflow="fold")
    for outcome in report.outcomes:
        dropped = ", ".join(f"{k} {v:.1f}" for k, v in outcome.dropped_s.items())
        table.add_row(
            outcome.name, outcome.split, str(outcome.clips), f"{outcome.kept_s:.1f}", outcome.reason or dropped
        )
    show(table)
    if report.done_before:
        print(f"{report.done_before} of {len(args.part.of(sources))} were done before")
    for outcome in report.failed:
        print(f"dropped: {outcome.line}", file=sys.stderr)
    _tell_notes(report)
    if report.complete:
        print(f"report: {Path(args.out) / REPORT}")
    return 0 if totals["clips"] or args.part.count > 1 else 1


def _tell_notes(report: IngestReport, most: int = 5) -> None:
    """What is noteworthy: how much of each kind and the first lines; then what concerns the whole."""
    found = [note for outcome in report.outcomes for note in outcome.notes]
    if found:
        counts = ", ".join(f"{n} x {kind}" for kind, n in sorted(report.to_json()["notes_by_kind"].items()))
        print(f"noted: {counts}", file=sys.stderr)
        for note in found[:most]:
            print(f"  {note['kind']}: {note['text']}", file=sys.stderr)
        if len(found) > most:
            print(f"  ... and {len(found) - most} more in the report", file=sys.stderr)
    for line in report.notes:
        print(f"note: {line}", file=sys.stderr)
