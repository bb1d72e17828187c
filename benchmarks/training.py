"""Training steps: how long one takes, and the share of this machine's best matrix product that it reaches.

  python -m benchmarks.training             the demo's denoiser and autoencoder; about a minute
  python -m benchmarks.training --ranks 2   also frames a second of the denoiser on one rank and on two, a thread each

`demo_autoencoder_minutes` is what the demo's first stage takes in the precision that `auto` chooses here and in fp32.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from af.cli.config import instantiate
from af.cli.kinds import count, number
from af.errors import UserError
from af.forcing.dropout import ConditionDropout
from af.forcing.noise import FlowTimes, Steps
from af.losses.adversarial import discriminator_loss, generator_loss
from af.losses.preference import PreferenceLoss
from af.losses.velocity import VelocityLoss
from af.models.autoencoder import MotionAutoencoder
from af.models.denoiser import MotionDenoiser
from af.models.discriminator import Discriminator
from af.models.motion_space import MotionStatistics
from af.nn.precision import choose
from af.training.denoiser import DenoiserModule, DistillModule, draw_drops
from af.training.flops import flops_of, matmul_gflops, seconds_of
from af.training.muon import Muon
from af.training.preference import PreferenceModule
from af.training.randomness import Draws, step_generator
from af.training.reference import FrozenReference
from af.types import DyadBatch
from benchmarks.common import encoded_example, experiment, options, report


@dataclass(frozen=True)
class StepSpeed:
    """One training step: median seconds, items (windows or reconstructions) a second, GFLOP/s of its products, and what
    share that is of the best matrix product in the same precision.
    """

    seconds: float
    items_per_second: float
    gflops: float
    share_of_matmul_peak: float
    precision: str


def measure(seconds: float, device: torch.device) -> dict[str, Any]:
    """Speeds of the demo's training steps, each measured for about `seconds`."""
    auto = choose("auto", device)
    denoiser, vae = experiment("denoiser_demo"), experiment("vae_demo")
    speeds = {
        "denoiser": denoiser_speed(
            instantiate(denoiser["model"]).to(device),
            denoiser["data"]["batch_size"],
            denoiser["model"]["audio_feature_dim"],
            seconds,
        )
    }
    for name, dtype in {"autoencoder": auto.dtype, "autoencoder_fp32": torch.float32}.items():
        network = instantiate(vae["model"]).to(device)
        speeds[name] = autoencoder_speed(network, vae["data"]["batch_size"], seconds, dtype)
    minutes = {name: vae["trainer"]["max_steps"] * speeds[name].seconds / 60 for name in list(speeds)[1:]}
    return {
        "precision": str(auto),
        "matmul_peak_gflops": {
            name: matmul_gflops(dtype, seconds=seconds / 5, device=device)
            for name, dtype in {"fp32": torch.float32, auto.name: auto.dtype}.items()
        },
        "demo_autoencoder_minutes": minutes,
        **{name: asdict(speed) for name, speed in speeds.items()},
    }


def standardised(denoiser: MotionDenoiser) -> MotionDenoiser:
    """`denoiser` with made-up statistics of motion."""
    space = denoiser.motion_space
    basis = torch.linalg.qr(torch.randn(space.latent_dim, space.directions))[0]
    space.fit(MotionStatistics(torch.zeros(space.directions), torch.eye(space.directions), basis))
    return denoiser


def denoiser_speed(
    denoiser: MotionDenoiser,
    batch: int,
    feature_dim: int,
    seconds: float,
    dtype: torch.dtype = torch.float32,
    stage: str = "denoiser",
    compile: Mapping[str, Any] | None = None,
) -> StepSpeed:
    """Forward, backward and optimiser step of the denoiser on random windows, autocast to `dtype`.

    `stage` is denoiser, distill, or preference with losers at hand. `compile`: options of `torch.compile`, if at all.
    """
    layout, device = denoiser.layout, denoiser.input.weight.device
    space, frames = standardised(denoiser).motion_space, layout.window_frames
    options: dict[str, Any] = {"dropout": ConditionDropout(), "loss": VelocityLoss("l2")}
    clean: dict[str, Any] = {"distribution": Steps(1), "clean_probability": 0.5} if stage == "distill" else {}
    options["flow_times"] = FlowTimes(layout.block_frames, **clean)
    widths = (space.latent_dim, feature_dim, space.latent_dim, feature_dim)
    motion, audio, user_motion, user_audio = (torch.randn(batch, frames, width, device=device) for width in widths)
    reference = torch.randn(batch, space.latent_dim, device=device)
    valid = torch.ones(batch, frames, dtype=torch.bool, device=device)
    window = DyadBatch(motion, audio, user_motion, user_audio, reference, valid)
    module: DenoiserModule
    if stage == "distill":
        module = DistillModule(denoiser, **options)
        window = replace(window, teacher=motion, noise=torch.randn(batch, frames, denoiser.dim, device=device))
    elif stage == "preference":
        frozen = FrozenReference(copy.deepcopy(denoiser))
        module = PreferenceModule(denoiser, frozen, preference=PreferenceLoss(), error=VelocityLoss("l2"), **options)
    else:
        module = DenoiserModule(denoiser, **options)
    if compile is not None:
        module.compile_networks(**compile)

    def loss() -> Tensor:
        draws = Draws(step_generator(0, 0, device), batch)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            mean = module.velocity_losses(window, draws, draw_drops(module.dropout, window, draws))[0].mean()
            if isinstance(module, PreferenceModule):
                mean = mean + module.judged(module.pairs(window, motion.flip(1), draws))[0]
        return mean

    return _speed([(loss, torch.optim.AdamW(denoiser.parameters(), lr=1e-4))], batch, seconds, dtype)


