"""What the latents of a motion VAE are worth, on synthetic shards of people it was not trained on:

    af probe --autoencoder runs/demo/vae/export --data data/demo/test --out runs/probe

- reconstruction of a frame from another frame of the same person (null: the source shown unchanged);
- transfer of one person's motion to another's portrait, against the picture that would be right: PSNR, expression and
  pose tracked (R² against the truth, and *agreement* with what the tracker reads on the right picture, which leaves its
  own errors out; null: the portrait shown unchanged);
- the portrait's colours and proportions after the transfer: what is wrong in the mean of its pictures, in standard
  deviations between people (truth: what is read when the right person is drawn with a slightly wrong face, the least that
  this measure can tell; null: the driving person shown);
- linear probes, on people left out of their fit: face parameters from motion; identity from motion (what should fail),
  motion from the identity code of another frame (what should fail);
- smoothness of the coefficients on video, beside that of the true face parameters;
- directions.png: the portrait with each direction in turn at -3 … 3 standard deviations, and what that moves.

The folder gets metrics.json, metrics.md, directions.png and transfer.png (portrait | driving | picture | right picture).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from af.cli.devices import add_device_argument, device_of
from af.cli.options import count, out_folder, seed

if TYPE_CHECKING:
    from af.data.index import Index
    from af.evaluation.probe import Person
    from af.metrics.records import MetricRow
    from af.models.autoencoder import MotionAutoencoder
    from af.models.tracker import FaceTracker

STEPS = (-3.0, -1.5, 0.0, 1.5, 3.0)
ROWS_SHOWN = 8


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af probe`."""
    parser.add_argument(
        "--autoencoder", type=Path, required=True, metavar="FOLDER", help="model folder, run or checkpoint"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="synthetic shards of a split")
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the results")
    parser.add_argument("--pairs", type=count, default=128, help="transfers (default 128)")
    parser.add_argument("--conversations", type=count, default=32, help="read for the probes (default 32)")
    parser.add_argument("--frames", type=count, default=100, help="of each person for the probes (default 100)")
    parser.add_argument("--seed", type=seed, default=0, help="of pairs (default 0)")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print and write."""

    from af.console import doing, progress_bar, show
    from af.data.index import Index
    from af.data.provenance import HeldOut
    from af.evaluation.probe import read_people
    from af.evaluation.table import console_table, write_metrics
    from af.models.artifact import load_as
    from af.models.autoencoder import MotionAutoencoder
    from af.models.tracker import load_tracker
    from af.pipeline.encode import require_videos

    device = device_of(args)
    model, artifact = load_as(args.autoencoder, MotionAutoencoder)
    model.to(device)
    index, tracker = Index.load(args.data), load_tracker(device=device)
    require_videos(index, model)
    with progress_bar() as progress:
        task = progress.add_task("reading people", total=2 * min(args.conversations, len(index.samples)))
        people = read_people(model, index, args.conversations, args.frames, lambda: progress.advance(task))
    with doing("transferring motion"):
        rows = _reconstruction_rows(model, index, args.seed)
        rows += _transfer_rows(model, tracker, index, args)
    rows += _probe_rows(people)
    moved = _traversal_text(model, tracker, people, args.out)
    held = HeldOut.of(index, {str(args.autoencoder): artifact.info})
    made_with = {
        "autoencoder": artifact.digest,
        "data": str(args.data.resolve()),
        "seed": args.seed,
        "people": held.known,
    }
    notes = f"People: {held.text}.\n\n{moved}"
    write_metrics(args.out, rows, made_with, title=f"What the latents of {args.autoencoder} are worth", notes=notes)
    show(console_table(rows, title=str(args.autoencoder)))
    print(notes)
    print(f"written to {args.out}: metrics.json, metrics.md, directions.png, transfer.png")
    return 0


def _reconstruction_rows(model: MotionAutoencoder, index: Index, seed: int) -> list[MetricRow]:
    from af.evaluation.split import evaluate_reconstruction
    from af.metrics.records import MetricRow

    found = evaluate_reconstruction(model, index, seed=seed)
    text = "cross-frame; null: the source shown unchanged"
    return [
        MetricRow(name, found.model[name], n=found.pairs, null=found.copy[name], protocol=text, better="higher")
        for name in ("psnr", "ssim")
    ]


def _transfer_rows(
    model: MotionAutoencoder, tracker: FaceTracker, index: Index, args: argparse.Namespace
) -> list[MetricRow]:
    from af.evaluation import transfer
    from af.images import image_tensor
    from af.metrics.likeness import psnr
    from af.metrics.records import MetricRow
    from af.synth.face import FACE_SPEC

    pairs = transfer.draw_pairs(index, args.pairs, seed=args.seed)
    made, right = transfer.transfer(model, pairs.portraits, pairs.driving), pairs.truth
    step = max(1, len(made) // ROWS_SHOWN)  # different portraits, as far as they go
    columns = (pairs.portraits, pairs.driving, made, right)
    _save_grid(args.out / "transfer.png", [column[::step] for column in columns])
    text = "motion on another's portrait; null: portrait unchanged"

    def row(
        tag: str, values: tuple[float, float | None, float], better: Literal["lower", "higher"], protocol: str = text
    ):
        value, true, null = values
        return MetricRow(
            f"transfer/{tag}", value, n=args.pairs, ground_truth=true, null=null, protocol=protocol, better=better
        )

    made_psnr, null_psnr = (psnr(image_tensor(images), image_tensor(right)) for images in (made, pairs.portraits))
    rows = [row("psnr", (made_psnr, None, null_psnr), "higher")]
    read_made, read_right, read_null = (tracker.track(pictures) for pictures in (made, right, pairs.portraits))
    expression = FACE_SPEC.expression
    groups = {"expression": slice(expression), "pose": slice(expression, None)}
    single = {name: slice(n, n + 1) for n, name in enumerate(FACE_SPEC.names)}
    for tag, truth, told in (
        ("r2", pairs.driving_faces, "truth"),
        ("agreement", read_right, "tracker's reading of the right picture"),
    ):
        r2 = [transfer.explained(truth, read) for read in (read_made, read_right, read_null)]
        protocol = f"R² against the {told}, {tracker.face_spec.tracker}; {text}"
        for name, chosen in {**groups, **single}.items():
            a, b, c = (_mean(found[chosen]) for found in r2)
            rows.append(row(f"{tag}/{name}", (a, b, c), "higher", protocol))
    spread = transfer.appearance_spread()
    shown = (made, transfer.with_faces_off(pairs, seed=args.seed), pairs.driving)
    errors = [transfer.identity_error(pictures, pairs, spread) for pictures in shown]
    protocol = (
        f"root mean square over portraits of the mean of {transfer.DRIVEN} pictures, in standard deviations between people; "
        f"truth: the right person, face parameters off by {transfer.FACES_OFF:.0%} of their range; "
        "null: the driving person shown"
    )
    parts: dict[str, tuple[str, ...]] = {"colours": transfer.COLOURS, "proportions": transfer.SHAPES}
    parts |= {name: (name,) for name in spread}
    for tag, members in parts.items():
        value, floor, null_value = (
            float(np.sqrt(np.mean(np.square(np.concatenate([found[m] for m in members], 1))))) for found in errors
        )
        rows.append(row(f"identity/{tag}", (value, floor, null_value), "lower", protocol))
    return rows


def _probe_rows(people: Sequence[Person]) -> list[MetricRow]:
    from af.evaluation import probe
    from af.metrics.records import MetricRow
    from af.synth.face import FACE_NAMES

    motion, faces, codes = ([getattr(p, name) for p in people] for name in ("coefficients", "face", "codes"))
    strangers = motion[len(motion) // 2 :] + motion[: len(motion) // 2]
    read = probe.probe_r2(motion, faces)
    count, held_out = len(people), "R² on people left out"
    rows = [
        MetricRow(f"probe/face_from_motion/{name}", value, n=count, protocol=held_out, better="higher")
        for name, value in zip(("mean", *FACE_NAMES), (float(read.mean()), *read.tolist()), strict=True)
    ]
    rows += [
        MetricRow(
            "probe/identity_from_motion",
            probe.identity_from(people, motion),
            n=count,
            ground_truth=probe.identity_from(people, faces),
            null=probe.identity_from(people, strangers),
            protocol=f"{held_out}; truth: from the true face parameters; null: another person's motion",
            better="lower",
        ),
        MetricRow(
            "probe/person_named_from_motion",
            probe.recognised(motion),
            n=count,
            ground_truth=probe.recognised(faces),
            null=1 / count,
            protocol="share of frames; truth: from the true face parameters; null: chance",
            better="lower",
        ),
        MetricRow(
            "probe/motion_from_code",
            probe.motion_from_codes(people, codes),
            n=count,
            ground_truth=probe.motion_from_codes(people, faces),
            null=probe.motion_from_codes(people, codes, other=count // 2),
            protocol=f"{held_out}, from another frame half a video away; truth: from its face; null: another person's",
            better="lower",
        ),
        MetricRow(
            "smoothness/roughness",
            probe.roughness(motion),
            n=count,
            ground_truth=probe.roughness(faces),
            protocol="|second| / |first difference| on video; truth: of the face parameters",
            better="true",
        ),
    ]
    return rows


def _traversal_text(model: MotionAutoencoder, tracker: FaceTracker, people: Sequence[Person], out: Path) -> str:
    """Save the picture; what each direction moves most, in standard deviations of that parameter from end to end."""
    from af.evaluation.probe import traversal
    from af.synth.face import FACE_NAMES

    pictures = traversal(model, people, STEPS)
    _save_grid(out / "directions.png", list(pictures.swapaxes(0, 1)), rows=len(pictures))
    spread = np.concatenate([p.face for p in people]).std(0)
    lines = [f"What each direction moves (from {STEPS[0]:g} to {STEPS[-1]:g} of its standard deviations):", ""]
    for k, images in enumerate(pictures):
        tracked = tracker.track(images)
        change = (tracked[-1] - tracked[0]) / spread
        largest = np.argsort(-np.abs(change))[:3]
        lines.append(f"- {k}: " + ", ".join(f"{FACE_NAMES[i]} {change[i]:+.1f}" for i in largest))
    return "\n".join(lines)


def _save_grid(path: Path, columns: Sequence[np.ndarray], rows: int = ROWS_SHOWN) -> None:
    """Columns of pictures side by side."""
    from PIL import Image

    from af.files import atomic_path
    from af.pipeline.side_by_side import enlarged

    picture = np.concatenate([np.concatenate(list(column[:rows])) for column in columns], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(enlarged(picture[None], rows * 128)[0]).save(temporary, format="PNG")


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.nanmean(values))
