"""How fast a training step is, and what share of the machine's matrix-multiplication speed it reaches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from af.devices import synchronize
from af.forcing.dropout import ConditionDropout
from af.forcing.noise import FlowTimes
from af.losses.velocity import VelocityLoss
from af.models.autoencoder import MotionAutoencoder
from af.models.denoiser import MotionDenoiser
from af.models.motion_space import MotionStatistics
from af.training.denoiser import DenoiserModule, draw_drops
from af.training.flops import flops_of
from af.training.muon import Muon
from af.training.randomness import Draws, step_generator
from af.types import DyadBatch


@dataclass(frozen=True)
class StepTime:
    """One training step: median seconds, items (windows or reconstructions) a second, GFLOP/s of its products, and what
    share that is of the best matrix product in the same precision.
    """

    seconds: float
    items_per_second: float
    gflops: float
    share_of_matmul_peak: float
    precision: str


def matmul_gflops(
    dtype: torch.dtype = torch.float32,
    size: int | None = None,
    seconds: float = 1.0,
    device: torch.device | str = "cpu",
) -> float:
    """Best speed of a square matrix product on `device`, in GFLOP/s; `size` (2048, off the CPU 8192) fills it."""
    size = size or (2048 if torch.device(device).type == "cpu" else 8192)
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / min(times(lambda: a @ b, seconds, a.device)) / 1e9


def denoiser_step(denoiser: MotionDenoiser, batch: int, feature_dim: int, seconds: float = 5.0) -> StepTime:
    """Forward, backward and optimiser step of the denoiser on random windows, fp32."""
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-4)
    return _step(denoiser_loss(denoiser, batch, feature_dim), optimizer, batch, seconds)


def denoiser_loss(denoiser: MotionDenoiser, batch: int, feature_dim: int) -> Callable[[], Tensor]:
    """The training loss on random windows, to be called."""
    space, layout = denoiser.motion_space, denoiser.layout
    if not space.fitted:
        basis = torch.linalg.qr(torch.randn(space.latent_dim, space.directions))[0]
        space.fit(MotionStatistics(torch.zeros(space.directions), torch.ones(space.directions), basis))
    device = denoiser.input.weight.device
    module = DenoiserModule(
        denoiser,
        flow_times=FlowTimes(layout.block_frames),
        loss=VelocityLoss("l2"),
        dropout=ConditionDropout(),
    )
    frames = layout.window_frames

    def random(width: int) -> Tensor:
        return torch.randn(batch, frames, width, device=device)

    window = DyadBatch(
        random(space.latent_dim),
        random(feature_dim),
        random(space.latent_dim),
        random(feature_dim),
        torch.randn(batch, space.latent_dim, device=device),
        torch.ones(batch, frames, dtype=torch.bool, device=device),
    )

    def loss() -> Tensor:
        draws = Draws(step_generator(0, 0, device), batch)
        losses, _, _ = module.velocity_losses(window, draws, draw_drops(module.dropout, window, draws))
        return losses.mean()

    return loss


def autoencoder_step(
    autoencoder: MotionAutoencoder, batch: int, seconds: float = 5.0, dtype: torch.dtype = torch.float32
) -> StepTime:
    """Forward, backward and optimiser step of the autoencoder on random pairs both ways, autocast to `dtype`."""
    size = autoencoder.image_size
    device = autoencoder.direction_weight.device
    images = torch.rand(2 * batch, 3, size, size, device=device) * 2 - 1
    optimizer = Muon(autoencoder.parameters(), 1e-4, adam_lr=1e-4)

    def loss() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return (autoencoder(images).image - images.roll(batch, 0)).abs().mean()

    return _step(loss, optimizer, 2 * batch, seconds, dtype)


def _step(
    loss: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    items: int,
    seconds: float,
    dtype: torch.dtype = torch.float32,
) -> StepTime:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    flops, device = flops_of(step), optimizer.param_groups[0]["params"][0].device
    median = statistics.median(times(step, seconds, device))
    gflops = flops / median / 1e9
    share = gflops / matmul_gflops(dtype, device=device)
    return StepTime(median, items / median, gflops, share, str(dtype).removeprefix("torch."))


def times(work: Callable[[], object], seconds: float, device: torch.device | str = "cpu") -> list[float]:
    """Seconds of every call within `seconds` (at least three), after one that does not count; waits for `device`."""
    device = torch.device(device)
    work()
    synchronize(device)
    measured: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(measured) < 3:
        start = time.perf_counter()
        work()
        synchronize(device)
        measured.append(time.perf_counter() - start)
    return measured
