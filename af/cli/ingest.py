"""Turn videos of conversations into shards for training.

A conversation is two people at the same instants: two videos, or one video with the first person in its left half and
the second in its right half. The first is called "a" (the user), the second "b" (the avatar); both orders are trained.
Videos of one person alone (--single) train the motion VAE, and the denoiser to talk.
Each video may be of any size and frame rate; the result is 25 fps, 16 kHz mono, square crops around the face, in clips
of 2 to 20 s without a scene cut in which all faces are seen. Audio comes from the videos or from separate files, one
voice each: mixed voices must be separated before, by a tool of your choice.

af ingest --pair user.mp4 avatar.mp4 --out data/mine
  af ingest --pair user.mp4 avatar.mp4 --audio - avatar.wav --participants ann rumi --out data/mine
  af ingest --single talking-heads/ --split-by-identity 0.9,0.05,0.05 --out data/heads
  af ingest --side-by-side call.mp4 --audio left.wav right.wav --out data/mine
  af ingest --manifest pairs.csv --split-by-identity 0.9,0.05,0.05 --workers 8 --size 512 --out data/mine
  af ingest --manifest pairs.csv --keep "face_px >= 160 and sharpness > 40" --out data/mine

A manifest is a .csv with a header, a .json list of objects or .jsonl, with the columns a, b (or video, for
side-by-side ones; or single, for one person), audio_a, audio_b ("silence" for a person who never speaks),
participant_a, participant_b, session, split, offset (seconds by which b's recording begins after a's), face_a, face_b (of
several faces: talking, largest, left or right). Only a and b, or video, or single, are needed. Relative paths count from
the manifest's folder; a file in a tar archive is ARCHIVE.tar/MEMBER.

--from reads a public data set, or a part of it, in its published layout, archives included (docs/datasets.md); its
splits, ids and licence are kept:

af ingest --from seamless seamless_interaction/ --size 512 --workers 8 --out data/seamless

A person must have the same id everywhere, and is in one split only. Without ids every file counts as another person.
Unusable input is reported with the reason and skipped. ingest_report.json in the output folder lists what was dropped
and why, and remarks on the rest: tracks and channels used, several faces, damage, lengths, and estimated offsets
between audio and lips or between the two recordings. Nothing is shifted by such an estimate. ingest_report.html shows
the same with images, and measures of every clip, by which --keep selects (docs/data.md lists them). The same command
again processes only new and changed input. Many machines can share the work with --share, for instance as a job array
(--array=1-16):

af ingest --manifest pairs.csv --split-by-identity 0.9,0.05,0.05 --out data/mine --share $SLURM_ARRAY_TASK_ID/16
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from af.cli.options import add_settings, add_share, count, fractions, number, out_folder, pixels, positive, settings_of
from af.console import show
from af.errors import UserError
from af.ingest.options import DETECTORS, FACES, LONGEST_OFFSET_S, IngestOptions

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "finished conversations are kept, and the same command continues with the others"

#: Options that are fields of `IngestOptions`.
SETTINGS = {
    "size": ("--size", pixels, "pixels of the square crops"),
    "margin": ("--margin", positive, "side of the crop in face sizes"),
    "min_s": ("--min-seconds", positive, "shortest clip"),
    "max_s": ("--max-seconds", positive, "longest clip; longer ones are divided"),
    "length_tolerance_s": ("--length-tolerance", positive, "seconds by which files may differ"),
    "offset_s": (
        "--offset",
        number(float, least=-LONGEST_OFFSET_S, most=LONGEST_OFFSET_S),
        "seconds by which the avatar's recording begins after the user's; also a column of the manifest",
    ),
    "offset_limit_s": (
        "--offset-limit",
        positive,
        "seconds: drop conversations whose sides, or audio and lips, are certainly further apart",
    ),
    "face": ("--face", FACES, "of several faces: the one that moves with the voice, the largest, the left, the right"),
    "detect_every": ("--detect-every", count, "look for faces in every n-th frame"),
    "keep": (
        "--keep",
        str,
        "drop clips unless everybody in them meets a condition, such as 'face_px >= 160 and sharpness > 40'",
    ),
    "detector": (
        "--detector",
        DETECTORS,
        "mediapipe finds turned and small faces and writes face.npy; haar needs no download; auto: mediapipe if it is there",
    ),
    "detector_model": ("--detector-model", os.path.abspath, "model file of mediapipe; by default that of af fetch"),
    "crf": (
        "--crf",
        number(int, least=0, most=40, whole=True),
        "H.264 quality, less is better; 12: 4 GB/h at 512 pixels",
    ),
    "dataset": ("--dataset", str, "name recorded in the shards"),
    "licence": ("--licence", str, "licence recorded in the shards"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af ingest`."""
    add = parser.add_argument
    two: Any = {"nargs": 2, "action": "append", "default": [], "metavar": ("USER", "AVATAR")}
    add("--pair", **two, help="two videos (repeatable)")
    several: Any = {"action": "append", "default": []}
    add("--side-by-side", **several, metavar="VIDEO", help="one video with both (repeatable)")
    add("--single", **several, metavar="PATH", help="a video of one person, or a folder of such ones (repeatable)")
    add("--manifest", metavar="FILE", help="list of conversations: .csv, .json or .jsonl")
    sets: Any = {"nargs": 2, "dest": "imported", "metavar": ("SET", "FOLDER")}
    add("--from", **sets, help="a public data set: seamless, realtalk, vico, hdtf")
    add("--audio", **two, help="audio files, a pair a conversation in order; - for the video's own, 'silence' for none")
    add("--participants", **two, help="ids of the people, once for each conversation in order")
    add("--stereo", action="store_true", help="side-by-side videos: left channel = left person, right = right person")
    add("--out", type=out_folder, required=True, metavar="DIR", help="folder for train/, val/, test/ and the report")
    where = parser.add_mutually_exclusive_group()
    text = "where all goes (default train)"
    where.add_argument("--split", choices=("train", "val", "test"), default="train", help=text)
    where.add_argument("--split-by-identity", type=fractions, metavar="TRAIN,VAL,TEST", help="by hash of the people")
    add("--workers", type=count, default=1, help="processes (default 1)")
    add_share(parser)
    add_settings(parser, IngestOptions, SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Ingest the conversations given by the flags."""
    from rich.table import Table

    from af.ingest.importers import import_set
    from af.ingest.page import PAGE
    from af.ingest.report import REPORT
    from af.ingest.run import run_ingest
    from af.ingest.sources import from_flags, from_manifest

    sources, rejected = from_flags(
        args.pair, args.side_by_side, args.audio, args.participants, stereo=args.stereo, singles=args.single
    )
    if args.manifest:
        listed, unusable = from_manifest(os.path.expanduser(args.manifest), stereo=args.stereo)
        sources, rejected = sources + listed, rejected + unusable
    options = settings_of(args, IngestOptions)
    if args.imported:
        if sources or rejected:
            raise UserError("--from goes alone: the shards record its data set and licence for all; use another --out")
        name, place = args.imported
        sources, rejected, options = import_set(name, place, options)
    report = run_ingest(
        sources,
        args.out,
        options,
        split=args.split,
        fractions=args.split_by_identity,
        workers=args.workers,
        share=args.share,
        rejected=rejected,
    )
    totals = report.to_json()
    table = Table(title=f"{args.out}: {totals['clips']} clips, {totals['kept_s'] / 60:.1f} minutes")
    for column in ("conversation", "split", "clips", "kept s", "dropped s"):
        table.add_column(column, overflow="fold")
    for o in report.outcomes:
        dropped = ", ".join(f"{k} {v:.1f}" for k, v in o.dropped_s.items())
        table.add_row(o.name, o.split, str(o.clips), f"{o.kept_s:.1f}", o.reason or dropped)
    show(table)
    if report.done_before:
        print(f"{report.done_before} of {len(args.share.of(sources))} were done before")
    for line in report.lines():
        print(line, file=sys.stderr)
    if report.complete:
        print(f"report: {args.out / REPORT}, with images: {args.out / PAGE}")
    return 0 if totals["clips"] or args.share.count > 1 else 1
