"""Samples of one person: their user is dropped, exactly, and they train both models, alone and beside conversations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from af.cli.config import compose, instantiate, resolve
from af.cli.main import main
from af.data.events import listener_activity
from af.data.index import Index
from af.data.plan import fixed_windows
from af.data.rearrange import merge
from af.data.shards import ShardReader
from af.data.validate import validate
from af.data.windows import WindowDataset
from af.errors import UserError
from af.evaluation.checkpoint import Subject
from af.evaluation.settings import CheckpointSettings
from af.forcing.dropout import ConditionDropout, drop_user
from af.models.artifact import load_model
from af.pipeline.encode import carry_statistics, encode
from af.pipeline.losers import WeakUser, make_losers
from af.pipeline.rolling import RolloutSettings, roll_out, turn_of
from af.pipeline.teacher import make_teacher
from af.training.denoiser import conditioned, draw_drops
from af.training.evaluation import require_settings
from af.training.preference import _others
from af.training.randomness import Draws, step_generator
from af.types import DyadBatch
from af.voice import listening_frames
from tests.conftest import FEATURES
from tests.one_sided import one_sided
from tests.training.test_resume import DENOISER, VAE

SHORT = ["data.batch_size=4", "data.workers=0", "trainer.max_steps=2", "trainer.val_check_interval=2"]


@pytest.fixture(scope="module")
def alone(latents, tmp_path_factory) -> Path:
    """Encoded one-sided samples; the second one of each split is mute."""
    return one_sided(latents, tmp_path_factory.mktemp("alone"), mute=1)


@pytest.fixture
def windows(latents, alone) -> DyadBatch:
    """Windows of a conversation in both roles, and of one person."""
    dyad, solo = WindowDataset(latents / "train", frames=20), WindowDataset(alone / "train", frames=20)
    item = fixed_windows(dyad.reader.index, frames=20)
    samples = [dyad[item[0]], solo[fixed_windows(solo.reader.index, frames=20)[0]], dyad[item[-1]]]
    return dyad.collate(samples)


def run_of(tmp_path: Path, *arguments: str) -> list[dict]:
    assert main(["train", *arguments, *SHORT, f"run={tmp_path / 'run'}"]) == 0
    return [json.loads(line) for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()]


def test_a_missing_user_is_the_trained_null_whatever_the_batch_holds(windows, denoiser_folder):
    denoiser = load_model(denoiser_folder).model
    assert windows.has_user.tolist() == [True, False, True]
    draws = Draws(step_generator(0, 0), 3)
    dropped = draw_drops(ConditionDropout.never(), windows, draws)
    assert dropped.user_audio[:, 0].tolist() == dropped.user_motion[:, 0].tolist() == [False, True, False]
    assert not dropped.avatar_audio.any()
    condition = drop_user(conditioned(denoiser, windows)[0], ~windows.has_user)
    for name, signal in vars(condition).items():
        assert signal[1].any().item() == (name == "avatar_audio")
        assert signal[[0, 2]].any()


def test_the_loss_of_one_person_is_that_of_a_dropped_user(windows, latents, denoiser_folder):
    module = instantiate(
        resolve(compose("train", [*DENOISER, *SHORT, "scheme=forcing", f"data.root={latents}", "run=x"]))["module"]
    )
    module.denoiser = load_model(denoiser_folder).model
    solo = DyadBatch(**{name: None if x is None else x[1:2] for name, x in vars(windows).items()})
    noise = replace(solo, user_motion=torch.randn_like(solo.user_motion), user_audio=torch.randn_like(solo.user_audio))

    def losses(batch, dropout=ConditionDropout.never()):  # noqa: B008
        draws = Draws(step_generator(0, 0), 1)
        return module.velocity_losses(batch, draws, draw_drops(dropout, batch, draws))[0]

    without = ConditionDropout(0, 0, 0, 0, user=1.0)
    expected = losses(replace(solo, has_user=None), without)
    assert torch.equal(losses(solo), expected)
    assert torch.equal(losses(noise), expected)
    assert not torch.equal(losses(replace(noise, has_user=None)), expected)


def test_a_mute_sample_has_motion_and_no_window(dyads, autoencoder_folder, tmp_path):
    raw = one_sided(dyads, tmp_path / "raw", mute=1)
    encode(raw, tmp_path / "out", autoencoder_folder, FEATURES)
    assert validate(tmp_path / "out").ok
    index = Index.load(tmp_path / "out" / "train")
    assert [s.avatars for s in index.samples[:3]] == [("a",), (), ("a",)]
    assert {"a.motion.npy", "a.mp4"} <= set(index.samples[1].members)
    assert 1 not in {item.sample for item in fixed_windows(index, frames=20)}
    made = ShardReader(index).read(0, {"motion", "audio_features"})
    assert made.a.motion is not None
    assert made.b.motion is None


def test_the_other_user_is_that_of_a_window_with_one(windows):
    four = DyadBatch(**{n: None if x is None else torch.cat((x, x[:1])) for n, x in vars(windows).items()})
    assert _others(replace(four, has_user=None)).tolist() == [3, 0, 1, 2]
    assert _others(four).tolist() == [3, 0, 0, 2]
    assert _others(replace(four, has_user=torch.tensor([False, True, False, False]))).tolist() == [1, 1, 1, 1]


@pytest.fixture(scope="module")
def both(latents, alone, tmp_path_factory) -> Path:
    """Conversations and people alone in one folder."""
    folder = tmp_path_factory.mktemp("both")
    carry_statistics([latents, alone], folder, merge([latents, alone], folder, shard_bytes=10**6))
    return folder


def test_losers_are_for_conversations_alone(both, alone, denoiser_folder, tmp_path):
    source = {"_target_": "af.pipeline.losers.WeakUser", "steps": 1}
    with pytest.raises(UserError, match="one person alone"):
        make_losers(alone, tmp_path / "none", source, denoiser=denoiser_folder)
    (train, *_) = make_losers(both, tmp_path / "losers", source, denoiser=denoiser_folder)
    assert not any(s.key.startswith("solo") for s in train.samples)
    dataset = WindowDataset(both / "train", frames=20, losers=tmp_path / "losers" / "train")
    items = fixed_windows(dataset.reader.index, frames=20)
    batch = dataset.collate([dataset[item] for item in items])
    same = (batch.loser == batch.avatar_motion).flatten(1).all(1)
    assert torch.equal(same, ~batch.has_user)
    assert 0 < same.sum() < len(same)


def test_reactions_are_weighted_and_measured_in_conversations_alone(both, latents, denoiser_folder):
    index = Index.load(both / "train")
    found = listener_activity(index, listening_frames)
    talks = [i for i, sample in enumerate(index.samples) if not sample.key.startswith("solo")]
    assert set(found) == {f"{i}.{role}" for i in talks for role in "ab"}
    settings = CheckpointSettings(data=str(both / "test"), linear_probe=str(latents / "train"))
    subject = Subject.load(denoiser_folder, settings, torch.device("cpu"))
    assert [s.key for s in subject.index.samples] == [s.key for s in Index.load(latents / "test").samples]


def test_a_teacher_of_one_person_is_its_roll_out_without_a_user(alone, denoiser_folder, tmp_path):
    (train, *_) = make_teacher(alone, tmp_path / "teacher", denoiser_folder, steps=1)
    reader = ShardReader(alone / "train")
    assert [s.key for s in train.samples] == [s.key for s in reader.index.samples if s.avatars]
    clip = reader.read(0, {"motion", "audio_features"})
    denoiser = load_model(denoiser_folder).model
    turn = turn_of(clip, "a", name=f"{clip.key}/a")
    told = replace(turn, user_motion=np.ones_like(turn.user_motion), user_audio=np.ones_like(turn.user_audio))
    settings = RolloutSettings(steps=1)
    expected = roll_out(denoiser, [turn], settings)
    assert torch.equal(roll_out(denoiser, [told], settings), expected)
    assert not torch.equal(roll_out(denoiser, [replace(told, has_user=True)], settings), expected)
    found = ShardReader(train).read_rows(0, "a.teacher.npy", 0, train.samples[0].frames)
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["planned", "stream"])
def test_a_denoiser_trains_on_one_person_and_on_mixtures(reader, alone, latents, tmp_path):
    options = [*DENOISER, f"data/reader={reader}", "callbacks.previews.clips=1"]
    for name, root in (("alone", str(alone)), ("mixed", f"{{{latents}: 0.7, {alone}: 0.3}}")):
        losses = run_of(tmp_path / name, *options, f"data.root={root}")[-1]
        assert np.isfinite([losses["val/loss"], losses["val/loss_no_user"]]).all()


@pytest.mark.slow
def test_a_preference_is_learnt_where_there_is_a_user(both, denoiser_folder, tmp_path):
    source = {"_target_": "af.pipeline.losers.WeakUser", "steps": 1}
    make_losers(both, tmp_path / "losers", source, denoiser=denoiser_folder)
    options = ["experiment=preference_demo", "scheme=forcing", f"start={denoiser_folder}", "module.online=null"]
    found = run_of(tmp_path, *options, f"data.losers={tmp_path / 'losers'}", f"data.root={both}")
    assert np.isfinite([found[-1]["val/loss"], found[-1]["val/preference/loss"]]).all()


@pytest.mark.slow
def test_an_autoencoder_trains_on_one_person_and_on_mixtures(dyads, tmp_path):
    raw = one_sided(dyads, tmp_path / "raw", mute=1)
    for name, root in (("alone", str(raw)), ("mixed", f"{{{dyads}: 1, {raw}: 1}}")):
        assert np.isfinite(run_of(tmp_path / name, *VAE, "data.cache_gb=0", f"data.root={root}")[-1]["psnr"])


def test_an_evaluation_of_one_person_is_refused_before_any_work(alone, latents, denoiser_folder):
    settings = CheckpointSettings(data=str(alone / "val"), linear_probe=str(latents / "train"))
    with pytest.raises(UserError, match="one person alone; this needs conversations"):
        require_settings(settings, "denoiser")


def test_a_source_of_losers_rolls_out_without_a_missing_user(windows, denoiser_folder):
    from af.training.preference import OnlineLosers

    denoiser = load_model(denoiser_folder).model
    make = OnlineLosers(WeakUser(steps=1, user=0.5))
    told = replace(windows, user_motion=torch.ones_like(windows.user_motion))
    first, second = (make(denoiser, denoiser, b, Draws(step_generator(0, 0), 3)) for b in (windows, told))
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])
