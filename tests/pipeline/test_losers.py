from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from af.cli.main import main
from af.data.index import Index
from af.data.plan import fixed_windows
from af.data.shards import ShardReader
from af.data.windows import WindowDataset
from af.errors import UserError
from af.evaluation.settings import CheckpointSettings
from af.models.artifact import load_as
from af.models.denoiser import MotionDenoiser
from af.pipeline import losers as losers_module
from af.pipeline.losers import FromFiles, OtherUser, WeakUser, make_losers
from af.training.preference import OnlineLosers
from af.training.randomness import Draws, step_generator
from tests.conftest import DROP_USER


@pytest.fixture(scope="module")
def attentive_folder(tmp_path_factory, denoiser_folder):
    """The untrained denoiser with larger weights: what it is told shows in what it does."""
    from af.models.artifact import load_model, save_model

    loaded = load_model(denoiser_folder)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(4)
    folder = tmp_path_factory.mktemp("attentive")
    info = {k: v for k, v in loaded.info.items() if k not in ("format", "model", "sha256")}
    save_model(folder, loaded.model, loaded.info["model"], info)
    return folder


@pytest.fixture
def exact(monkeypatch):
    """Roll-outs in fp64: what fp32 rounds, a roll-out of large weights makes as large as it likes."""
    original = losers_module.cached_denoiser

    def double(*place):
        denoiser, artifact = original(*place)
        return copy.deepcopy(denoiser).double(), artifact

    monkeypatch.setattr(losers_module, "cached_denoiser", double)


def motions(folder, split="train"):
    reader = ShardReader(folder / split)
    return {
        (e.key, role): reader.read_rows(i, f"{role}.motion.npy", 0, e.frames)
        for i, e in enumerate(reader.index.samples)
        for role in "ab"
    }


def source(name, **settings):
    return {"_target_": f"af.pipeline.losers.{name}", **settings}


def make(latents, out, denoiser_folder, name="WeakUser", *, settings=None, **job):
    described = source(name, steps=2, **(settings or {}))
    make_losers(latents, out, described, denoiser=denoiser_folder, splits=("train",), **job)
    return motions(out)


def test_every_sample_has_a_loser_that_says_how_it_was_made(latents, losers, denoiser_folder):
    for split in ("train", "val"):
        data, made = Index.load(latents / split), Index.load(losers / split)
        assert [(s.key, s.frames) for s in data.samples] == [(s.key, s.frames) for s in made.samples]
        assert made.specs["motion"] == data.specs["motion"]
    provenance = ShardReader(losers / "train").read_meta(0).extra["loser"]
    assert provenance["_target_"] == DROP_USER["_target_"]
    assert provenance["model"] == str(denoiser_folder)
    made_with = json.loads((losers / "losers.json").read_text())
    assert made_with["model"] == json.loads((denoiser_folder / "model.json").read_text())["sha256"]


def test_sources_differ_and_a_seed_repeats(latents, attentive_folder, tmp_path, exact):
    dropped = make(latents, tmp_path / "once", attentive_folder)
    again = make(latents, tmp_path / "again", attentive_folder, batch=2)
    weak = make(latents, tmp_path / "weak", attentive_folder, settings={"user": 0.5})
    shuffled = make(latents, tmp_path / "shuffled", attentive_folder, "OtherUser")
    other = make(latents, tmp_path / "other", attentive_folder, seed=1)
    for turn, motion in dropped.items():
        # whatever it is batched with; files are in fp32
        np.testing.assert_allclose(again[turn], motion, rtol=2 * np.finfo(np.float32).eps, atol=1e-9)
        for different in (weak, shuffled, other):
            assert np.abs(different[turn] - motion).max() > 1e-4


def test_the_user_of_a_shuffled_loser_is_somebody_else(latents, denoiser_folder, tmp_path):
    make(latents, tmp_path, denoiser_folder, "OtherUser")
    reader = ShardReader(tmp_path / "train")
    for i, entry in enumerate(reader.index.samples):
        users = reader.read_meta(i).extra["loser"]["user_of"]
        assert entry.key not in users.values()


def test_a_loser_without_the_user_does_not_depend_on_the_user(latents, attentive_folder, tmp_path, exact):
    """Shards whose users are others, the avatars the same, give the same losers."""
    from af.data.index import build_index
    from af.data.shards import write_shard

    reader = ShardReader(latents / "train")

    def samples():
        for i, entry in enumerate(reader.index.samples):
            members = {name: reader.read_bytes(i, name) for name in entry.members if name != "json"}
            for part in ("motion.npy", "audio.npy"):
                rows = reader.read_rows(i, f"a.{part}", 0, entry.frames)
                members[f"a.{part}"] = np.ascontiguousarray(rows[::-1])
            yield entry.key, reader.read_meta(i), members

    write_shard(tmp_path / "data" / "train" / "000000.tar", samples())
    build_index(tmp_path / "data" / "train")
    found = make(tmp_path / "data", tmp_path / "out", attentive_folder)
    before = make(latents, tmp_path / "before", attentive_folder)
    for (key, role), motion in found.items():
        if role == "b":
            np.testing.assert_allclose(motion, before[key, role], rtol=2 * np.finfo(np.float32).eps, atol=1e-9)


