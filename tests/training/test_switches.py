"""Switches for memory and speed end where the plain run ends, and do something on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from af.models.decoder import DecoderLevel
from af.nn.transformer import ForcingBlock
from af.training.compile import recompute, repeated
from tests.training.test_resume import DENOISER, SHORT, VAE, started, train

#: In fp64 rounding is no excuse, and with a large rate from the first step on heads that start at zero are none either.
EXACT = ["trainer.precision=64-true", "scheduler.warmup_steps=0", "optimizer.lr=0.02"]


@pytest.fixture(scope="module")
def plain(latents, tmp_path_factory):
    words = [*DENOISER, *SHORT, *EXACT, f"data.root={latents}", "data.batch_size=8", "trainer.max_steps=4"]
    words += ["trainer.val_check_interval=2", "callbacks.previews.clips=0"]
    run = tmp_path_factory.mktemp("plain")
    assert train(words, run) == 0
    return words, run


def end_together(first: Path, second: Path, share: float = 1e-6) -> None:
    """The weights end as far from each other as a `share` of the way that they have gone, at most."""
    start = started(first)
    a, b = (load_file(run / "export" / "model.safetensors") for run in (first, second))
    assert start.keys() <= a.keys() == b.keys()
    gone, apart = (
        torch.cat([(a[n].double() - x[n].double()).flatten() for n in start]).norm().item() for x in (start, b)
    )
    assert gone > 0.1
    assert apart <= share * gone


def losses(run: Path) -> list[float]:
    return [json.loads(line)["val/loss"] for line in (run / "validation.jsonl").read_text().splitlines()]


def graded_calls(monkeypatch, cls: type[nn.Module]) -> list[bool]:
    """Grows with every forward pass of a block that is for a gradient."""
    calls, original = [], cls.forward

    def counting(self, *given, **named):
        if torch.is_grad_enabled():
            calls.append(True)
        return original(self, *given, **named)

    monkeypatch.setattr(cls, "forward", counting)
    return calls


def test_accumulated_batches_are_one_large_batch(plain, tmp_path):
    words, run = plain
    two = ["data.batch_size=4", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4"]
    assert train(words, tmp_path / "accumulated", *two) == 0
    end_together(run, tmp_path / "accumulated")


def test_blocks_computed_again_end_with_the_same_weights(plain, tmp_path, monkeypatch):
    words, run = plain
    calls = graded_calls(monkeypatch, ForcingBlock)
    assert train(words, tmp_path / "recomputed", "activation_checkpointing=true") == 0
    assert len(calls) == 2 * 4 * 2  # each of two blocks twice a step
    end_together(run, tmp_path / "recomputed")


def test_bf16_keeps_the_loss_within_a_twentieth(plain, tmp_path):
    words, run = plain
    assert train(words, tmp_path / "bf16", "trainer.precision=bf16-mixed") == 0
    exact, rounded = losses(run), losses(tmp_path / "bf16")
    assert abs(exact[1] / exact[0] - 1) > 1e-3  # something is learnt
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != pytest.approx(exact, rel=1e-5)  # it is in bf16: fp32 is nearer


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiled_ends_with_the_same_weights(plain, tmp_path):
    from torch._dynamo.utils import counters

    words, run = plain
    counters.clear()
    assert train(words, tmp_path / "compiled", "compile=true") == 0
    assert counters["stats"]["unique_graphs"] > 0
    end_together(run, tmp_path / "compiled")


@pytest.mark.slow
def test_the_vae_too(dyads, tmp_path, monkeypatch):
    words = [*VAE, *SHORT, *EXACT, f"data.root={dyads}", "trainer.max_steps=2"]
    assert train(words, tmp_path / "plain") == 0
    calls = graded_calls(monkeypatch, DecoderLevel)
    assert train(words, tmp_path / "recomputed", "activation_checkpointing=true") == 0
    assert len(calls) == 2 * 2 * 3  # 8, 16 and 32 px, twice in each of two steps
    end_together(tmp_path / "plain", tmp_path / "recomputed")


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
    recompute(network)
    network.blocks[0](torch.ones(3, requires_grad=True)).sum().backward()
    assert len(calls) == 2
