"""What the benchmarks share: their options, the JSON they print, and shards to read where none are given."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from af.cli.config import compose, instantiate, resolve
from af.cli.kinds import DEVICE_HELP, count, device
from af.cli.options import Parser
from af.errors import user_text
from af.models.artifact import save_model
from af.pipeline.encode import encode
from af.synth.build import SynthSettings, build
from af.synth.session import SessionConfig


def options(name: str, explanation: str | None, *, accelerator: bool = True) -> argparse.ArgumentParser:
    """A parser with `--threads` and, where the benchmark can use an accelerator, `--device`."""
    parser = Parser(prog=f"python -m benchmarks.{name}", description=explanation)
    parser.add_argument("--threads", type=count, default=os.cpu_count(), help="threads of the networks (all cores)")
    if accelerator:
        parser.add_argument("--device", default="auto", type=device, metavar="NAME", help=DEVICE_HELP)
    return parser


def report(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Print what `measure` finds as JSON; returns the exit code, 1 for a mistake of the user's."""
    try:
        args = parser.parse_args(arguments)
        args.device = getattr(args, "device", torch.device("cpu"))
        torch.set_num_threads(args.threads)
        found = measure(args)
    except Exception as error:
        if (text := user_text(error)) is None:
            raise
        print(f"{parser.prog}: {text}", file=sys.stderr)
        return 1
    print(
        json.dumps({"threads": args.threads, "torch": torch.__version__, "device": str(args.device), **found}, indent=2)
    )
    return 0


def experiment(name: str, *overrides: str) -> dict[str, Any]:
    """The resolved configuration of a training experiment."""
    return resolve(compose("train", [f"experiment={name}", *overrides]))


def encoded_example(folder: Path, conversations: int = 16, seconds: float = 16.0) -> Path:
    """Synthetic conversations of `seconds` encoded in `folder` (by an untrained autoencoder: only sizes matter here)."""
    config = experiment("vae_demo")["model"]
    save_model(folder / "model", instantiate(config), config, {"stage": "vae"})
    build(folder / "data", SynthSettings(train=conversations, val=1, test=1, session=SessionConfig(seconds=seconds)))
    encode(folder / "data", folder / "latents", folder / "model", resolve(compose("encode", []))["features"])
    return folder / "latents"