def test_a_stopped_job_goes_on_and_other_settings_are_refused(latents, denoiser_folder, tmp_path):
    arguments = ["losers", "--data", str(latents), "--denoiser", str(denoiser_folder), "--out", str(tmp_path)]
    assert main([*arguments, "losers.steps=2"]) == 0
    shards = sorted(tmp_path.glob("*/*.tar"))
    content, kept = shards[0].read_bytes(), shards[1].stat().st_mtime_ns
    shards[0].unlink()
    assert main([*arguments, "losers.steps=2"]) == 0
    assert shards[0].read_bytes() == content
    assert shards[1].stat().st_mtime_ns == kept
    assert main([*arguments, "losers.steps=3"]) == 1


def test_arrays_from_a_folder(latents, losers, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    for (key, role), motion in motions(losers).items():
        np.save(files / f"{key}.{role}.npy", motion)
    arguments = ["losers", "--data", str(latents), "--splits", "train", "losers=file", f"losers.folder={files}"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    found = motions(tmp_path / "out")
    assert all(found[turn].tobytes() == motion.tobytes() for turn, motion in motions(losers).items())
    (key, role), motion = next(iter(found.items()))
    np.save(files / f"{key}.{role}.npy", motion + 1)  # another array is another loser
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert motions(tmp_path / "out")[key, role].tobytes() == (motion + 1).tobytes()
    bad = files / f"{key}.{role}.npy"
    for values in (np.full_like(motion, np.nan), motion * 1e30, motion[:-1], np.array(["a"]), None):
        bad.write_bytes(b"cut") if values is None else np.save(bad, values)
        with pytest.raises(UserError, match=bad.name):
            make_losers(latents, tmp_path / "half", source("FromFiles", folder=str(files)), splits=["train"])
    bad.unlink()
    assert main([*arguments, "--out", str(tmp_path / "half")]) == 1


@pytest.mark.parametrize(("cls", "user"), [(WeakUser, 1.0), (WeakUser, -0.1), (OtherUser, 0.0)])
def test_scales_that_make_no_sense_are_refused(cls, user):
    with pytest.raises(ValueError, match=r"losers\.user"):
        cls(user=user)


def test_a_source_without_its_denoiser_says_so(latents, tmp_path):
    with pytest.raises(UserError, match="--denoiser"):
        make_losers(latents, tmp_path, DROP_USER)


def window(latents, count=3):
    dataset = WindowDataset(latents / "train", frames=20)
    items = fixed_windows(dataset.reader.index, frames=20, block=5)
    return dataset.collate([dataset[item] for item in items[:: len(items) // count][:count]])


def test_one_source_serves_shards_and_batches(latents, attentive_folder):
    """On line, another window's user changes the motion, and a scale of 0 is deaf and blind to whose it is."""
    denoiser, batch = load_as(attentive_folder, MotionDenoiser)[0], window(latents)

    def motion(source, batch=batch, by="reference"):
        return OnlineLosers(source, by=by)(denoiser, denoiser, batch, Draws(step_generator(0, 0), len(batch.valid)))

    moved = replace(batch, user_audio=batch.user_audio.roll(1, 0), user_motion=batch.user_motion.roll(1, 0))
    assert motion(OtherUser(steps=2)).equal(motion(WeakUserAtOne(steps=2), moved))
    assert motion(WeakUser(steps=2)).equal(motion(WeakUser(steps=2), moved))
    assert not motion(WeakUser(steps=2, user=0.5)).equal(motion(WeakUser(steps=2, user=0.5), moved))
    with pytest.raises(UserError, match="batch_size"):
        motion(OtherUser(), window(latents, 1))
    with pytest.raises(UserError, match="whole clips"):
        motion(FromFiles("nowhere"))


class WeakUserAtOne(OtherUser):
    other_users = False


def test_a_talking_model_is_another_one_and_made_again_when_it_changes(
    latents, attentive_folder, denoiser_folder, tmp_path
):
    place = shutil.copytree(denoiser_folder, tmp_path / "talking")
    talking = {"model": str(place)}
    found = make(latents, tmp_path / "out", attentive_folder, "Talking", settings=talking)
    plain = make(latents, tmp_path / "plain", denoiser_folder)
    assert all(np.abs(found[turn] - motion).max() < 1e-5 for turn, motion in plain.items())
    shutil.copytree(attentive_folder, place, dirs_exist_ok=True)
    again = make(latents, tmp_path / "out", attentive_folder, "Talking", settings=talking)
    assert all(np.abs(again[turn] - motion).max() > 1e-4 for turn, motion in plain.items())


@pytest.mark.parametrize("source", [WeakUser, OtherUser, CheckpointSettings])
def test_unknown_solvers_are_named_before_any_work(source):
    with pytest.raises(UserError, match=r"solver 'rk4'; allowed: euler, heun, midpoint"):
        source(solver="rk4")
    with pytest.raises(UserError, match=r"schedule 'cosine'; allowed: uniform, fine_end"):
        source(schedule="cosine")
