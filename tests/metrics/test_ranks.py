"""The same bits on 1 and 2 processes, with unequal numbers of clips, repeats, and a process without any clip."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from af.metrics import evaluate_clips
from af.metrics.records import ClipFeatures, EvaluationClip, MetricResult, Protocol
from af.types import FaceSpec

CLIPS = 7
FACE = FaceSpec(("mouth_open", "smile", "pitch", "roll"), 2, "test/1")
PROTOCOL = Protocol(clusters=((5, 4),), block=10, resamples=20, max_lag=10, mel_bands=2, gain_bands=((1, 6),))
# Clips by rank: very uneven, 2 twice (padding); and all on the second.
SHARES = {"uneven": [[6, 3, 0, 4, 2, 5], [1, 2]], "empty": [[], [4, 6, 1, 2, 3, 0, 5]]}


def make_clip(i: int) -> EvaluationClip:
    rng, frames = np.random.default_rng(i), 210 + 3 * i
    user, true, own = (rng.normal(size=(3, frames + 4, 4)).cumsum(1)[:, 4:] * 0.1).astype(np.float32)
    voices = [(rng.normal(size=frames * 640) * np.repeat(rng.random(frames), 640)).astype(np.float32) for _ in "ab"]
    return EvaluationClip(
        f"clip {(3 * i) % CLIPS}",  # the order of names is another one
        f"id{i // 2}",
        user,
        true,
        own,
        FACE,
        *(voices if i else (None, None)),
        phrase_ends=(20, 90 + i),
        features=(ClipFeatures("net-1", "image", true[:100, :3], own[:100, :3]),),
        values={"psnr": 20.0 + i, "lse_d/generated": 7.0} if i != 3 else {},
        position=i,
    )


def numbers(result: MetricResult) -> bytes:
    curves = {
        name: (curve.x.tobytes(), {k: v.tobytes() for k, v in curve.series.items()})
        for name, curve in result.curves.items()
    }
    draws = {tag: values.tobytes() for tag, values in result.draws.items()}
    clips = {name: sorted(values.items()) for name, values in sorted(result.per_clip.items())}
    return pickle.dumps([repr(result.rows), curves, draws, repr(clips), result.absent, result.remarks])


def worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for name, shares in SHARES.items():  # the same processes form one group after the other
        torch.distributed.init_process_group("gloo", f"file://{folder}/{name}", rank=rank, world_size=2)
        with threadpool_limits(1):
            result = evaluate_clips([make_clip(i) for i in shares[rank]], PROTOCOL)
        Path(folder, f"{name}-{rank}").write_bytes(numbers(result))
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_ranks_agree_with_one_process_bit_by_bit(tmp_path: Path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    with threadpool_limits(1):
        alone = evaluate_clips([make_clip(i) for i in range(CLIPS)], PROTOCOL)
    for name in SHARES:
        for rank in range(2):
            assert Path(tmp_path, f"{name}-{rank}").read_bytes() == numbers(alone), f"{name}, rank {rank}"
    tags = {row.tag for row in alone.rows if np.isfinite(row.value)}
    for tag in ("rpcc/exp", "sid/pose", "reaction_gain", "react/nod", "lip/corr", "fd_img/net-1", "psnr", "lse_d"):
        assert tag in tags
