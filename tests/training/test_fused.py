"""Fused optimisers: where the device has them, and never where Lightning would refuse to clip."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from af.training import schedules
from af.training.muon import Muon
from af.training.schedules import constant, optimization
from tests.training.test_resume import DENOISER, train


class Fused(Callback):
    """Notes whether the optimiser is fused."""

    seen: bool | None = None

    def on_train_start(self, trainer, module) -> None:
        Fused.seen = bool(trainer.optimizers[0].defaults.get("fused"))


@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (torch.optim.AdamW, True),
        (partial(torch.optim.Adam, lr=0.1), True),
        (partial(torch.optim.AdamW, foreach=True), False),
        (partial(Muon, lr=0.1, adam_lr=0.1), False),
    ],
)
def test_torchs_optimisers_are_fused_on_devices_that_can(make, fused, monkeypatch):
    parameters = [nn.Parameter(torch.ones(2))]
    assert not optimization(parameters, make, constant, fuse=True)["optimizer"].defaults.get("fused")
    monkeypatch.setattr(schedules, "FUSED_ON", ("cpu",))
    assert bool(optimization(parameters, make, constant, fuse=True)["optimizer"].defaults.get("fused")) == fused
    assert not optimization(parameters, make, constant)["optimizer"].defaults.get("fused")


@pytest.mark.parametrize(("clip", "fused"), [("null", True), ("1.0", False)])
def test_a_training_in_mixed_precision_runs_with_and_without_clipping(clip, fused, latents, tmp_path, monkeypatch):
    monkeypatch.setattr(schedules, "FUSED_ON", ("cpu",))
    options = [f"data.root={latents}", "data.batch_size=2", "data.workers=0", "trainer.max_steps=1"]
    options += ["trainer.val_check_interval=1", "trainer.precision=bf16-mixed", f"trainer.gradient_clip_val={clip}"]
    options += ["+callbacks.fused._target_=tests.training.test_fused.Fused", "callbacks.previews.clips=0"]
    assert train([*DENOISER, *options], tmp_path) == 0
    assert Fused.seen == fused
