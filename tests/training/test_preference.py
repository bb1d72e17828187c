"""The preference stage: it starts at log 2, leaves the reference alone, and stops when the winner is unlearnt."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from af.cli.config import compose, instantiate, resolve
from af.cli.main import main
from af.data.index import Index
from af.data.plan import fixed_windows
from af.data.shards import ShardReader
from af.data.windows import WindowDataset
from af.errors import UserError
from af.losses.velocity import valid_mean
from af.models.artifact import load_model, save_model, weights_digest
from af.training.denoiser import draw_drops
from af.training.randomness import Draws, step_generator
from af.training.reference import FrozenReference
from af.voice import listening_frames

SOURCE = "{_target_: af.pipeline.losers.WeakUser, steps: 1}"
ONLINE = f"{{_target_: af.training.preference.OnlineLosers, source: {SOURCE}}}"
SHORT = ["data.batch_size=4", "data.workers=0", "trainer.max_steps=6", "trainer.val_check_interval=3"]


@pytest.fixture
def arguments(latents, losers, denoiser_folder, tmp_path) -> list[str]:
    preference = [
        "experiment=preference_demo",
        "scheme=forcing",
        f"start={denoiser_folder}",
        f"data.losers={losers}",
        "module.online=null",
    ]
    return [*preference, *SHORT, f"data.root={latents}", f"run={tmp_path / 'run'}"]


@pytest.fixture
def batch(latents, losers):
    index = Index.load(latents / "train")
    dataset = WindowDataset(index.folder, frames=20, losers=losers / "train", listening=listening_frames)
    items = fixed_windows(index, frames=20, block=5)
    return dataset.collate([dataset[item] for item in items])


def draws(batch) -> Draws:
    return Draws(step_generator(0, 0), len(batch.valid))


def module_of(arguments, *overrides):
    return instantiate(resolve(compose("train", [*arguments, *overrides]))["module"])


class SameDraws(Draws):
    """Noise drawn in fp32 whatever it is for: the same numbers for a computation in fp64."""

    def normal(self, shape, like):
        return super().normal(shape, like.float()).to(like)


@pytest.mark.parametrize("beta", [50.0, 1000.0])
def test_margins_decide_the_same_in_mixed_precision(arguments, batch, beta):
    """A logit is β times a difference of nearly equal errors: under bf16-mixed it is off by no more than fp32's rounding."""
    module = module_of(arguments, f"module.preference.beta={beta}")
    with torch.no_grad():  # a policy that has moved a little
        for parameter in module.denoiser.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter.add_(noise * parameter.abs().mean() * 0.02)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # as `af train` sets it
    try:
        with torch.autocast("cpu", torch.bfloat16):
            pairs = module.pairs(batch, batch.loser, SameDraws(step_generator(0, 0), len(batch.valid)))
    finally:
        torch.set_float32_matmul_precision(before)
    module.denoiser.double()
    module.reference.network.double()
    doubles = {n: x.double() for n, x in vars(batch).items() if x is not None and x.is_floating_point()}
    exact_batch = replace(batch, **doubles)
    drawn = SameDraws(step_generator(0, 0), len(batch.valid))
    exact = module.pairs(exact_batch, exact_batch.loser, drawn)
    error = (beta * (pairs.errors.margin() - exact.errors.margin())).abs()[pairs.counted].max()
    scale = exact.errors.policy_loser.abs().max() + exact.errors.policy_winner.abs().max()
    assert beta * exact.errors.margin().abs().max() > 1000 * error  # there is something to decide
    # some hundred roundings of the errors' size; bf16's are 65,536 times as large
    assert error < beta * 500 * torch.finfo(torch.float32).eps * scale
    assert pairs.errors.policy_winner.dtype == torch.float32


@pytest.mark.parametrize("per", ["frame", "block", "sequence"])
def test_the_policy_starts_at_the_reference_with_log_2(arguments, batch, per):
    module = module_of(arguments, f"module.preference.per={per}", "module.preference.beta=1000")
    pairs = module.pairs(batch, batch.loser, draws(batch))
    assert (pairs.errors.margin() == 0).all()
    assert (pairs.distance == 0).all()
    loss, _ = module.preference(pairs.errors, pairs.counted, block_frames=5)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)  # rounding of the mean
    assert not pairs.errors.policy_winner.equal(pairs.errors.policy_loser)


def test_one_noise_and_flow_time_for_winner_and_loser(arguments, batch):
    """A loser that is the winner gives the winner's errors, to the last bit."""
    errors = module_of(arguments).pairs(batch, batch.avatar_motion, draws(batch)).errors
    assert errors.policy_winner.equal(errors.policy_loser)
    assert errors.reference_winner.equal(errors.reference_loser)


