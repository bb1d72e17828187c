"""An avatar on torch and as exports: size, time a block, frames a second, and the largest differences from torch in fp32.

  python -m benchmarks.export                            the avatar of `af live`, 64 px, all cores
  python -m benchmarks.export --student                  its student, of one pass a block
  python -m benchmarks.export --source shared/demo       a hub folder

A block is motion (all steps and branches, and the commit of the one before) and its frames. Times are the median of the
second half of the blocks, in one process that alternates what is compared: processor time with one thread, else time.
Differences are of motion latents, of their standard deviation, over `--noises` roll-outs (mean and largest), and of frames of 0 to
255, of the first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from af.cli.kinds import count
from af.clock import frames_to_seconds
from af.data.audio import read_audio
from af.ingest.crops import read_portrait
from af.serve.ship import AUTOENCODER, DENOISER, PORTRAIT, STUDENT, VOICE, shipped
from af.share.avatar import Avatar
from af.share.export import export_avatar
from af.share.folder import write_folder
from af.share.runtime import Runtime
from benchmarks.common import options, report

#: A block's motion and frames, one after another; no frames where only the motion is asked for.
Blocks = Iterator[tuple[np.ndarray, np.ndarray]]
#: Blocks of a kind from the noise of a seed, with or without frames.
Run = Callable[[int, bool], Blocks]
_NO_FRAMES = np.zeros(0)


def _by_torch(avatar: Avatar, portrait: np.ndarray, signals: dict[str, Any], frames: int) -> Run:
    identity, reference = avatar.identity(portrait)

    def run(seed: int, shown: bool) -> Blocks:
        generator = torch.Generator().manual_seed(seed)
        for motion in avatar.motion(reference, frames, generator=generator, **signals, **avatar.sampling):
            yield motion.numpy(), np.stack(list(avatar.frames(identity, [motion]))) if shown else _NO_FRAMES

    return run


def _by_runtime(runtime: Runtime, portrait: np.ndarray, signals: dict[str, Any], frames: int) -> Run:
    face = runtime.face(portrait)

    def run(seed: int, shown: bool) -> Blocks:
        given = {**signals, "user_motion": iter(signals["user_motion"][0])}
        for motion in runtime.motion(face.reference, frames, seed=seed, **given):
            yield motion, np.stack(list(runtime.frames(face, [motion]))) if shown else _NO_FRAMES

    return run


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All kinds on the same input, block by block in turn."""
    if args.source is not None:
        return compare(args.source, args)
    with tempfile.TemporaryDirectory() as place:
        write_folder(Path(place), shipped() / AUTOENCODER, shipped() / (STUDENT if args.student else DENOISER))
        return compare(Path(place), args)


def compare(source: Path, args: argparse.Namespace) -> dict[str, Any]:
    """`measure` of a hub folder."""

    def load(precision: str | None) -> Avatar:
        return Avatar.from_pretrained(source, precision=precision)

    avatar = load("fp32")
    size, block = avatar.autoencoder.image_size, avatar.denoiser.layout.block_frames
    portrait = read_portrait(args.portrait or shipped() / PORTRAIT, size, find_face=args.portrait is not None)
    voice = read_audio(shipped() / VOICE)
    _, reference = avatar.identity(portrait)
    frames = args.blocks * block
    sway = np.sin(np.arange(frames) / 9)[:, None] * 0.3 * reference.numpy()
    signals = {
        "avatar_audio": np.resize(voice, len(voice) * args.blocks),
        "user_audio": np.resize(voice[::-1], len(voice) * args.blocks),
        "user_motion": [(reference.numpy() + sway).astype(np.float32)],
    }
    with tempfile.TemporaryDirectory() as place:
        kinds = {f"torch {name}": _by_torch(load(name), portrait, signals, frames) for name in ("fp32", "bf16")}
        weights = sum(p.numel() for m in (avatar.autoencoder, load(None).denoiser) for p in m.parameters())
        sizes = dict.fromkeys(kinds, 4 * weights)
        exports: dict[str, dict[str, Any]] = {
            "fp32": {},
            "fp16 weights": {"dtype": "fp16"},
            "int8 weights": {"int8": True},
        }
        for name, how in exports.items():
            about = export_avatar(source, Path(place) / name, **how)
            sizes[f"ONNX {name}"] = sum(graph["bytes"] for graph in about["graphs"].values())
            runtime = Runtime(Path(place) / name, args.threads)
            kinds[f"ONNX {name}"] = _by_runtime(runtime, portrait, signals, frames)
        running = {name: run(0, True) for name, run in kinds.items()}
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in running}
        spent: dict[str, list[float]] = {name: [] for name in running}
        clock = time.process_time if args.threads == 1 else time.perf_counter
        for _ in range(args.blocks):
            for name, source_of in running.items():
                start = clock()
                found[name].append(next(source_of))
                spent[name].append(clock() - start)
        differences = _differences(kinds, args.noises)
    rows = {}
    for name, blocks in found.items():
        images = [np.abs(a.astype(int) - b) for (_, a), (_, b) in zip(blocks, found["torch fp32"], strict=True)]
        seconds = statistics.median(spent[name][args.blocks // 2 :])
        rows[name] = {
            "MB": round(sizes[name] / 2**20, 2),
            "ms_a_block": round(1000 * seconds, 1),
            "frames_a_second": round(block / seconds, 1),
            "times_real_time": round(frames_to_seconds(block) / seconds, 1),
            **differences[name],
            "largest_frame_difference": int(max(image.max() for image in images)),
            "mean_frame_difference": float(f"{np.mean([image.mean() for image in images]):.2g}"),
        }
    return {"image_size": size, "block_frames": block, "steps": avatar.sampling["steps"], "kinds": rows}


def _differences(kinds: dict[str, Run], noises: int) -> dict[str, dict[str, float]]:
    """How far each kind's motion is from that of torch in fp32: the largest of all numbers, and the RMS as a share of the
    deviation, its mean over the noises and its largest.
    """
    largest: dict[str, list[float]] = {name: [] for name in kinds}
    shares: dict[str, list[float]] = {name: [] for name in kinds}
    for seed in range(noises):
        made = {name: np.concatenate([m for m, _ in run(seed, False)], 1) for name, run in kinds.items()}
        true = made["torch fp32"]
        for name, motion in made.items():
            largest[name].append(float(np.abs(motion - true).max()))
            shares[name].append(float(np.sqrt(np.square(motion - true).mean()) / true.std()))
    return {
        name: {
            "largest_motion_difference": float(f"{max(largest[name]):.2g}"),
            "motion_difference_rms_of_std": float(f"{statistics.mean(shares[name]):.2g}"),
            "largest_motion_difference_rms_of_std": float(f"{max(shares[name]):.2g}"),
        }
        for name in kinds
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as JSON."""
    parser = options("export", __doc__, accelerator=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--source", type=Path, help="hub folder (default: the avatar of `af live`)")
    which.add_argument("--student", action="store_true", help="the student of the avatar of `af live`")
    parser.add_argument("--portrait", type=Path, help="image of a person (default: the drawn one)")
    parser.add_argument("--blocks", type=count, default=12, help="blocks to roll out (12)")
    parser.add_argument("--noises", type=count, default=8, help="roll-outs whose motion is compared (8)")
    return report(parser, measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
