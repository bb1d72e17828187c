"""Probe the latents of a motion VAE, on synthetic shards of people it was not trained on:

  af probe --autoencoder runs/demo/vae/export --data data/demo/test --out runs/probe

- reconstruction of a frame from another frame of the same person (null: the source shown unchanged);
- transfer of one person's motion to another's portrait, compared with the true image: PSNR, expression and pose tracked
  (R² against the truth, and *agreement* with the tracker's reading of the true image, which excludes its own errors;
  null: the portrait shown unchanged);
- the portrait's colours and proportions after the transfer: what is wrong in the mean of its images, in standard
  deviations between people (truth: what is read when the right person is drawn with a slightly wrong face, the least
  that this measure can tell; null: the driving person shown);
- linear probes, on people left out of their fit: face parameters from motion; identity from motion (what should fail),
  motion from the identity code of another frame (what should fail);
- smoothness of the coefficients on video, beside that of the true face parameters;
- directions.png: the portrait with each direction in turn at -3 … 3 standard deviations, and what that moves.

The folder gets metrics.json, metrics.md, directions.png and transfer.png (portrait | driving | image | right image).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from af.cli.kinds import Count, Device, Model, OutFolder, Seed
from af.cli.options import More


def run(
    *,
    autoencoder: Model,
    data: Annotated[Path, More(metavar="FOLDER"), "synthetic shards of a split"],
    out: Annotated[OutFolder, "folder for the results"],
    pairs: Annotated[Count, "transfers"] = 128,
    conversations: Annotated[Count, "read for the probes"] = 32,
    frames: Annotated[Count, "of each person for the probes"] = 100,
    seed: Annotated[Seed, "of pairs"] = 0,
    device: Device = "auto",
) -> None:
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

    model, artifact = load_as(autoencoder, MotionAutoencoder)
    model.to(device)
    index, tracker = Index.load(data), load_tracker(device=device)
    require_videos(index, model)
    probe = Probe(model, tracker, index, out, pairs, conversations, frames, seed)
    with progress_bar() as progress:
        task = progress.add_task("reading people", total=2 * min(conversations, len(index.samples)))
        rows, moved = probe.run(lambda: progress.advance(task))
    held = HeldOut.of(index, {str(autoencoder): artifact.info})
    made_with = {"autoencoder": artifact.digest, "data": str(data.resolve()), "seed": seed, "people": held.known}
    notes = f"People: {held.text}.\n\n{moved}"
    write_metrics(out, rows, made_with, title=f"What the latents of {autoencoder} are worth", notes=notes)
    show(console_table(rows, title=str(autoencoder)))
    print(f"{notes}\nwritten to {out}: metrics.json, metrics.md, directions.png, transfer.png")
