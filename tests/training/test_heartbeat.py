"""A rank that hangs is named, and only that one."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

from af.training.heartbeat import Heartbeat, hung


def ranks(folder, count, **options):
    trainers = [SimpleNamespace(default_root_dir=folder, global_rank=r, global_step=7) for r in range(count)]
    beats = [Heartbeat(every_s=0.0, **options) for _ in range(count)]
    for beat, trainer in zip(beats, trainers, strict=True):
        beat.on_fit_start(trainer, None)
    return beats, trainers


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_the_rank_that_the_others_wait_for_is_named_in_time(tmp_path, capsys):
    beats, trainers = ranks(tmp_path, 3, hung_after_s=0.5)
    named = tmp_path / "heartbeat" / "hung.json"
    for rank in (0, 2):  # rank 1 gets no data
        beats[rank].on_train_batch_start(trainers[rank], None, None, 0)
        beats[rank].on_before_backward(trainers[rank], None, None)
    wait_for(named.is_file)
    assert json.loads(named.read_text())["ranks"] == [1]
    for beat, trainer in zip(beats, trainers, strict=True):
        beat.teardown(trainer, None, "fit")
    assert "rank 1, at step 7, phase data" in capsys.readouterr().err


def test_ranks_that_move_do_not_hang(tmp_path):
    beats, trainers = ranks(tmp_path, 2, hung_after_s=None)
    for beat, trainer in zip(beats, trainers, strict=True):
        beat.on_train_batch_start(trainer, None, None, 0)
        beat.teardown(trainer, None, "fit")
    content = json.loads((tmp_path / "heartbeat" / "rank1.json").read_text())
    assert content["phase"] == "forward"
    assert content["step"] == 7
    assert hung(tmp_path / "heartbeat", 60.0, time.time()) == []
    assert [b["rank"] for b in hung(tmp_path / "heartbeat", 60.0, time.time() + 61)] == [0, 1]


def test_one_rank_on_the_move_is_enough(tmp_path):
    beats, trainers = ranks(tmp_path, 2, hung_after_s=None)
    time.sleep(0.3)
    beats[1].on_train_batch_start(trainers[1], None, None, 0)
    for beat, trainer in zip(beats, trainers, strict=True):
        beat.teardown(trainer, None, "fit")
    assert hung(tmp_path / "heartbeat", 0.25, time.time()) == []
