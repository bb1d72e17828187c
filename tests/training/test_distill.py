"""Distillation: noise and motion in a batch belong together, and a student is used in one branch and few steps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from af.cli.config import compose, instantiate, resolve
from af.cli.main import main
from af.errors import UserError
from af.forcing.anchor import Anchor
from af.forcing.dropout import ConditionDropout
from af.forcing.guidance import Guidance
from af.forcing.noise import FlowTimes, Steps
from af.forcing.rollout import rollout
from af.forcing.solvers import SOLVER
from af.models.artifact import load_model, read_description
from af.pipeline.rolling import roll_out
from af.pipeline.sampling import ONE_PASS, usual_sampling
from af.training import previews
from af.training.denoiser import draw_drops
from af.training.randomness import Draws

SHORT = ["data.batch_size=4", "data.workers=0", "trainer.max_steps=2", "trainer.val_check_interval=2"]


@pytest.fixture
def arguments(latents, teacher, denoiser_folder, tmp_path) -> list[str]:
    distill = [
        "experiment=distill_demo",
        "scheme=forcing",
        f"start={denoiser_folder}",
        f"data.teacher={teacher}",
    ]
    return [*distill, *SHORT, f"data.root={latents}", f"run={tmp_path / 'run'}"]


def test_the_noise_of_a_window_is_what_the_teacher_made_its_motion_from(arguments, denoiser_folder):
    """The teacher, given a clip's first window and the noise in the batch, makes the motion in the batch."""
    data = instantiate(resolve(compose("train", arguments))["data"])
    dataset = data.train_dataloader().dataset
    items = [dataset.plan.item(n) for n in range(200)]
    batch = dataset.collate([dataset[item] for item in items if item.start == 0][:3])
    layout = load_model(denoiser_folder).model.layout
    assert {item.start % layout.block_frames for item in items} == {0}
    assert len({item.start for item in items}) > 2
    denoiser = load_model(denoiser_folder).model
    space = denoiser.motion_space
    condition = denoiser.condition(batch.avatar_audio, batch.user_audio, batch.user_motion)
    guidance = Guidance(audio=2.0, user=1.5)
    first = space.to_model(batch.avatar_motion[:, 0])  # a teacher's portrait is the clip's first frame
    motion = rollout(denoiser, condition, first, steps=2, solver=SOLVER, guidance=guidance, noise=batch.noise)
    torch.testing.assert_close(motion, space.to_model(batch.teacher), atol=1e-4, rtol=1e-4)


def test_the_paths_to_learn_lead_from_the_teachers_noise_to_its_motion(arguments):
    config = resolve(compose("train", arguments))
    module, data = instantiate(config["module"]), instantiate(config["data"])
    batch = next(iter(data.train_dataloader()))
    noise, motion = module.ends(batch, Draws(torch.Generator(), len(batch.valid)))
    assert noise.equal(batch.noise)
    torch.testing.assert_close(module.denoiser.motion_space.from_model(motion), batch.teacher, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="af teacher"):
        module.ends(replace(batch, teacher=None), Draws(torch.Generator(), len(batch.valid)))


@pytest.fixture
def own_histories(arguments) -> list[str]:
    histories = ["histories@module.histories=own", "module.histories.share=1", "module.flow_times.clean_probability=0"]
    return [*arguments, *histories, "module._target_=af.training.denoiser.DenoiserModule"]


def test_what_is_learnt_after_an_own_history_sees_it_clean(own_histories):
    """The loss of a window with a history depends on the generated frames, and counts none of them."""
    config = resolve(compose("train", own_histories))
    module, data = instantiate(config["module"]), instantiate(config["data"])
    batch = next(iter(data.train_dataloader()))
    losses, flow_time, counted = module.velocity_losses(batch, _draws(batch), _nothing_dropped(batch))
    first = module.denoiser.layout.block_frames
    assert (flow_time[:, :first] == 1).all()
    assert not counted[:, :first].any()
    assert counted.any(1).all()
    other = replace(batch, teacher=batch.teacher + 1)
    assert not module.velocity_losses(other, _draws(batch), _nothing_dropped(batch))[0].allclose(losses)
    module.eval()  # validation sees the truth alone
    seen = [module.velocity_losses(b, _draws(batch), _nothing_dropped(batch))[0] for b in (batch, other)]
    assert seen[0].equal(seen[1])
    module.train()
    with pytest.raises(UserError, match="af teacher"):
        module.velocity_losses(replace(batch, teacher=None), _draws(batch), _nothing_dropped(batch))


