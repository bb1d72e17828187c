"""Probe the latents of a motion VAE, on synthetic shards of people it was not trained on:

af probe --autoencoder runs/demo/vae/export --data data/demo/test --out runs/probe

- reconstruction of a frame from another frame of the same person (null: the source shown unchanged); - transfer of one
person's motion to another's portrait, compared with the true image: PSNR, expression and pose tracked (R² against the
truth, and *agreement* with the tracker's reading of the true image, which excludes its own errors; null: the portrait
shown unchanged); - the portrait's colours and proportions after the transfer: what is wrong in the mean of its images,
in standard deviations between people (truth: what is read when the right person is drawn with a slightly wrong face,
the least that this measure can tell; null: the driving person shown); - linear probes, on people left out of their fit:
face parameters from motion; identity from motion (what should fail), motion from the identity code of another frame
(what should fail); - smoothness of the coefficients on video, beside that of the true face parameters; -
directions.png: the portrait with each direction in turn at -3 … 3 standard deviations, and what that moves.

The folder gets metrics.json, metrics.md, directions.png and transfer.png (portrait | driving | image | right image).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from af.cli.devices import add_device_argument, device_of
from af.cli.options import count, out_folder, seed


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
    from af.console import progress_bar, show
    from af.data.index import Index
    from af.data.provenance import HeldOut
    from af.evaluation.probe import Probe
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
    probe = Probe(model, tracker, index, args.out, args.pairs, args.conversations, args.frames, args.seed)
    with progress_bar() as progress:
        task = progress.add_task("reading people", total=2 * min(args.conversations, len(index.samples)))
        rows, moved = probe.run(lambda: progress.advance(task))
    held = HeldOut.of(index, {str(args.autoencoder): artifact.info})
    made_with = {"autoencoder": artifact.digest, "data": str(args.data.resolve()), "seed": args.seed}
    notes = f"People: {held.text}.\n\n{moved}"
    title = f"What the latents of {args.autoencoder} are worth"
    write_metrics(args.out, rows, {**made_with, "people": held.known}, title=title, notes=notes)
    show(console_table(rows, title=str(args.autoencoder)))
    print(notes)
    print(f"written to {args.out}: metrics.json, metrics.md, directions.png, transfer.png")
    return 0
