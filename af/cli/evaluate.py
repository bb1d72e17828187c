"""The table of numbers of a model on a split: every number with its ground truth, its null and its protocol.

  af evaluate --autoencoder runs/vae/export --denoiser runs/denoiser/export --data data/latents/test --out runs/evaluation

A model is a model folder, a run or a checkpoint. Whether the split's people are held out is known from the models.
Without --denoiser: what the autoencoder loses when it makes a frame from another one. With --linear-probe in place of
--autoencoder faces are read from the latents, in seconds (synthetic shards know those to fit to).

The rest are values of the configuration group `evaluation`, which trainings use, too (docs/configuration.md):

  evaluation.limit=24 evaluation.guidance_user=2     fewer conversations, another guidance
  evaluation.conditions=all                          a table of what it makes of every subset of its signals
  evaluation.drift=true                              also roll-outs of 4 minutes
  evaluation/tracker=mediapipe
                                                     filmed faces (drawn ones have a tracker that knows no others)
  evaluation/networks=[inception,i3d] evaluation.networks.inception.path=weights-inception-2015-12-05-6726825d.pth
    evaluation.networks.i3d.path=i3d_torchscript.pt  FID, FVD; torchscript: any network of yours, fd_img/NAME-HASH
  evaluation/embedder=torchscript evaluation/syncnet=weights …
                                                     identity, LSE-D and LSE-C

What is absent is listed as not computed, with the reason. Nothing is downloaded and nothing replaced.

--devices N shares the conversations among N ranks: the same numbers. The folder gets metrics.json, metrics.md, plots/,
tensorboard/, clips.json, gallery.html (opens from disk), and manifest.csv for `af compare` with another tracker.
A conversation that cannot be read is reported and does not lose the others. Stopped? The same command goes on.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Annotated, Any

from af.cli.child import become_ranks
from af.cli.config import Configured, instantiate
from af.cli.kinds import Count, Device, Model, OutFolder, Overwrite, Source
from af.cli.options import More
from af.data.parts import WHOLE, clear
from af.data.stores import location
from af.errors import UserError
from af.files import read_json

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "measurements are kept, and the same command continues with the rest"


def run(
    config: Configured,
    *,
    denoiser: Model | None = None,
    autoencoder: Annotated[Model | None, "the motion VAE that decodes"] = None,
    linear_probe: Annotated[
        Source | None, "instead of --autoencoder: read faces from the latents by a linear fit on this split (train)"
    ] = None,
    data: Annotated[Source | None, "encoded shards of a split, a folder or a URL"] = None,
    out: Annotated[OutFolder | None, "folder for the results"] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    devices: Annotated[Count, More(metavar="N"), "ranks on this machine"] = 1,
    started: Annotated[Path | None, argparse.SUPPRESS] = None,  # what the started ranks read
) -> int:
    """Compose, check, start the ranks, evaluate."""
    if started is not None:
        return _evaluate(**read_json(started))
    given = {"data": data, "autoencoder": autoencoder, "linear_probe": linear_probe}
    said = {name: str(value) for name, value in given.items() if value is not None}
    if (plain := config.resolved("evaluate", evaluation=said)) is None:
        return 0
    settings = plain["evaluation"]
    if autoencoder is not None and linear_probe is not None:
        raise UserError("--autoencoder and --linear-probe exclude each other: decode and track, or read the latents")
    model = denoiser or settings.get("autoencoder")
    needed = {"--out": out, "--data": settings.get("data"), "--denoiser or --autoencoder": model}
    if denoiser is not None:
        needed["--autoencoder or --linear-probe"] = settings["autoencoder"] or settings["linear_probe"]
    missing = [name for name, value in needed.items() if value is None]
    if out is None or missing:
        raise UserError(
            f"say what to evaluate: {', '.join(missing)} is missing (af compare takes videos of any system)"
        )
    places = (denoiser, *(settings.get(name) for name in ("autoencoder", "linear_probe", "data")))
    clear(out, overwrite, WHOLE, [location(str(place)) for place in places if place is not None])
    job = {"model": str(model), "settings": settings, "out": str(out), "device": str(device), "devices": devices}
    if devices > 1 and "LOCAL_RANK" not in os.environ:
        become_ranks(devices, out / "launch.json", job, "evaluate", "--started")
    return _evaluate(**job)


def _evaluate(model: str, settings: dict[str, Any], out: str, device: str, devices: int) -> int:
    from af.training.evaluation import evaluate, require_settings

    made = require_settings(instantiate(settings, "evaluation"))
    return evaluate(model, made, Path(out), device=device, devices=devices)