def test_pairs_are_judged_where_the_denoiser_learns(arguments, batch):
    """With clean history: on the noisy block alone, in windows cut to the histories that roll-outs meet."""
    module = module_of(arguments, "scheme=autoregressive")
    drawn = draws(batch)
    lengths = set()
    for _ in range(20):
        pairs = module.pairs(batch, batch.loser, drawn)
        frames = pairs.counted.shape[1]
        lengths.add(frames)
        assert pairs.errors.policy_winner.shape == pairs.errors.policy_loser.shape == (len(batch.valid), frames)
        assert pairs.counted[:, -5:].equal(batch.valid[:, frames - 5 : frames])
        assert not pairs.counted[:, :-5].any()
    assert {5, 20} <= lengths <= {5, 10, 15, 20}


def test_a_step_prefers_the_winner(arguments, batch):
    module = module_of(arguments)
    optimizer = torch.optim.SGD(module.denoiser.parameters(), lr=1e-4)

    def judged():
        pairs = module.pairs(batch, batch.loser, draws(batch))
        return module.preference(pairs.errors, pairs.counted, block_frames=5)

    judged()[0].backward()
    optimizer.step()
    loss, watched = judged()
    assert loss.item() < math.log(2)
    assert watched["margin"] > 0


def test_the_reference_is_untouched_and_outside_of_everything_that_is_saved(arguments, denoiser_folder, tmp_path):
    before = weights_digest(load_model(denoiser_folder).model)
    assert main(["train", *arguments]) == 0
    run = tmp_path / "run"
    assert weights_digest(load_model(denoiser_folder).model) == before
    assert weights_digest(load_model(run / "export").model) != before
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["reference_sha256"] == before
    assert all(name.startswith("denoiser.") for name in checkpoint["state_dict"])
    count = len(list(load_model(denoiser_folder).model.parameters()))
    assert len(checkpoint["optimizer_states"][0]["param_groups"][0]["params"]) == count
    (averaged,) = (state for name, state in checkpoint["callbacks"].items() if name.startswith("Ema"))
    assert len(averaged["average"]) == count


def test_a_touched_reference_is_noticed(denoiser_folder):
    reference = FrozenReference.load(denoiser_folder)
    reference.check()
    with torch.no_grad():
        next(reference.network.parameters()).add_(1e-6)
    with pytest.raises(RuntimeError, match="changed"):
        reference.check()
    reference = FrozenReference.load(denoiser_folder)
    reference.network.train()
    with pytest.raises(RuntimeError, match="frozen"):
        reference.check()


def test_a_run_does_not_go_on_with_another_reference(arguments, denoiser_folder, tmp_path, capsys):
    start = tmp_path / "start"
    shutil.copytree(denoiser_folder, start)
    arguments = [*arguments, f"start={start}"]
    assert main(["train", *arguments]) == 0
    (tmp_path / "run" / "done.json").unlink()
    model, info = load_model(start).model, json.loads((start / "model.json").read_text())
    with torch.no_grad():
        model.head.bias += 1
    save_model(start, model, info["model"], {k: v for k, v in info.items() if k not in ("format", "model", "sha256")})
    assert main(["train", *arguments]) == 1
    assert "not the one this run started from" in capsys.readouterr().err


def test_drift_stops_the_run(arguments, tmp_path, capsys):
    wild = ["module.denoising_weight=0", "module.weight=100", "optimizer.lr=0.5", "trainer.max_steps=60"]
    assert main(["train", *arguments, *wild, "callbacks.stop_on_drift.steps=3"]) == 0
    assert json.loads((tmp_path / "run" / "done.json").read_text())["steps"] < 60
    assert "above the reference's" in capsys.readouterr().out


def test_curves_have_the_numbers_of_their_steps(arguments, tmp_path):
    """Steps are written as 1 and 3 (from 0); the policy is the reference in step 0 alone."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert (
        main(["train", *arguments, "trainer.log_every_n_steps=2", "optimizer.lr=1e-2", "scheduler.warmup_steps=0"]) == 0
    )
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for tag in ("train/preference/drift", "train/preference/winner_excess", "train/loss", "grad_norm", "lr"):
        assert [event.step for event in events.Scalars(tag)] == [1, 3, 5]
    assert all(event.value > 0 for event in events.Scalars("train/preference/drift"))


def test_a_term_of_every_other_step_is_seen(arguments, tmp_path):
    """Logs are written in steps 1, 3, ... when there is no preference term: the newest numbers are those of the step before."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    online = f"module.online={ONLINE[:-1]}, every_n_steps: 2}}"
    words = [*arguments, "data.losers=null", online, "trainer.log_every_n_steps=2"]
    assert main(["train", *words]) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for tag in ("train/preference/loss", "train/preference/winner_excess"):
        assert [event.step for event in events.Scalars(tag)] == [1, 3, 5]


