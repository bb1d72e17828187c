"""A gradient that is not finite stops the run with the evidence, or is left out; either way all ranks alike."""

from __future__ import annotations

import json

import pytest
import torch

from af.errors import UserError
from af.training.denoiser import DenoiserModule
from af.training.gradients import Gradients, children_gradients, norm
from af.training.vae import VaeModule
from tests.training.test_resume import DENOISER, SHORT, same, train
from tests.training.test_vae import GAME, _batches, _loader, _module, _trainer, _weights


@pytest.fixture
def broken(monkeypatch):
    """Batch 4 of a denoiser's run brings a loss that is not a number."""
    original = DenoiserModule.training_step

    def step(self, batch, batch_idx):
        return original(self, batch, batch_idx) * (float("nan") if self.batches_seen == 5 else 1.0)

    monkeypatch.setattr(DenoiserModule, "training_step", step)


@pytest.fixture
def arguments(latents):
    return [*DENOISER, *SHORT, f"data.root={latents}"]


def test_the_batch_is_saved_and_the_run_goes_on_when_told_to(arguments, broken, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(arguments, run) == 1
    error = capsys.readouterr().err
    assert "step 4: the gradient is not finite in" in error
    assert "callbacks.gradients.skip=1" in error
    saved = torch.load(run / "nonfinite" / "step00000004_rank0.pt", weights_only=True)
    assert (saved["step"], saved["seed"], saved["batches_seen"]) == (4, 0, 5)
    assert saved["batches"][0]["avatar_motion"].shape == (4, 20, 16)
    assert saved["losses"][0].isnan()
    assert train(arguments, run, "callbacks.gradients.skip=1") == 0
    assert "left out, 1 of 1" in capsys.readouterr().out
    assert train(arguments, tmp_path / "other", "callbacks.gradients.skip=3") == 0
    assert same(run, tmp_path / "other")  # stopped and continued, or not
    assert json.loads((run / "done.json").read_text())["steps"] == 7


def test_both_players_of_the_vae_are_watched(tmp_path, monkeypatch):
    original = VaeModule.reconstruction_loss

    def loss(self, output, batch):
        total, terms = original(self, output, batch)
        return total * (float("inf") if self.batches_seen == 3 else 1.0), terms

    monkeypatch.setattr(VaeModule, "reconstruction_loss", loss)
    with pytest.raises(UserError, match="step 2: the gradient is not finite in"):
        _trainer(tmp_path, 4, callbacks=[Gradients("autoencoder")]).fit(_module(adversarial=GAME), _loader(_batches(4)))
    module, watch = _module(adversarial=GAME, gradient_clip=1.0), Gradients("autoencoder", skip=2)
    _trainer(tmp_path, 4, callbacks=[watch]).fit(module, _loader(_batches(4)))
    assert watch.skipped == 1
    assert all(value.isfinite().all() for value in _weights(module).values())


def test_the_norms_of_the_parts_make_up_the_whole():
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    network(torch.ones(2, 3)).square().sum().backward()
    parts = {name: norm(gradients) for name, gradients in children_gradients(network)}
    whole = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
    assert set(parts) == {"0", "2"}
    torch.testing.assert_close(torch.stack(list(parts.values())).norm(), whole)