def test_what_is_learnt_after_a_guess_sees_the_models_own_errors(arguments):
    """The guess is that of the denoiser's pass, without a gradient; what is counted after it is true motion."""
    words = ["histories@module.histories=guessed", "module.histories.share=1", "module.flow_times.clean_probability=0"]
    config = resolve(compose("train", [*arguments, *words, "module._target_=af.training.denoiser.DenoiserModule"]))
    module, data = instantiate(config["module"]), instantiate(config["data"])
    batch = replace(next(iter(data.train_dataloader())), teacher=None)
    seen, denoiser = [], module.denoiser.forward

    def watched(noisy, flow_time, condition, reference, past):
        velocity = denoiser(noisy, flow_time, condition, reference, past)
        velocity = velocity + 0.3 if not torch.is_grad_enabled() else velocity  # an error
        seen.append((noisy, flow_time, velocity, torch.is_grad_enabled()))
        return velocity

    module.denoiser.forward = watched
    counted = module.velocity_losses(batch, _draws(batch), _nothing_dropped(batch))[2]
    (noisy, early, velocity, learnt), (shown, late, _, learns) = seen
    assert (learnt, learns) == (False, True)
    assert early.min() >= 0.5
    history = late == 1
    assert history.any(1).all()
    assert not counted[history].any()
    guess = noisy + (1 - early)[..., None] * velocity
    torch.testing.assert_close(shown[history], guess[history])
    true = module.ends(batch, _draws(batch))[1]
    assert not shown[history].allclose(true[history])
    module.eval()  # validation sees the truth alone
    seen.clear()
    module.velocity_losses(batch, _draws(batch), _nothing_dropped(batch))
    assert len(seen) == 1


def _draws(batch) -> Draws:
    return Draws(torch.Generator().manual_seed(0), len(batch.valid))


def _nothing_dropped(batch):
    return draw_drops(ConditionDropout.never(), batch, _draws(batch))


def test_flow_times_are_those_of_the_students_steps():
    times = FlowTimes(5, Steps(4), clean_probability=0.5)(64, 20, generator=torch.Generator().manual_seed(0))
    assert set(times.unique().tolist()) == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert 0.4 < (times == 1).float().mean() < 0.6
    with pytest.raises(UserError, match="count"):
        Steps(0)


def test_a_student_is_trained_and_evaluated_in_one_branch(arguments, latents, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(previews, "roll_out", lambda *given: shown.append(given[-1]) or roll_out(*given))
    assert main(["train", *arguments, "steps=2"]) == 0
    student = tmp_path / "run" / "export"
    sampling = dict(usual_sampling(read_description(student)))
    assert sampling == {**ONE_PASS, "steps": 2, "anchor": Anchor(), "dead_band": 0.0}  # it says how it learnt
    assert {settings.steps for settings in shown} == {2}
    assert {settings.guidance for settings in shown} == {Guidance.conditional()}
    words = ["evaluate", "--linear-probe", str(latents / "train"), "--denoiser", str(student)]
    words += ["evaluation.steps=2", "evaluation.unguided=true"]
    assert main([*words, "--data", str(latents / "test"), "--out", str(tmp_path / "evaluation")]) == 0
    assert "mouth/corr" in json.loads((tmp_path / "evaluation" / "metrics.json").read_text())


def test_motions_of_another_source_are_refused(arguments, losers, capsys):
    assert main(["train", *[a for a in arguments if not a.startswith("data.teacher")], f"data.teacher={losers}"]) != 0
    assert "af teacher" in capsys.readouterr().err
