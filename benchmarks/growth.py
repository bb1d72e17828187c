"""What grows with what: a block with the session's length, many sessions together, evaluation with its clips, and the
loader's plan with the shards.

  python -m benchmarks.growth --out FOLDER        growth.json and growth.png; about a minute
  python -m benchmarks.growth --scale 0.1         shorter

Blocks are of the small denoiser, one pass each. `index_bytes_per_sample` is what an index takes in memory for every sample
in it, `drawing_mib` what drawing windows adds to that, `microseconds` how long one takes.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from af.cli.kinds import number
from af.clock import FPS, frames_to_seconds
from af.data.index import Index, SampleEntry, ShardEntry
from af.data.plan import WindowPlan
from af.files import atomic_path, write_text
from af.forcing.batching import commit_batch, step_batch
from af.forcing.sampler import BlockSampler
from af.metrics import evaluate_clips
from af.metrics.records import EvaluationClip
from af.models.artifact import build
from af.models.denoiser import MotionDenoiser, for_inference
from af.pipeline.sampling import ONE_PASS
from af.synth.face import FACE_SPEC
from af.training.flops import seconds_of
from benchmarks.common import options, report
from benchmarks.rollout import SIZES, Inputs, one_block, randomise, ready

_BINS = 10


def small() -> MotionDenoiser:
    """The small denoiser of `benchmarks.rollout`, packed."""
    denoiser = build(SIZES["small"].config()).eval()
    with torch.no_grad():
        randomise(denoiser, torch.Generator().manual_seed(0))
    return for_inference(denoiser)


@torch.inference_mode()
def session_length(denoiser: MotionDenoiser, blocks: int) -> list[dict[str, float]]:
    """Median ms of a block in each tenth of a session."""
    inputs = Inputs(denoiser, torch.Generator().manual_seed(0))
    frames, sampler = denoiser.layout.block_frames, BlockSampler(denoiser, inputs.reference(), **ONE_PASS)
    taken = []
    for _ in range(blocks):
        given = inputs.block(frames)
        start = time.perf_counter()
        one_block(sampler, *given)
        taken.append(1000 * (time.perf_counter() - start))
    return [
        {"minutes": frames_to_seconds(frames * int(part[-1] + 1)) / 60, "ms_per_block": statistics.median(taken[i] for i in part)}
        for part in np.array_split(np.arange(blocks), _BINS)
    ]  # fmt: skip


@torch.inference_mode()
def sessions(denoiser: MotionDenoiser, counts: Sequence[int], seconds: float) -> list[dict[str, float]]:
    """Median ms of a block of so many sessions computed together."""
    found = []
    for count in counts:
        inputs = [Inputs(denoiser, torch.Generator().manual_seed(i)) for i in range(count)]
        samplers = [ready(denoiser, each, **ONE_PASS) for each in inputs]
        given = [each.block(denoiser.layout.block_frames) for each in inputs]

        def step(samplers: list[BlockSampler] = samplers, given: list[Any] = given) -> None:
            step_batch(samplers, [c for c, _ in given], [n for _, n in given])
            commit_batch(samplers)

        ms = 1000 * statistics.median(seconds_of(step, seconds))
        found.append({"sessions": count, "ms_per_block": ms, "ms_per_session": ms / count})
    return found


def evaluation(counts: Sequence[int]) -> list[dict[str, float]]:
    """Seconds that the metrics of faces take for so many clips of ten seconds."""
    rng, found = np.random.default_rng(0), []
    for count in counts:
        clips = []
        for i in range(count):
            steps = rng.standard_normal((3, 10 * FPS, len(FACE_SPEC.names)), np.float32)
            user, true, generated = 0.1 * steps.cumsum(1)
            clips.append(EvaluationClip(str(i), str(i), user, true, generated, FACE_SPEC))
        start = time.perf_counter()
        evaluate_clips(clips)
        found.append({"clips": count, "seconds": time.perf_counter() - start})
    return found


def made_up_index(samples: int) -> Index:
    """An index of conversations that nobody has recorded, 100 in a shard."""
    shards = -(-samples // 100)
    size = 1 << 30
    entries = tuple(
        SampleEntry(
            f"c{i:09d}", i // 100, 1500, (f"p{i % 997}", f"q{i % 991}"), f"s{i}", {"a": ((0, 1500),), "b": ((0, 1500),)},
            {f"{role}.{part}.npy": (1024, 4096) for role in "ab" for part in ("motion", "audio")},
        )
        for i in range(samples)
    )  # fmt: skip
    tars = tuple(ShardEntry(f"{n:06d}.tar", size, "0" * 64, 100, 150_000, 0) for n in range(shards))
    return Index(Path("nowhere"), "train", tars, entries, None, {})


def loader(counts: Sequence[int], draws: int) -> list[dict[str, float]]:
    """Memory and time of a plan of windows over so many samples."""
    found = []
    for count in counts:
        gc.collect()
        tracemalloc.start()
        index = made_up_index(count)
        held = tracemalloc.get_traced_memory()[0]
        plan = WindowPlan(index, frames=50, block=10)
        plan.item(0)  # the order of the first epoch
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for position in range(1, draws):
            plan.item(position)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        start = time.perf_counter()
        for position in range(1, draws):
            plan.item(position)
        each = 1e6 * (time.perf_counter() - start) / draws
        found.append({
            "samples": count, "shards": len(index.shards), "index_bytes_per_sample": held / count,
            "plan_mib": (before - held) / 2**20, "drawing_mib": (peak - before) / 2**20, "microseconds": each,
        })  # fmt: skip
    return found


def plot(found: dict[str, Any], file: Path) -> None:
    """The four curves, as PNG."""
    from matplotlib.figure import Figure  # without pyplot it needs no display

    panels: list[tuple[str, str, str, str]] = [
        ("session_length", "minutes", "ms_per_block", "A block by the session's length"),
        ("sessions", "sessions", "ms_per_session", "A session's share of a common block"),
        ("evaluation", "clips", "seconds", "Evaluation by clips of ten seconds"),
        ("loader", "samples", "drawing_mib", "Memory of drawing windows by samples (MiB)"),
    ]
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    for axes, (name, x, y, title) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        rows = found[name]
        axes.plot([row[x] for row in rows], [row[y] for row in rows], "o-", color="#3d7ea6", lw=1.8)
        if name in ("sessions", "loader"):
            axes.set_xscale("log", base=2 if name == "sessions" else 10)
        axes.set_ylim(0, 1.25 * max(row[y] for row in rows) or 1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x)
        axes.set_ylabel(y.replace("_", " "))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def measure(scale: float) -> dict[str, Any]:
    """All four, `scale` times as long as by default."""

    def sizes(*numbers: int) -> list[int]:
        return sorted({max(1, round(scale * n)) for n in numbers})

    denoiser = small()
    parts: dict[str, Callable[[], Any]] = {
        "session_length": lambda: session_length(denoiser, max(2 * _BINS, round(750 * scale))),
        "sessions": lambda: sessions(denoiser, (1, 2, 4, 8, 16)[: 5 if scale >= 1 else 3], min(1.0, scale)),
        "evaluation": lambda: evaluation([n + 2 for n in sizes(4, 8, 16, 32)]),
        "loader": lambda: loader(sizes(1_000, 10_000, 100_000), 2_000),
    }
    return {name: part() for name, part in parts.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = options("growth", __doc__, accelerator=False)
    parser.add_argument("--scale", type=number(float, above=0), default=1.0, help="of lengths and numbers (default 1)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for growth.json and growth.png")

    def found(args: argparse.Namespace) -> dict[str, Any]:
        result = measure(args.scale)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            write_text(args.out / "growth.json", json.dumps(result, indent=2) + "\n")
            plot(result, args.out / "growth.png")
        return result

    return report(parser, found, arguments)


if __name__ == "__main__":
    sys.exit(main())
