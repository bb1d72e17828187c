"""Speeds of this machine, as JSON on standard output.

  af bench                       synth, loader and train: about a minute
  af bench rollout               a roll-out block against the released scheme, packed and in bf16, 16 users at once,
                                 latency by block size against a bidirectional model (--size small|released)
  af bench vae                   decoding and encoding against per-sample weights
  af bench busy                  a live block and a training step on an idle and on a busy machine, by how threads wait
  af bench metrics               rPCC, Var, FD, TLCC and more of 200 clips of 30 s with 56 parameters, on one core
  af bench scaling               one and two ranks here, and an estimate for many H100s with its inputs (docs/cluster.md)
  af bench loader --data FOLDER --workers 0,2,4 --out loader.json
                                 reading your own shards: samples/s and bytes/s by workers, shares of reading, decoding and
                                 collating; loader.png beside the JSON shows them

Ratios are taken within one run. `--threads` sets the threads of the networks (default: all cores). `--device` is that of
train and rollout, waited for whenever time is taken; the other parts measure the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from af.cli.devices import add_device_argument, device_of
from af.cli.options import count, out_file
from af.data.stores import location

PARTS = ("synth", "loader", "train", "rollout", "vae", "busy", "metrics", "scaling")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af bench`."""
    parser.add_argument("parts", nargs="*", help=f"among {', '.join(PARTS)} (default: synth, loader, train)")
    parser.add_argument(
        "--data", type=location, help="split folder or URL of encoded shards with videos (default: made on the spot)"
    )
    parser.add_argument(
        "--workers", default="0,1,2", metavar="N,N,...", help="loader: numbers of workers (default 0,1,2)"
    )
    parser.add_argument("--threads", type=count, default=os.cpu_count(), help="threads of the networks")
    add_device_argument(parser)
    parser.add_argument("--size", default="small", choices=("small", "released"), help="networks of rollout and vae")
    parser.add_argument("--out", type=out_file, help="also write the JSON to this file")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    import torch

    from af.errors import UserError
    from af.files import require_suffix, write_json

    if args.out is not None:
        require_suffix(args.out, (".json",), "--out", "a plot lies beside it")
    parts = args.parts or ["synth", "loader", "train"]
    if unknown := sorted(set(parts) - set(PARTS)):
        raise UserError(f"unknown part {unknown[0]!r}; allowed: {', '.join(PARTS)}")
    device = device_of(args)
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {"threads": args.threads, "torch": torch.__version__, "device": str(device)}
    for part in parts:
        print(f"measuring {part} …", file=sys.stderr)
        result[part] = globals()[f"_{part}"](args, result)
    print(json.dumps(result, indent=2))
    if args.out is not None:
        write_json(args.out, result)
    return 0


def _synth(args: argparse.Namespace, so_far: dict[str, Any]) -> dict[str, float]:
    from af.synth.build import bench

    return bench()


def _train(args: argparse.Namespace, so_far: dict[str, Any]) -> dict[str, Any]:
    """Training steps of the demo's networks, the share of the matrix-product peak they reach, and how long the demo's
    autoencoder trains in the precision that `auto` takes here and in fp32.
    """
    import torch

    from af.cli.config import compose, instantiate, resolve
    from af.nn.precision import choose
    from af.training.bench import autoencoder_step, denoiser_step, matmul_gflops

    device = device_of(args)
    auto = choose("auto", device)
    denoiser = resolve(compose("train", ["experiment=denoiser_demo"]))
    vae = resolve(compose("train", ["experiment=vae_demo"]))
    steps = {
        "denoiser": denoiser_step(
            instantiate(denoiser["model"]).to(device),
            denoiser["data"]["batch_size"],
            denoiser["model"]["audio_feature_dim"],
        ),
    }
    for name, dtype in {"autoencoder": auto.dtype, "autoencoder_fp32": torch.float32}.items():
        network = instantiate(vae["model"]).to(device)
        steps[name] = autoencoder_step(network, vae["data"]["batch_size"], dtype=dtype)
    return {
        "precision": str(auto),
        "matmul_peak_gflops_fp32": matmul_gflops(device=device),
        f"matmul_peak_gflops_{auto.name}": matmul_gflops(auto.dtype, device=device),
        "demo_autoencoder_minutes": {
            name: vae["trainer"]["max_steps"] * steps[name].seconds / 60 for name in ("autoencoder", "autoencoder_fp32")
        },
        **{name: dataclasses.asdict(step) for name, step in steps.items()},
    }


