"""Denoisers learn what comes after a past: a clean one, or one with their own errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from af.cli.config import compose, instantiate, resolve
from af.errors import UserError
from af.forcing.dropout import ConditionDropout
from af.training.denoiser import draw_drops
from af.training.randomness import Draws
from tests.training.test_resume import DENOISER, SHORT

GUESSED = ["histories@module.histories=guessed", "module.histories.share=1"]


@pytest.fixture
def words(latents) -> list[str]:
    return [*DENOISER, *SHORT, "scheme=teacher_forcing", f"data.root={latents}"]


def _draws(batch) -> Draws:
    return Draws(torch.Generator().manual_seed(0), len(batch.valid))


@pytest.mark.parametrize("guessed", [False, True])
def test_every_block_is_learnt_after_a_past(words, guessed):
    """It is the truth, or what the denoiser made of it in a pass that saw the truth before every block."""
    config = resolve(compose("train", [*words, *(GUESSED if guessed else ["module.histories=null"])]))
    module, data = instantiate(config["module"]), instantiate(config["data"])
    batch = replace(next(iter(data.train_dataloader())), teacher=None)
    pasts, denoiser = [], module.denoiser.forward

    def watched(noisy, flow_time, condition, reference, past):
        pasts.append(past)
        return denoiser(noisy, flow_time, condition, reference, past) + 0.1

    def losses():
        return module.velocity_losses(batch, _draws(batch), draw_drops(ConditionDropout.never(), batch, _draws(batch)))

    module.denoiser.motion_space.fit(data.motion_statistics)
    module.denoiser.forward = watched
    assert losses()[2].equal(batch.valid)
    true = module.ends(batch, _draws(batch))[1]
    assert len(pasts) == (2 if guessed else 1)
    assert pasts[0].equal(true)
    assert pasts[-1].allclose(true) == (not guessed)
    module.eval()  # validation sees the truth alone
    losses()
    assert pasts[-1].equal(true)


def test_only_windows_with_a_history_are_guessed(words):
    """Every second one, in a pass of their own; the others are learnt as without histories."""
    config = resolve(compose("train", [*words, GUESSED[0]]))
    module, data = instantiate(config["module"]), instantiate(config["data"])
    batch = replace(next(iter(data.train_dataloader())), teacher=None)
    module.denoiser.motion_space.fit(data.motion_statistics)
    torch.nn.init.normal_(module.denoiser.head.weight)  # otherwise nothing moves yet
    torch.nn.init.normal_(module.denoiser.input.weight)
    passes, denoiser = [], module.denoiser.forward

    def watched(noisy, flow_time, condition, reference, past):
        passes.append((noisy, past))
        return denoiser(noisy, flow_time, condition, reference, past)

    def losses():
        return module.velocity_losses(batch, _draws(batch), draw_drops(ConditionDropout.never(), batch, _draws(batch)))

    module.denoiser.forward = watched
    mixed = losses()[0]
    assert [len(noisy) for noisy, _ in passes] == [len(batch.valid) // 2, len(batch.valid)]
    true = module.ends(batch, _draws(batch))[1]
    same = (passes[-1][1] == true).flatten(1).all(1)
    assert same.tolist() == [True, False] * (len(same) // 2)
    every = instantiate(resolve(compose("train", [*words, *GUESSED]))["module"])
    every.denoiser.load_state_dict(module.denoiser.state_dict())
    whole = every.velocity_losses(batch, _draws(batch), draw_drops(ConditionDropout.never(), batch, _draws(batch)))[0]
    torch.testing.assert_close(mixed[1::2], whole[1::2])


def test_a_look_ahead_is_refused_before_any_work(words):
    with pytest.raises(UserError, match=r"model\.look_ahead=0"):
        instantiate(resolve(compose("train", [*words, "model.look_ahead=2"]))["module"])
