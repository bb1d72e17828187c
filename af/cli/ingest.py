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

A manifest is a .csv with a header, a .json list of objects or .jsonl, with the columns a, b (or video, for side-by-side
ones; or single, for one person), audio_a, audio_b ("silence" for a person who never speaks), participant_a,
participant_b, session, split, offset (seconds by which b's recording begins after a's), face_a, face_b (of several
faces: talking, largest, left or right). Only a and b, or video, or single, are needed. Relative paths count from the
manifest's folder; a file in a tar archive is ARCHIVE.tar/MEMBER.

--from reads a public data set, or a part of it, in its published layout, archives included (docs/datasets.md); its
splits, ids and licence are kept:

  af ingest --from seamless seamless_interaction/ --size 512 --workers 8 --out data/seamless
  af ingest --from seamless https://host/improvised/dev/0000/0005.tar --out data/seamless

A URL (http, https, s3, gs, az, hf) of a folder or a .tar is fetched into OUT/fetched first; a stopped download goes on.

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

import os
import sys
from typing import Annotated, Any, Literal

from af.cli.derived import WHOLE, ShareOption
from af.cli.kinds import Fractions, OutFolder, Workers
from af.cli.options import More
from af.console import show
from af.errors import UserError
from af.ingest.options import IngestOptions

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "finished conversations are kept, and the same command continues with the others"
_TWO = More(nargs=2, action="append", metavar=("USER", "AVATAR"))


def run(
    *,
    pair: Annotated[list[Any] | None, _TWO, "two videos (repeatable)"] = None,
    side_by_side: Annotated[
        list[Any] | None, More(action="append", metavar="VIDEO"), "one video with both (repeatable)"
    ] = None,
    single: Annotated[
        list[Any] | None,
        More(action="append", metavar="PATH"),
        "a video of one person, or a folder of such videos (repeatable)",
    ] = None,
    manifest: Annotated[str | None, More(metavar="FILE"), "list of conversations: .csv, .json or .jsonl"] = None,
    imported: Annotated[
        list[str] | None,
        "--from",
        More(nargs=2, metavar=("SET", "FOLDER|URL")),
        "a public data set: seamless, realtalk, vico, responsenet, candor, hdtf",
    ] = None,
    audio: Annotated[
        list[Any] | None,
        _TWO,
        "audio files, a pair a conversation in order; - for the video's own, 'silence' for none",
    ] = None,
    participants: Annotated[list[Any] | None, _TWO, "ids of the people, once for each conversation in order"] = None,
    stereo: Annotated[bool, "side-by-side videos: left channel = left person, right = right person"] = False,
    out: Annotated[OutFolder, "folder for train/, val/, test/ and the report"],
    split: Annotated[Literal["train", "val", "test"] | None, "where all goes (default train)"] = None,
    split_by_identity: Annotated[Fractions | None, "by hash of the people"] = None,
    workers: Workers = 1,
    share: ShareOption = WHOLE,
    settings: IngestOptions,
) -> int:
    """Ingest the conversations given by the flags."""
    from rich.table import Table

    from af.ingest.importers import import_set
    from af.ingest.page import PAGE
    from af.ingest.report import REPORT
    from af.ingest.run import run_ingest
    from af.ingest.sources import from_flags, from_manifest

    if split and split_by_identity:
        raise UserError("--split and --split-by-identity exclude each other")
    sources, rejected = from_flags(
        pair or [], side_by_side or [], audio or [], participants or [], stereo=stereo, singles=single or []
    )
    if manifest:
        listed, unusable = from_manifest(os.path.expanduser(manifest), stereo=stereo)
        sources, rejected = sources + listed, rejected + unusable
    if imported:
        if sources or rejected:
            raise UserError("--from goes alone: the shards record its data set and licence for all; use another --out")
        sources, rejected, settings = import_set(imported[0], imported[1], settings, out)
    how = {"split": split or "train", "fractions": split_by_identity, "workers": workers, "share": share}
    report = run_ingest(sources, out, settings, rejected=rejected, **how)  # type: ignore[arg-type]
    totals = report.to_json()
    table = Table(title=f"{out}: {totals['clips']} clips, {totals['kept_s'] / 60:.1f} minutes")
    for column in ("conversation", "split", "clips", "kept s", "dropped s"):
        table.add_column(column, overflow="fold")
    for o in report.outcomes:
        dropped = ", ".join(f"{k} {v:.1f}" for k, v in o.dropped_s.items())
        table.add_row(o.name, o.split, str(o.clips), f"{o.kept_s:.1f}", o.reason or dropped)
    show(table)
    if report.done_before:
        print(f"{report.done_before} of {len(share.of(sources))} were done before")
    for line in report.lines():
        print(line, file=sys.stderr)
    if report.complete:
        print(f"report: {out / REPORT}, with images: {out / PAGE}")
    return 0 if totals["clips"] or share.count > 1 else 1
