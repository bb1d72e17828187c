"""The streaming reader trains as the planned one does, and a run of it goes on after a stop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from af.data.index import build_index
from af.data.planned import PlannedReader
from af.data.shards import ShardReader, write_shard
from af.data.stream import StreamReader
from af.errors import UserError
from af.models.speech import LogMel
from af.pipeline.encode import STATISTICS_NAME, read_statistics, write_statistics
from af.training.datamodule import WindowData
from tests.training.test_resume import DENOISER, train

FEATURES = {"window_frames": 20, "block_frames": 5}
FRAMES = 100


def smooth(rng: np.random.Generator, width: int) -> np.ndarray:
    """(FRAMES, width) of unit variance that changes within a few frames."""
    kernel = np.exp(-(np.linspace(-2, 2, 9) ** 2))
    noise = rng.standard_normal((FRAMES + 8, width))
    return np.stack([np.convolve(column, kernel / np.linalg.norm(kernel), "valid") for column in noise.T], 1)


@pytest.fixture(scope="module")
def caused(latents, tmp_path_factory) -> Path:
    """Latents whose motion follows the own voice and the other's motion: 24 clips in 6 shards, 4 clips to validate on."""
    folder, statistics = tmp_path_factory.mktemp("caused"), read_statistics(latents)
    mean, std, basis = (x.numpy() for x in (statistics.mean, statistics.std, statistics.basis))
    described = ShardReader(latents / "train").read_meta(0)
    mixing = np.random.default_rng(0).standard_normal((64, len(mean))) / 8
    for split, shards in (("train", 6), ("val", 1)):
        for shard in range(shards):
            samples = []
            for clip in range(4):
                key = f"{split}{shard}{clip}"
                rng = np.random.default_rng([len(split), shard, clip])
                voices = [smooth(rng, 64) for _ in "ab"]
                own = [voice @ mixing for voice in voices]
                members: dict[str, np.ndarray] = {}
                for n, role in enumerate("ab"):
                    moved = own[n] + 0.5 * np.roll(own[1 - n], 5, 0)
                    members[f"{role}.motion.npy"] = ((mean + std * moved) @ basis.T).astype(np.float32)
                    members[f"{role}.audio.npy"] = voices[n].astype(np.float16)
                meta = dataclasses.replace(
                    described,
                    split=split,
                    session=key,
                    participants=(f"{key}-a", f"{key}-b"),
                    frames=FRAMES,
                    valid=None,
                    crop_boxes={},
                    face_spec=None,
                    time_range_s=None,
                )
                samples.append((key, meta, members))
            write_shard(folder / split / f"{shard}.tar", samples)
        build_index(folder / split)
    write_statistics(folder / STATISTICS_NAME, statistics)
    return folder


@pytest.mark.slow
def test_both_readers_end_with_the_same_loss(caused, tmp_path):
    """Final validation losses differ between the readers by no more than they do between seeds."""
    losses: dict[str, list[float]] = {"planned": [], "stream": []}
    for reader, found in losses.items():
        for seed in range(2):
            run = tmp_path / f"{reader}-{seed}"
            sizes = ["data.batch_size=16", "data.workers=0", "trainer.max_steps=400", "trainer.val_check_interval=400"]
            where = [f"data.root={caused}", f"data/reader={reader}", f"seed={seed}"]
            assert train([*DENOISER, *sizes, *where], run) == 0
            scalars = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("val/loss")
            found.append(scalars[-1].value)
            assert scalars[-1].value < 1.8  # of 2 for a model that predicts nothing
    planned, stream = (np.array(losses[name]) for name in ("planned", "stream"))
    print(f"\nfinal losses: planned {planned}, stream {stream}, ratio of means {stream.mean() / planned.mean():.4f}")
    spread = max(np.ptp(planned), np.ptp(stream))
    assert abs(stream.mean() - planned.mean()) <= spread


def data(root: Path, reader, world: int = 1, batches: int = 0) -> WindowData:
    found = WindowData(root, features=LogMel(**FEATURES), **FEATURES, batch_size=4, workers=0, reader=reader)
    found.trainer = SimpleNamespace(
        global_rank=0,
        world_size=world,
        precision="32-true",
        overfit_batches=0,
        lightning_module=SimpleNamespace(batches_seen=batches),
    )
    return found


def test_a_streamed_run_goes_on_and_says_what_it_repeats(caused, caplog):
    state = data(caused, StreamReader(buffer=1), world=2, batches=20).state_dict()
    assert state["samples"] == 80
    assert state["reader"]["repeated"] == 2 * (
        40 - 40 // 40 * 40
    )  # four clips of 10 windows a shard: a shard each is done
    assert state["reader"]["places"] == [2]
    later = data(caused, StreamReader(buffer=1))
    later.load_state_dict(state)
    fresh = data(caused, StreamReader(buffer=1))
    windows = [batch.avatar_motion for _, batch in zip(range(25), fresh.train_dataloader(), strict=False)]
    assert torch.equal(next(iter(later.train_dataloader())).avatar_motion, windows[20])
    assert later.state_dict()["reader"]["places"] == [2]  # nothing was taken yet
    with pytest.raises(
        UserError, match=r"data\.reader is a PlannedReader, the checkpoint was made with a StreamReader"
    ):
        data(caused, PlannedReader()).load_state_dict(state)