def _loader(args: argparse.Namespace, so_far: dict[str, Any]) -> dict[str, Any]:
    """Reading speed by workers, and how many times the demand of the demo's training steps that of one process is."""
    from af.cli.bench_loader import bench, plot
    from af.cli.config import compose, resolve

    workers = _workers(args.workers)
    so_far["train"] = demand = so_far.get("train") or _train(args, so_far)
    if args.data is not None:
        speeds = bench(args.data, workers)
    else:
        with tempfile.TemporaryDirectory() as folder:
            speeds = bench(_example(Path(folder)), workers)
    if args.out is not None:
        plot(speeds["loader"], args.out.with_suffix(".png"))
    windows, pairs = (
        demand["denoiser"]["items_per_second"],
        demand["autoencoder"]["items_per_second"] / 2,
    )  # a pair is trained both ways
    frames = resolve(compose("train", ["experiment=denoiser_demo"]))["data"]["window_frames"]
    wanted = {
        "window_frames_per_s": ("denoiser", "windows", windows * frames),
        "pairs_per_s": ("autoencoder", "pairs", pairs),
    }
    for name, (stage, kind, rate) in wanted.items():
        speeds[f"{stage}_demand_{name}"] = rate
        if name in speeds:  # what the shards hold
            speeds[f"{kind}_over_demand"] = speeds[name] / rate
    return speeds


def _workers(text: str) -> list[int]:
    from af.errors import UserError

    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise UserError(f"--workers {text}: expected numbers such as 0,1,2")
    return [int(part) for part in text.split(",")]


def _rollout(args: argparse.Namespace, so_far: dict[str, Any]) -> dict[str, Any]:
    from af.cli.bench_rollout import bench

    return bench(args.size, device=device_of(args))


def _vae(args: argparse.Namespace, so_far: dict[str, Any]) -> dict[str, Any]:
    from af.cli.bench_vae import bench
    from af.cli.config import compose, resolve

    model = {"small": "demo", "released": "released512"}[args.size]
    group = [f"+model/autoencoder@model={model}", "~experiment", "name=bench", "trainer.max_steps=1"]
    return bench(resolve(compose("train", group))["model"])


def _busy(args: argparse.Namespace, so_far: dict[str, Any]) -> dict[str, Any]:
    from af.cli.bench_busy import bench

    return bench(args.threads)


def _metrics(args: argparse.Namespace, so_far: dict[str, Any]) -> dict[str, Any]:
    from af.cli.bench_metrics import bench

    return bench()


def _scaling(args: argparse.Namespace, so_far: dict[str, Any]) -> dict[str, Any]:
    from af.cli.bench_scaling import bench

    with tempfile.TemporaryDirectory() as folder:
        return bench((args.data or _example(Path(folder))).parent, Path(folder))


def _example(folder: Path) -> Path:
    """A few encoded synthetic conversations (the autoencoder is untrained: only sizes matter here)."""
    from af.cli.config import compose, instantiate, resolve
    from af.models.artifact import save_model
    from af.pipeline.encode import encode
    from af.synth.build import SynthSettings, build

    config = resolve(compose("train", ["experiment=vae_demo"]))["model"]
    save_model(folder / "model", instantiate(config), config, {"stage": "vae"})
    build(folder / "data", SynthSettings(train=16, val=1, test=1))
    encode(folder / "data", folder / "latents", folder / "model", resolve(compose("encode", []))["features"])
    return folder / "latents" / "train"
