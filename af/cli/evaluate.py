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
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from af.cli.config import add_config_arguments, compose, instantiate, resolve, to_yaml
from af.cli.devices import add_device_argument, device_of
from af.cli.options import count, out_folder
from af.data.stores import location
from af.errors import UserError

#: What is said after Ctrl-C.
WHEN_INTERRUPTED = "measurements are kept, and the same command continues with the rest"


def configure(parser: argparse.ArgumentParser) -> None:
    """What is evaluated on what, and where; everything else is configuration."""
    parser.add_argument("--denoiser", type=Path, metavar="FOLDER", help="model folder, run or checkpoint")
    parser.add_argument("--autoencoder", type=Path, metavar="FOLDER", help="the motion VAE that decodes")
    parser.add_argument(
        "--linear-probe",
        type=location,
        metavar="FOLDER",
        help="instead of --autoencoder: read faces from the latents by a linear fit on this split (train)",
    )
    parser.add_argument("--data", type=location, metavar="FOLDER", help="encoded shards of a split, a folder or a URL")
    parser.add_argument("--out", type=out_folder, help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="delete what --out holds first")
    add_device_argument(parser)
    parser.add_argument("--devices", type=count, default=1, metavar="N", help="ranks on this machine (default 1)")
    parser.add_argument("--started", type=Path, help=argparse.SUPPRESS)  # what the started ranks read
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Compose, check, start the ranks, evaluate."""
    if args.started is not None:
        return _evaluate(**json.loads(args.started.read_text()))
    config = compose("evaluate", args.overrides, args.config_dir)
    for name in ("data", "autoencoder", "linear_probe"):
        if (value := getattr(args, name)) is not None:
            config["evaluation"][name] = str(value)
    if args.print_config:
        print(to_yaml(config), end="")
        return 0
    device_of(args)  # one that is not there is told before anything else
    settings = resolve(config)["evaluation"]
    if args.autoencoder is not None and args.linear_probe is not None:
        raise UserError("--autoencoder and --linear-probe exclude each other: decode and track, or read the latents")
    model = args.denoiser or settings.get("autoencoder")
    given = {"--out": args.out, "--data": settings.get("data"), "--denoiser or --autoencoder": model}
    if args.denoiser is not None:
        given["--autoencoder or --linear-probe"] = settings["autoencoder"] or settings["linear_probe"]
    if missing := [name for name, value in given.items() if value is None]:
        raise UserError(
            f"say what to evaluate: {', '.join(missing)} is missing (af compare takes videos of any system)"
        )
    if args.overwrite and args.out.exists():
        shutil.rmtree(args.out)
    job = {"model": str(model), "settings": settings, "out": str(args.out), "device": args.device}
    job["devices"] = args.devices
    if args.devices > 1 and "LOCAL_RANK" not in os.environ:
        _start_ranks(job)
    return _evaluate(**job)


def _evaluate(model: str, settings: dict[str, Any], out: str, device: str, devices: int) -> int:
    from af.training.evaluation import evaluate, require_settings

    made = require_settings(instantiate(settings, "evaluation"))
    return evaluate(model, made, Path(out), device=device, devices=devices)


def _start_ranks(job: dict[str, Any]) -> None:
    """Replace this process by torchrun on the resolved configuration."""
    from af.files import write_json

    file = Path(job["out"]) / "launch.json"
    write_json(file, job)
    sys.stdout.flush()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job['devices']}"]
    os.execv(sys.executable, [*torchrun, "-m", "af.cli.main", "evaluate", "--started", str(file)])