def autoencoder_speed(
    autoencoder: MotionAutoencoder,
    batch: int,
    seconds: float,
    dtype: torch.dtype = torch.float32,
    discriminator: Discriminator | None = None,
    compile: Mapping[str, Any] | None = None,
) -> StepSpeed:
    """Forward, backward and optimiser step of the autoencoder on random pairs both ways, autocast to `dtype`; with a
    `discriminator` also what both learn from each other, in a step without R1.
    """
    size, device = autoencoder.image_size, autoencoder.direction_weight.device
    images = torch.rand(2 * batch, 3, size, size, device=device) * 2 - 1
    made: list[Tensor] = []
    for network in (autoencoder, discriminator):
        if compile is not None and network is not None:
            network.compile(**compile)

    def loss() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            image = autoencoder(images).image
            mean = (image - images.roll(batch, 0)).abs().mean()
            if discriminator is None:
                return mean
            made[:] = [image.detach()]
            discriminator.requires_grad_(False)
            mean = mean + generator_loss(discriminator(image))
            discriminator.requires_grad_(True)
            return mean

    def judged() -> Tensor:
        assert discriminator is not None
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return discriminator_loss(discriminator(images), discriminator(made[0]))

    players = [(loss, cast(torch.optim.Optimizer, Muon(autoencoder.parameters(), 1e-4, adam_lr=1e-4)))]
    if discriminator is not None:
        players.append((judged, torch.optim.Adam(discriminator.parameters(), lr=1e-4)))
    return _speed(players, 2 * batch, seconds, dtype)


def _speed(
    players: Sequence[tuple[Callable[[], Tensor], torch.optim.Optimizer]],
    items: int,
    seconds: float,
    dtype: torch.dtype,
) -> StepSpeed:
    def step() -> None:
        for loss, optimizer in players:
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()

    device = players[0][1].param_groups[0]["params"][0].device
    with torch.compiler.set_stance("force_eager"):  # products inside compiled code are not counted
        flops = flops_of(step)
    median = statistics.median(seconds_of(step, seconds, device))
    gflops = flops / median / 1e9
    share = gflops / matmul_gflops(dtype, seconds=seconds / 5, device=device)
    return StepSpeed(median, items / median, gflops, share, str(dtype).removeprefix("torch."))


def ranks(
    number: int,
    latents: Path,
    folder: Path,
    steps: int = 61,
    rounds: int = 2,
    accelerator: str = "cpu",
    overrides: Sequence[str] = (),
) -> dict[str, float]:
    """Frames a second of the demo's denoiser on one rank and on `number`, one thread and 16 windows each.

    `overrides` are of its experiment. Best of alternating rounds. On a CPU all ranks share one machine's memory: only the ratio means something.
    UserError when a training fails.
    """
    best = {1: 0.0, number: 0.0}
    for turn in range(rounds):
        for size in best:
            run = folder / f"ranks{size}_{turn}"
            words = ["experiment=denoiser_demo", f"data.root={latents}", f"run={run}", f"data.batch_size={16 * size}"]
            words += [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}", "data.workers=0"]
            words += ["trainer=ddp", f"trainer.accelerator={accelerator}", f"trainer.devices={size}"]
            words += ["callbacks.throughput.every_n_steps=20", "callbacks.previews.clips=0", *overrides]
            command = [sys.executable, "-m", "af.cli.main", "train", *words]
            done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"the training on {size} ranks failed:\n{done.stderr[-2000:]}")
            lines = [json.loads(line) for line in (run / "throughput.jsonl").read_text().splitlines()]
            best[size] = max(best[size], *(line["throughput/frames_per_second"] for line in lines))
    alone, all_of_them = best.values()
    return {
        "frames_per_second_of_one_rank": alone,
        f"frames_per_second_of_{number}_ranks": all_of_them,
        "efficiency": all_of_them / (number * alone),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = options("training", __doc__)
    parser.add_argument(
        "--seconds", type=number(float, above=0), default=5.0, help="how long each step is measured (default 5)"
    )
    parser.add_argument("--ranks", type=count, help="also compare so many CPU ranks with one")

    def found(args: argparse.Namespace) -> dict[str, Any]:
        result = measure(args.seconds, args.device)
        if args.ranks and args.ranks > 1:
            with tempfile.TemporaryDirectory() as folder:
                latents = encoded_example(Path(folder))
                result["ranks"] = ranks(args.ranks, latents, Path(folder))
        return result

    return report(parser, found, arguments)


if __name__ == "__main__":
    sys.exit(main())
