"""What one needs to know before renting a cluster: ranks measured here, and an estimate for many GPUs from counted
operations, gradient bytes and bytes read. The assumptions stand in `ASSUMED` and in the result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from af.clock import FPS
from af.errors import UserError

#: An H100 SXM's dense bf16 peak and the share of it that products of this size are taken to reach; its memory's speed;
#: the time Python needs to launch a step's kernels; what an all-reduce gets a GPU inside a machine (NVLink) and between
#: machines (a 400 Gbit/s adapter a GPU), and what a machine of 8 reads from its local disks or the page cache, in GB/s.
ASSUMED: Final = {
    "peak_tflops": 989.0,
    "utilization": 0.35,
    "memory_gb_per_s": 3350.0,
    "launch_ms": 15.0,
    "read_gb_per_s": 5.0,
    "gb_per_s_inside": 300.0,
    "gb_per_s_between": 40.0,
    "video_mbit_per_s": 2.0,
    "sound_bytes_per_frame": 640.0,
    "usd_per_gb_month": 0.023,
}
#: Numbers a frame of conf/features/logmel.yaml.
LOGMEL: Final = 64


def bench(latents: Path, folder: Path, steps: int = 61, rounds: int = 2) -> dict[str, Any]:
    """Ranks on this machine, and the estimates for the paper's denoiser."""
    model, features = _paper()
    counted = count(model, features)
    result: dict[str, Any] = {"measured": measure(latents, folder, steps, rounds), "assumed": ASSUMED, **counted}
    logmel = {**counted, "bytes_per_window": window_bytes(model.layout.window_frames, LOGMEL)}
    result["estimate"] = {
        f"{gpus}xH100, {batch} windows a GPU, {name}": estimate(gpus, batch, bytes_read)
        for name, bytes_read in (("wav2vec2", counted), ("logmel", logmel))
        for batch in (8, 64)
        for gpus in (1, 8, 64)
    }
    result["storage_1000_h"] = storage(1000.0, features)
    return result


def measure(latents: Path, folder: Path, steps: int, rounds: int) -> dict[str, float]:
    """Frames a second of the demo's denoiser on one and two ranks of one thread, 16 windows a rank; best of alternating
    rounds. Both see the same machine: only the ratio means something.
    """
    best = {1: 0.0, 2: 0.0}
    for number in range(rounds):
        for ranks in best:
            run = folder / f"ranks{ranks}_{number}"
            words = ["experiment=denoiser_demo", f"data.root={latents}", f"run={run}", f"data.batch_size={16 * ranks}"]
            words += [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}", "data.workers=0"]
            words += ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={ranks}"]
            words += ["callbacks.throughput.every_n_steps=20"]
            command = [sys.executable, "-m", "af.cli.main", "train", *words]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"the training on {ranks} ranks failed:\n{done.stderr[-2000:]}")
            lines = [json.loads(line) for line in (run / "throughput.jsonl").read_text().splitlines()]
            best[ranks] = max(best[ranks], *(line["throughput/frames_per_second"] for line in lines))
    return {
        "frames_per_second_1_rank": best[1],
        "frames_per_second_2_ranks": best[2],
        "scaling_efficiency": best[2] / (2 * best[1]),
    }


def count(model: Any, audio_dim: int) -> dict[str, float]:
    """Operations of a window (forward and backward), gradient bytes, numbers a frame and person, bytes read a window."""
    from af.training.bench import denoiser_loss
    from af.training.flops import flops_of

    loss = denoiser_loss(model, 1, audio_dim)
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "parameters": parameters,
        "flops_per_window": flops_of(lambda: loss().backward()),
        "gradient_bytes": 4 * parameters,
        "numbers_per_frame": model.motion_space.latent_dim + audio_dim,
        "bytes_per_window": window_bytes(model.layout.window_frames, audio_dim, model.motion_space.latent_dim),
    }


def stored_bytes(kind: str, numbers: int) -> int:
    """Bytes of a frame's numbers in a shard ("motion" or "audio"), as `af encode` writes them."""
    from af.pipeline.encode import STORED

    return numbers * np.dtype(STORED[kind]).itemsize


def window_bytes(frames: int, audio_dim: int, motion_dim: int = 512) -> int:
    """Bytes read for a window: latents and features of two people."""
    return 2 * frames * (stored_bytes("motion", motion_dim) + stored_bytes("audio", audio_dim))


def estimate(gpus: int, batch: int, counted: dict[str, float]) -> dict[str, Any]:
    """Milliseconds of a step by what could bound it, the slowest of which does: all of them overlap.

    AdamW in fp32 reads 16 and writes 12 bytes a parameter. A ring moves 2 (n - 1) / n of the gradients past every GPU.
    """
    compute = batch * counted["flops_per_window"] / (ASSUMED["peak_tflops"] * ASSUMED["utilization"] * 1e12)
    optimizer = 28 * counted["parameters"] / (ASSUMED["memory_gb_per_s"] * 1e9)
    link = ASSUMED["gb_per_s_inside"] if gpus <= 8 else ASSUMED["gb_per_s_between"]
    times = {
        "gpu": 1000 * (compute + optimizer),
        "launch": ASSUMED["launch_ms"],
        "allreduce": 1000 * 2 * (gpus - 1) / gpus * counted["gradient_bytes"] / (link * 1e9),
        "read": 1000 * min(gpus, 8) * batch * counted["bytes_per_window"] / (ASSUMED["read_gb_per_s"] * 1e9),
    }
    slowest = max(times, key=lambda name: times[name])
    return {
        **times,
        "bound_by": slowest,
        "step_ms": times[slowest],
        "windows_per_s": 1000 * gpus * batch / times[slowest],
    }


def storage(hours: float, audio_dim: int, motion_dim: int = 512) -> dict[str, float]:
    """Gigabytes of `hours` of conversations (two people each), and dollars a month for all but the log-mel features."""
    frames = hours * 3600 * FPS * 2
    video = frames / FPS * ASSUMED["video_mbit_per_s"] * 1e6 / 8
    parts = {
        "video_gb": video / 1e9,
        "sound_gb": frames * ASSUMED["sound_bytes_per_frame"] / 1e9,
        "motion_gb": frames * stored_bytes("motion", motion_dim) / 1e9,
        "speech_features_gb": frames * stored_bytes("audio", audio_dim) / 1e9,
        "speech_features_logmel_gb": frames * stored_bytes("audio", LOGMEL) / 1e9,
    }
    total = sum(value for name, value in parts.items() if "logmel" not in name)
    return {**parts, "total_gb": total, "usd_per_month": total * ASSUMED["usd_per_gb_month"]}


def _paper() -> tuple[Any, int]:
    from af.cli.config import compose, instantiate, resolve

    config = resolve(compose("train", ["experiment=denoiser_paper", "data.root=unused"]))["model"]
    return instantiate(config), config["audio_feature_dim"]
