"""An avatar on torch and as exports: size, time a block, frames a second, and the largest differences from torch in fp32.

  python -m benchmarks.export                            the avatar of `af live`, 64 px, all cores
  python -m benchmarks.export --student                  its student, of one pass a block
  python -m benchmarks.export --source shared/demo       a hub folder

A block is motion (all steps and branches, and the commit of the one before) and its frames. Times are the median of the
second half of the blocks, in one process that alternates what is compared: processor time with one thread, else time.
Differences are of motion latents, of their standard deviation, and of frames of 0 to 255, for one seed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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

#: A block's motion and frames, one after another.
Blocks = Iterator[tuple[np.ndarray, np.ndarray]]


def _by_torch(avatar: Avatar, portrait: np.ndarray, signals: dict[str, Any], frames: int) -> Blocks:
    identity, reference = avatar.identity(portrait)
    generator = torch.Generator().manual_seed(0)
    for motion in avatar.motion(reference, frames, generator=generator, **signals, **avatar.sampling):
        yield motion.numpy(), np.stack(list(avatar.frames(identity, [motion])))


def _by_runtime(runtime: Runtime, portrait: np.ndarray, signals: dict[str, Any], frames: int) -> Blocks:
    face = runtime.face(portrait)
    given = {**signals, "user_motion": iter(signals["user_motion"][0])}
    for motion in runtime.motion(face.reference, frames, **given):
        yield motion, np.stack(list(runtime.frames(face, [motion])))


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
        running = {f"torch {name}": _by_torch(load(name), portrait, signals, frames) for name in ("fp32", "bf16")}
        weights = sum(p.numel() for m in (avatar.autoencoder, load(None).denoiser) for p in m.parameters())
        sizes = dict.fromkeys(running, 4 * weights)
        kinds: dict[str, dict[str, Any]] = {
            "fp32": {},
            "fp16 weights": {"dtype": "fp16"},
            "int8 weights": {"int8": True},
        }
        for name, how in kinds.items():
            about = export_avatar(source, Path(place) / name, **how)
            sizes[f"ONNX {name}"] = sum(graph["bytes"] for graph in about["graphs"].values())
            runtime = Runtime(Path(place) / name, args.threads)
            running[f"ONNX {name}"] = _by_runtime(runtime, portrait, signals, frames)
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in running}
        spent: dict[str, list[float]] = {name: [] for name in running}
        clock = time.process_time if args.threads == 1 else time.perf_counter
        for _ in range(args.blocks):
            for name, source_of in running.items():
                start = clock()
                found[name].append(next(source_of))
                spent[name].append(clock() - start)
    true = np.concatenate([motion for motion, _ in found["torch fp32"]], 1)
    rows = {}
    for name, blocks in found.items():
        motion = np.concatenate([m for m, _ in blocks], 1)
        images = [np.abs(a.astype(int) - b) for (_, a), (_, b) in zip(blocks, found["torch fp32"], strict=True)]
        seconds = statistics.median(spent[name][args.blocks // 2 :])
        rows[name] = {
            "MB": round(sizes[name] / 2**20, 2),
            "ms_a_block": round(1000 * seconds, 1),
            "frames_a_second": round(block / seconds, 1),
            "times_real_time": round(frames_to_seconds(block) / seconds, 1),
            "largest_motion_difference": float(f"{np.abs(motion - true).max():.2g}"),
            "motion_difference_rms_of_std": float(f"{np.sqrt(np.square(motion - true).mean()) / true.std():.2g}"),
            "largest_frame_difference": int(max(image.max() for image in images)),
            "mean_frame_difference": float(f"{np.mean([image.mean() for image in images]):.2g}"),
        }
    return {"image_size": size, "block_frames": block, "steps": avatar.sampling["steps"], "kinds": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as JSON."""
    parser = options("export", __doc__, accelerator=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--source", type=Path, help="hub folder (default: the avatar of `af live`)")
    which.add_argument("--student", action="store_true", help="the student of the avatar of `af live`")
    parser.add_argument("--portrait", type=Path, help="image of a person (default: the drawn one)")
    parser.add_argument("--blocks", type=count, default=12, help="blocks to roll out (12)")
    return report(parser, measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