def test_losers_made_on_line_need_no_shards(arguments, tmp_path):
    online = f"module.online={ONLINE[:-1]}, every_n_steps: 2, by: policy}}"
    assert main(["train", *arguments, "data.losers=null", online]) == 0
    assert (tmp_path / "run" / "export" / "model.json").is_file()


def test_without_losers_it_says_how_to_make_them(arguments, capsys):
    assert main(["train", *arguments, "data.losers=null"]) == 1
    assert "af losers" in capsys.readouterr().err


def test_losers_of_shards_and_on_line_exclude_each_other(arguments, capsys):
    assert main(["train", *arguments, f"module.online={ONLINE}"]) == 1
    assert "both set" in capsys.readouterr().err


def test_drops_of_pairs_follow_their_schedule(arguments, batch):
    """Everything dropped at the end of the training, nothing at its start: then as without drops."""
    dropout = "{_target_: af.forcing.dropout.ConditionDropout, avatar_audio: 1, user_audio: 1, user_motion: 1"
    ramp = "reference: 0, schedule: {_target_: af.forcing.dropout.Ramp}}"
    dropping, plain = module_of(arguments, f"module.pair_dropout={dropout}, {ramp}"), module_of(arguments)
    expected = plain.pairs(batch, batch.loser, draws(batch)).errors
    for progress, same in ((0.0, True), (1.0, False)):
        found = dropping.pairs(batch, batch.loser, draws(batch), progress).errors
        assert found.reference_winner.equal(expected.reference_winner) == same
        assert found.policy_winner.equal(found.reference_winner)  # dropped for both alike


def test_a_step_has_something_to_learn_from(arguments):
    online = f"module.online={ONLINE[:-1]}, every_n_steps: 2}}"
    with pytest.raises(UserError, match="every_n_steps"):
        module_of([*arguments, "data.losers=null", online, "module.denoising_weight=0"])


def test_only_listening_frames_count(arguments, batch):
    module = module_of(arguments, "module.listening_only=true")
    pairs = module.pairs(batch, batch.loser, draws(batch))
    assert pairs.counted.equal(batch.valid & batch.listening)
    assert pairs.counted.sum() < batch.valid.sum()
    config = resolve(compose("train", [*arguments, "module.listening_only=true"]))
    assert config["data"]["listening"]
    assert valid_mean(pairs.distance, pairs.counted).item() == 0


def test_listening_is_where_nobody_spoke_for_half_a_second():
    voice = torch.zeros(100 * 640).numpy()
    voice[40 * 640 : 60 * 640] = 0.3
    listening = listening_frames(voice, 100)
    assert listening[:27].all()
    assert listening[73:].all()
    assert not listening[29:71].any()
    assert listening_frames(voice * 0, 100).all()


def test_losers_of_other_shards_are_refused(latents, losers, tmp_path):
    with pytest.raises(UserError, match="has no loser for"):
        WindowDataset(ShardReader(latents / "train"), frames=20, losers=losers / "val")


def test_the_policy_is_in_training_mode(arguments):
    module = module_of(arguments)
    assert module.denoiser.training
    assert not module.reference.network.training


def test_the_model_is_that_of_the_start(arguments, denoiser_folder):
    config = resolve(compose("train", arguments))
    assert config["model"] == json.loads((denoiser_folder / "model.json").read_text())["model"]
    with pytest.raises(UserError, match="nowhere"):
        resolve(compose("train", [*arguments, "start=nowhere"]))


def test_what_the_configuration_names_is_called(arguments, batch):
    """Losses of one's own, that have no fields in common with ours, are what the step computes."""
    module = module_of(arguments)
    module.loss = module.error = lambda predicted, target: torch.full(predicted.shape[:2], 3.0)
    module.preference = lambda errors, counted, block_frames: (errors.policy_winner.mean() + block_frames, {})
    assert module.velocity_losses(batch, draws(batch), draw_drops(module.dropout, batch, draws(batch)))[0].eq(3).all()
    pairs = module.pairs(batch, batch.loser, draws(batch))
    assert module.judged(pairs)[0].item() == 3 + 5
