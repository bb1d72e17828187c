"""What a run says while it trains."""

from __future__ import annotations

import types

import pytest

from af.cli.config import compose, resolve
from af.training import callbacks
from af.training.callbacks import PACE_STEPS, WARM_STEPS, StepProgress, duration


@pytest.mark.parametrize(
    ("seconds", "said"), [(7.4, "7 s"), (300, "5 min"), (5940, "99 min"), (6000, "1 h 40 min"), (86_400, "24 h 00 min")]
)
def test_durations_as_people_say_them(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize("start", [0, 1000])
def test_a_training_says_early_and_once_how_long_it_will_take(monkeypatch, capsys, start):
    """The slow first steps do not count; a run that goes on counts what is left."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock.now)
    trainer = types.SimpleNamespace(global_rank=0, max_steps=20_000, global_step=start, progress_bar_metrics={})
    bar = StepProgress(refresh_s=1e9)
    bar.on_train_start(trainer, None)
    for step in range(1, WARM_STEPS + PACE_STEPS + 30):
        clock.now += 60.0 if step <= WARM_STEPS else 2.0
        trainer.global_step = start + step
        bar.on_train_batch_end(trainer, None)
        bar.on_train_batch_end(trainer, None)  # gradients of several batches make one step
    bar.on_train_end(trainer, None)
    left = 20_000 - start - WARM_STEPS - PACE_STEPS
    said = [line for line in capsys.readouterr().out.splitlines() if "s per step" in line]
    assert said == [f"2 s per step: {duration(2 * left)} for the remaining {left:,} steps"]


def test_the_device_is_chosen_by_what_there_is():
    trainer = resolve(compose("train", ["experiment=vae_clip", "data.root=x", "trainer=auto"]))["trainer"]
    assert (trainer["accelerator"], trainer["precision"], trainer["devices"]) == ("auto", "auto", 1)
