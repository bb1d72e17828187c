"""Small made-up shards for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from af.clock import frames_to_samples
from af.data import codecs
from af.data.index import build_index
from af.data.schema import SPLITS, ClipMeta
from af.data.shards import write_shard
from af.specs import FaceSpec, FeatureSpec, MotionSpec

MOTION = MotionSpec(dim=6, directions=4, autoencoder="0" * 64, image_size=32)
FACE = FaceSpec(("mouth_open", "smile", "yaw"), expression=2, tracker="toy")
AUDIO = FeatureSpec("logmel", "1", dim=5, mode="utterance")
STREAMING = FeatureSpec("logmel", "1", dim=5, mode="streaming", block_frames=10, window_frames=50)


def moving_picture(frames: int, size: int, phase: float = 0.0) -> np.ndarray:
    """Smooth colours that move; brightness of the top left corner grows with the frame number."""
    y, x = np.mgrid[:size, :size]
    t = np.arange(frames)[:, None, None]
    red = 128 + 90 * np.sin(x / 9 + t / 7 + phase)
    green = 128 + 90 * np.cos(y / 8 + t / 11)
    blue = 128 + 90 * np.sin((x + y) / 12 - t / 9)
    return np.stack(np.broadcast_arrays(red, green, blue), -1).clip(0, 255).astype(np.uint8)


def meta(number: int, frames: int, size: int, split: str, audio: FeatureSpec = AUDIO, **changes) -> ClipMeta:
    values = {
        "dataset": "toy",
        "licence": "CC0-1.0",
        "split": split,
        "session": f"{split}-{number}",
        "participants": (f"{split}-{number}-a", f"{split}-{number}-b"),
        "frames": frames,
        "image_size": size,
        "audio_spec": audio,
        "motion_spec": MOTION,
        "face_spec": FACE,
    }
    return ClipMeta(**{**values, **changes})


def rows(number: int, role: str, frames: int, dim: int, dtype=np.float32) -> np.ndarray:
    """Row t of clip n is n*1000 + t (+ 0.5 for b) in column 0: any row says where it is from."""
    out = np.zeros((frames, dim), dtype)
    out[:, 0] = number * 1000 + np.arange(frames) + (0.5 if role == "b" else 0.0)
    out[:, 1:] = np.linspace(-1, 1, frames)[:, None]
    return out


def members(number: int, frames: int, size: int, video: bool = True, phase: float = 0.0) -> dict:
    rng = np.random.default_rng(number)
    out: dict = {}
    for role in "ab":
        if video:
            out[f"{role}.mp4"] = codecs.encode_video(moving_picture(frames, size, 2 * number + (role == "b") + phase))
        sound = rng.uniform(-0.5, 0.5, frames_to_samples(frames)).astype(np.float32)
        out[f"{role}.flac"] = codecs.encode_audio(sound)
        out[f"{role}.motion.npy"] = rows(number, role, frames, MOTION.dim)
        out[f"{role}.audio.npy"] = (rows(number, role, frames, AUDIO.dim) / 1000).astype(np.float16)
        out[f"{role}.face.npy"] = rows(number, role, frames, len(FACE.names))
    return out


def write_split(
    folder: Path, lengths: list[list[int]], *, size: int = 32, video: bool = True, audio: FeatureSpec = AUDIO, **changes
) -> Path:
    """One shard for each inner list of clip lengths; returns the folder, indexed."""
    number, phase = 0, 0.3 * SPLITS.index(folder.name) if folder.name in SPLITS else 0.0  # no video is in two splits
    for shard, frames in enumerate(lengths):
        samples = []
        for length in frames:
            described = meta(number, length, size, folder.name, audio, **changes)
            samples.append((f"{number:06d}", described, members(number, length, size, video, phase)))
            number += 1
        write_shard(folder / f"{shard:06d}.tar", samples)
    build_index(folder)
    return folder
