"""Probe the latents of a motion VAE, on shards of people it was not trained on. Of synthetic people:

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

Of real people, read by MediaPipe (af fetch face-landmarker):

  af probe --real --autoencoder runs/people/export --data data/people/test --out runs/probe

- what is read of the driving face (jaw, smile, blink, brow, yaw, pitch, roll) is compared with what is read of the image,
  when a portrait is driven by its own video (R² about each stretch's mean; `moves`: about either's mean; null: portrait
  unchanged) and by the next person's (`across`, about either's mean);
- `identity`: are the images nearer to true frames of the portrait's person than to those of the others in the split? By the
  geometry of what expressions hardly move, by the colours of skin and hair, and by an identity network (--embedder).
  rank1: share of frames nearest to the right person; auc: share of the others who are further away (0.5 by chance);
  not_driver: share of frames nearer to the portrait's person than to the driver. Truth: true frames of that person, judged
  alike; null: chance, and across, the driver's true frames.

The folder gets metrics.json, metrics.md and driven.png (portrait | driving | image | another person driving | image).

For a model of one person (experiment=person), before and after:

  af probe --real --autoencoder runs/me/export --data data/me/test --others data/people/test --out runs/me/probe
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from af.cli.kinds import Count, Device, Model, OutFolder, Seed
from af.cli.options import More


def run(
    *,
    autoencoder: Model,
    data: Annotated[Path, More(metavar="FOLDER"), "shards of a split"],
    out: Annotated[OutFolder, "folder for the results"],
    real: Annotated[bool, "the people are real: read by MediaPipe"] = False,
    embedder: Annotated[
        Path | None, More(metavar="FILE"), "identity network for --real: TorchScript, faces of 112 px in -1 … 1"
    ] = None,
    others: Annotated[
        Path | None,
        More(metavar="FOLDER"),
        "shards of other people for --real, who drive and are told from those in --data",
    ] = None,
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
    from af.errors import UserError
    from af.evaluation.table import console_table, write_metrics
    from af.models.artifact import load_as
    from af.models.autoencoder import MotionAutoencoder
    from af.pipeline.encode import require_videos

    if (embedder is not None or others is not None) and not real:
        raise UserError("--embedder and --others look at real people: give --real, too")
    model, artifact = load_as(autoencoder, MotionAutoencoder)
    model.to(device)
    index = Index.load(data)
    require_videos(index, model)
    with progress_bar() as progress:
        if real:
            rows = _driven(model, index, out, embedder, others, frames, seed, progress)
            moved, images = "", "driven.png"
        else:
            from af.evaluation.probe import Probe
            from af.models.tracker import load_tracker

            probe = Probe(model, load_tracker(device=device), index, out, pairs, conversations, frames, seed)
            task = progress.add_task("reading people", total=2 * min(conversations, len(index.samples)))
            rows, moved = probe.run(lambda: progress.advance(task))
            images = "directions.png, transfer.png"
    held = HeldOut.of(index, {str(autoencoder): artifact.info})
    made_with = {"autoencoder": artifact.digest, "data": str(data.resolve()), "seed": seed, "people": held.known}
    notes = f"People: {held.text}.\n\n{moved}".strip()
    write_metrics(out, rows, made_with, title=f"What the latents of {autoencoder} are worth", notes=notes)
    show(console_table(rows, title=str(autoencoder)))
    print(f"{notes}\nwritten to {out}: metrics.json, metrics.md, {images}")


def _driven(
    model: Any, index: Any, out: Path, embedder: Path | None, others: Path | None, frames: int, seed: int, progress: Any
) -> list[Any]:
    from af.data.index import Index
    from af.evaluation.driven import driven_rows, stretches
    from af.evaluation.extractors import torch_module
    from af.evaluation.identity import LandmarkLook
    from af.evaluation.probe import save_grid
    from af.ingest.landmarks import FaceLandmarker

    network = None if embedder is None else torch_module(embedder, embedder.stem, "identity", size=112)
    look = LandmarkLook(FaceLandmarker(), network)
    task = progress.add_task("reading people", total=2 * sum(len(sample.roles) for sample in index.samples))
    read: Any = {"frames": frames, "seed": seed}
    found = stretches(index, look, **read, advance=lambda: progress.advance(task))
    strangers = [] if others is None else stretches(Index.load(others).without(index), look, **read)
    rows, columns = driven_rows(model, found, look, lambda: progress.advance(task), strangers)
    save_grid(out / "driven.png", columns, rows=len(found))
    return rows
