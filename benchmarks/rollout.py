"""Roll-out speed on the same weights: against the released scheme, with packed and bf16 weights, for many users, and
the latency of block sizes against a bidirectional baseline.

  python -m benchmarks.rollout                              a small denoiser
  python -m benchmarks.rollout --size released --threads 2  the released size, 153 M parameters: about three minutes

Three guidance branches, 8 steps and full caches; best times of one process that alternates what is compared. `eager` is
the denoiser as it is trained, `fp32` and `bf16` are its packed copies.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from af.cli.kinds import count
from af.clock import FRAME_MS, frames_to_seconds
from af.devices import synchronize
from af.forcing.guidance import Guidance
from af.forcing.sampler import BlockSampler
from af.metrics.latency import Latency, latency
from af.models.artifact import build
from af.models.denoiser import MotionDenoiser, for_inference
from af.models.released.denoiser import ReleasedSizes
from af.nn.kv_cache import WindowLayout
from af.nn.precision import PRECISIONS, packs_bf16
from af.training.flops import flops_of, matmul_gflops
from af.types import Condition
from benchmarks.common import options, report
from benchmarks.released_scheme import ReleasedScheme, whole_window

SIZES: Final = {
    "released": ReleasedSizes(),
    "small": ReleasedSizes(dim=20, hidden=160, depth=4, heads=4, condition_dim=96, audio_feature_dim=64),
}
BLOCKS: Final = (5, 10, 25)
#: INFP-like: 75 new frames a window after 10 frames of context, nothing cached, everything sees everything.
BIDIRECTIONAL: Final = WindowLayout(block_frames=75, look_ahead=10, window_frames=85, condition_reach=2)


@dataclass(frozen=True)
class Inputs:
    """Made-up input of a roll-out, block after block."""

    denoiser: MotionDenoiser
    generator: torch.Generator
    users: int = 1

    def _drawn(self, *shape: int) -> Tensor:
        return torch.randn(self.users, *shape, generator=self.generator).to(self.denoiser.input.weight.device)

    def reference(self) -> Tensor:
        """Motion of a portrait."""
        return self._drawn(self.denoiser.dim)

    def block(self, frames: int) -> tuple[Condition, Tensor]:
        """Condition and noise of so many frames."""
        audio = self.denoiser.condition_encoder.out.in_features
        shapes = (audio, audio, self.denoiser.dim, self.denoiser.dim)
        *signals, noise = (self._drawn(frames, size) for size in shapes)
        return Condition(*signals), noise


@torch.inference_mode()
def measure(
    size: str = "released", steps: int = 8, repeats: int = 3, users: int = 16, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Seconds a block, speed-ups, differences, many users and latencies of a denoiser of `size` on `device`.

    The caller sets the number of threads.
    """
    generator = torch.Generator().manual_seed(0)
    denoiser = build(SIZES[size].config()).eval()
    randomise(denoiser, generator)
    denoiser.to(device)
    packed = {precision: for_inference(denoiser, precision) for precision in PRECISIONS}
    return {
        "size": size,
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "block_frames": denoiser.layout.block_frames,
        "steps": steps,
        **_one_user(denoiser, packed, generator, steps, repeats),
        "users": _many_users(denoiser, packed, generator, steps, max(1, repeats // 2), users),
        "latency": _latencies(packed, generator, steps, repeats),
    }


def _one_user(
    denoiser: MotionDenoiser, packed: dict[str, MotionDenoiser], generator: torch.Generator, steps: int, repeats: int
) -> dict[str, Any]:
    """Seconds a block, the store pass included, and how far the motion is from the released scheme's."""
    layout, inputs = denoiser.layout, Inputs(denoiser, generator)
    reference, first = inputs.reference(), inputs.block(layout.window_frames)
    theirs = ReleasedScheme(denoiser, reference, steps, Guidance())
    ours = {"eager": denoiser, **packed}
    samplers = {name: BlockSampler(model, reference, steps=steps) for name, model in ours.items()}
    start = theirs.step(*first)
    for sampler in samplers.values():
        sampler.give(first[0], start)
        sampler.commit()
    seconds = dict.fromkeys(("released_scheme", "without_cache", *samplers), float("inf"))
    difference = dict.fromkeys(samplers, 0.0)
    for _ in range(repeats):
        condition, noise = inputs.block(layout.block_frames)
        expected, seconds["released_scheme"] = _timed(
            partial(theirs.step, condition, noise), seconds["released_scheme"]
        )
        for name, sampler in samplers.items():
            got, seconds[name] = _timed(partial(one_block, sampler, condition, noise), seconds[name])
            difference[name] = max(difference[name], ((got - expected).norm() / expected.norm()).item())
    work = partial(whole_window, denoiser, *first, reference, steps)
    _, seconds["without_cache"] = _timed(work, seconds["without_cache"])
    return {
        "seconds_per_block": seconds,
        "speedup_over_released_scheme": {name: seconds["released_scheme"] / seconds[name] for name in samplers},
        "speedup_over_no_cache": {name: seconds["without_cache"] / seconds[name] for name in samplers},
        "relative_difference_from_released_scheme": difference,
        "times_real_time": {name: frames_to_seconds(layout.block_frames) / seconds[name] for name in samplers},
    }


def _many_users(
    denoiser: MotionDenoiser,
    packed: dict[str, MotionDenoiser],
    generator: torch.Generator,
    steps: int,
    repeats: int,
    users: int,
) -> dict[str, Any]:
    """Many conversations in one batch: seconds a block of all of them, and the share of the matrix-product peak."""
    one = Inputs(denoiser, generator)
    alone = ready(denoiser, one, steps)
    operations = users * flops_of(lambda: one_block(alone, *one.block(denoiser.layout.block_frames)))
    result: dict[str, Any] = {"users": users}
    device = denoiser.input.weight.device
    small = {"size": 1024} if device.type == "cpu" else {}
    for precision, model in packed.items():
        inputs = Inputs(model, generator, users)
        sampler = ready(model, inputs, steps)
        best, peak = float("inf"), 0.0
        # without bf16 layouts these products are made in fp32 (af.nn.packed), and a plain one would take a hundred times as long
        emulated = precision == "bf16" and device.type == "cpu" and not packs_bf16()
        multiplied = torch.float32 if emulated else PRECISIONS[precision]
        measured_peak = partial(matmul_gflops, multiplied, seconds=0.05, device=device, **small)
        for _ in range(repeats):
            peak = max(peak, measured_peak())
            _, best = _timed(partial(one_block, sampler, *inputs.block(model.layout.block_frames)), best)
        peak = max(peak, measured_peak())
        result[precision] = {
            "seconds_per_block": best,
            "users_in_real_time": users * frames_to_seconds(model.layout.block_frames) / best,
            "matmul_peak_gflops": peak,
            "share_of_matmul_peak": operations / best / 1e9 / peak,
        }
    return result


def _latencies(
    packed: dict[str, MotionDenoiser], generator: torch.Generator, steps: int, repeats: int
) -> dict[str, Any]:
    """From a change of the user's input to the first frame that can show it: waiting and computing (motion alone).

    For guided sampling and for one pass as distilled students make it, each beside a bidirectional model sampled alike
    and beside a guided one (there is no student of that).
    """
    samplings: dict[str, dict[str, Any]] = {
        "guided": {"steps": steps, "guidance": Guidance()},
        "one_pass": {"steps": 1, "guidance": Guidance.conditional()},
    }
    table: dict[str, Any] = {}
    for precision, model in packed.items():
        whole = resized(model, BIDIRECTIONAL, "bidirectional")
        baselines = {name: _measured(whole, generator, max(1, repeats - 1), how) for name, how in samplings.items()}
        for name, how in samplings.items():
            rows: dict[str, Any] = {"bidirectional_75": asdict(baselines[name])}
            for block in BLOCKS:
                layout = WindowLayout(block, 2, model.layout.window_frames, 2)
                row = _measured(resized(model, layout, "block_lookahead"), generator, repeats, how)
                rows[f"block_{block}"] = asdict(row) | {
                    "times_better_mean": baselines[name].mean_ms / row.mean_ms,
                    "times_better_worst": baselines[name].worst_ms / row.worst_ms,
                    "times_better_than_guided_mean": baselines["guided"].mean_ms / row.mean_ms,
                    "times_better_than_guided_worst": baselines["guided"].worst_ms / row.worst_ms,
                    "keeps_up": row.computing_mean_ms < block * FRAME_MS,
                }
            table[f"{precision}, {name}"] = rows
    return table


def _measured(denoiser: MotionDenoiser, generator: torch.Generator, repeats: int, sampling: dict[str, Any]) -> Latency:
    """Measured on blocks with full caches; the store pass is left out: it is made while the next input comes in."""
    inputs = Inputs(denoiser, generator)
    sampler, computing = ready(denoiser, inputs, **sampling), []
    for _ in range(repeats):
        block = inputs.block(denoiser.layout.block_frames)
        computing.append(1000 * _timed(partial(sampler.step, *block), float("inf"))[1])
        sampler.commit()
    return latency(denoiser.layout.block_frames, computing)


def resized(denoiser: MotionDenoiser, layout: WindowLayout, mask: str) -> MotionDenoiser:
    """The same weights with other blocks."""
    other = copy.copy(denoiser)
    other.layout, other.mask = layout, mask
    return other


def ready(denoiser: MotionDenoiser, inputs: Inputs, steps: int, **sampling: Any) -> BlockSampler:
    """A sampler with full caches."""
    sampler = BlockSampler(denoiser, inputs.reference(), steps=steps, **sampling)
    for _ in range(-(-denoiser.layout.window_frames // denoiser.layout.block_frames)):
        sampler.give(*inputs.block(denoiser.layout.block_frames))
    sampler.commit()
    return sampler


def one_block(sampler: BlockSampler, condition: Condition, noise: Tensor) -> Tensor:
    """The next block, which also enters the caches."""
    motion = sampler.step(condition, noise)
    sampler.commit()
    return motion


def _timed(work: Callable[[], Tensor], best: float) -> tuple[Tensor, float]:
    start = time.perf_counter()
    result = work()
    synchronize(result.device)
    return result, min(best, time.perf_counter() - start)


def randomise(denoiser: MotionDenoiser, generator: torch.Generator) -> None:
    """Weights of a trained network's size: a fresh one has zero gates, and denormals would spoil the timing."""
    for parameter in denoiser.parameters():
        if parameter.ndim == 2:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = options("rollout", __doc__)
    parser.add_argument("--size", default="small", choices=SIZES, help="small (default) or released")
    parser.add_argument("--users", type=count, default=16, help="conversations in one batch (default 16)")

    def found(args: argparse.Namespace) -> dict[str, Any]:
        return measure(args.size, users=args.users, device=args.device)

    return report(parser, found, arguments)


if __name__ == "__main__":
    sys.exit(main())
