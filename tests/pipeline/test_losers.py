from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from af.cli.main import main
from af.data.index import Index
from af.data.shards import ShardReader
from af.errors import UserError
from af.pipeline import losers as losers_module
from af.pipeline.losers import LoserSettings, make_losers


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
    original = losers_module._denoiser

    def double(*place):
        denoiser, artifact = original(*place)
        return copy.deepcopy(denoiser).double(), artifact

    monkeypatch.setattr(losers_module, "_denoiser", double)


def motions(folder, split="train"):
    reader = ShardReader(folder / split)
    return {
        (e.key, role): reader.read_rows(i, f"{role}.motion.npy", 0, e.frames)
        for i, e in enumerate(reader.index.samples)
        for role in "ab"
    }


def make(latents, out, denoiser_folder, source, **settings):
    make_losers(latents, out, denoiser_folder, LoserSettings(source, steps=2, **settings), splits=("train",))
    return motions(out)


def test_every_sample_has_a_loser_that_says_how_it_was_made(latents, losers, denoiser_folder):
    for split in ("train", "val"):
        data, made = Index.load(latents / split), Index.load(losers / split)
        assert [(s.key, s.frames) for s in data.samples] == [(s.key, s.frames) for s in made.samples]
        assert made.specs["motion"] == data.specs["motion"]
    provenance = ShardReader(losers / "train").read_meta(0).extra["loser"]
    assert provenance["source"] == "drop_user"
    assert provenance["model"] == str(denoiser_folder)
    made_with = json.loads((losers / "losers.json").read_text())
    assert made_with["model"] == json.loads((denoiser_folder / "model.json").read_text())["sha256"]


def test_sources_differ_and_a_seed_repeats(latents, attentive_folder, tmp_path, exact):
    dropped = make(latents, tmp_path / "once", attentive_folder, "drop_user")
    again = make(latents, tmp_path / "again", attentive_folder, "drop_user", batch=2)
    weak = make(latents, tmp_path / "weak", attentive_folder, "weak", user=0.5)
    shuffled = make(latents, tmp_path / "shuffled", attentive_folder, "shuffled", user=1.0)
    other = make(latents, tmp_path / "other", attentive_folder, "drop_user", seed=1)
    for turn, motion in dropped.items():
        # whatever it is batched with; files are in fp32
        np.testing.assert_allclose(again[turn], motion, rtol=2 * np.finfo(np.float32).eps, atol=1e-9)
        for different in (weak, shuffled, other):
            assert np.abs(different[turn] - motion).max() > 1e-4


def test_the_user_of_a_shuffled_loser_is_somebody_else(latents, denoiser_folder, tmp_path):
    make(latents, tmp_path, denoiser_folder, "shuffled", user=1.0)
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
    found = make(tmp_path / "data", tmp_path / "out", attentive_folder, "drop_user")
    before = make(latents, tmp_path / "before", attentive_folder, "drop_user")
    for (key, role), motion in found.items():
        if role == "b":
            np.testing.assert_allclose(motion, before[key, role], rtol=2 * np.finfo(np.float32).eps, atol=1e-9)


def test_a_stopped_job_goes_on_and_other_settings_are_refused(latents, denoiser_folder, tmp_path):
    arguments = ["losers", "--data", str(latents), "--denoiser", str(denoiser_folder), "--out", str(tmp_path)]
    assert main([*arguments, "--steps", "2"]) == 0
    shards = sorted(tmp_path.glob("*/*.tar"))
    content, kept = shards[0].read_bytes(), shards[1].stat().st_mtime_ns
    shards[0].unlink()
    assert main([*arguments, "--steps", "2"]) == 0
    assert shards[0].read_bytes() == content
    assert shards[1].stat().st_mtime_ns == kept
    assert main([*arguments, "--steps", "3"]) == 1


def test_arrays_from_a_folder(latents, losers, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    for (key, role), motion in motions(losers).items():
        np.save(files / f"{key}.{role}.npy", motion)
    arguments = ["losers", "--data", str(latents), "--source", "file", "--splits", "train"]
    assert main([*arguments, "--files", str(files), "--out", str(tmp_path / "out")]) == 0
    found = motions(tmp_path / "out")
    assert all(found[turn].tobytes() == motion.tobytes() for turn, motion in motions(losers).items())
    (key, role), motion = next(iter(found.items()))
    np.save(files / f"{key}.{role}.npy", motion + 1)  # another array is another loser
    assert main([*arguments, "--files", str(files), "--out", str(tmp_path / "out")]) == 0
    assert motions(tmp_path / "out")[key, role].tobytes() == (motion + 1).tobytes()
    bad = files / f"{key}.{role}.npy"
    for values in (np.full_like(motion, np.nan), motion * 1e30, motion[:-1], np.array(["a"]), None):
        bad.write_bytes(b"cut") if values is None else np.save(bad, values)
        with pytest.raises(UserError, match=bad.name):
            make_losers(latents, tmp_path / "half", files, LoserSettings("file"), splits=["train"])
    bad.unlink()
    assert main([*arguments, "--files", str(files), "--out", str(tmp_path / "half")]) == 1


@pytest.mark.parametrize(
    ("source", "user"), [("weak", 0.0), ("weak", 1.0), ("shuffled", 0.0), ("drop_user", 0.5), ("best", 0.0)]
)
def test_settings_that_make_no_sense_are_refused(source, user):
    with pytest.raises(UserError):
        LoserSettings(source, user=user)
