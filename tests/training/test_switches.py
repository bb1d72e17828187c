"""Switches for memory and speed end where the plain run ends."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from af.training.switches import repeated, switch
from tests.training.test_resume import DENOISER, SHORT, VAE, train


@pytest.fixture(scope="module")
def plain(latents, tmp_path_factory):
    words = [*DENOISER, *SHORT, f"data.root={latents}", "data.batch_size=8", "trainer.max_steps=4"]
    run = tmp_path_factory.mktemp("plain")
    assert train(words, run) == 0
    return words, run


def end_close(first, second, tolerance):
    a, b = (load_file(run / "export" / "model.safetensors") for run in (first, second))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=name)


def test_accumulation_and_activation_checkpointing_end_with_the_same_weights(plain, tmp_path):
    words, run = plain
    two = ["data.batch_size=4", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=8"]
    assert train(words, tmp_path / "accumulated", *two) == 0
    end_close(run, tmp_path / "accumulated", 1e-5)
    assert train(words, tmp_path / "recomputed", "launch.activation_checkpointing=true") == 0
    end_close(run, tmp_path / "recomputed", 1e-6)


def test_bf16_keeps_the_loss_within_a_twentieth(plain, tmp_path):
    words, run = plain
    assert train(words, tmp_path / "bf16", "trainer.precision=bf16-mixed") == 0
    losses = [
        json.loads((folder / "validation.jsonl").read_text().splitlines()[-1])["val/loss"]
        for folder in (run, tmp_path / "bf16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiled_ends_with_the_same_weights(plain, tmp_path):
    words, run = plain
    assert train(words, tmp_path / "compiled", "launch.compile=true") == 0
    end_close(run, tmp_path / "compiled", 1e-4)


@pytest.mark.slow
def test_the_vae_too(dyads, tmp_path):
    words = [*VAE, *SHORT, f"data.root={dyads}", "trainer.max_steps=2", "trainer.precision=32-true"]
    assert train(words, tmp_path / "plain") == 0
    assert train(words, tmp_path / "recomputed", "launch.activation_checkpointing=true") == 0
    end_close(tmp_path / "plain", tmp_path / "recomputed", 1e-6)


def test_blocks_are_really_computed_again():
    calls = []

    class Block(nn.Module):
        def forward(self, x):
            calls.append(torch.is_grad_enabled())
            return x.sin()

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Block()])
            self.norms = nn.ModuleDict({"a": nn.BatchNorm1d(2)})

    network = Network()
    assert list(repeated(network)) == [network.blocks[0]]
    switch(network, activation_checkpointing=True)
    network.blocks[0](torch.ones(3, requires_grad=True)).sum().backward()
    assert len(calls) == 2
