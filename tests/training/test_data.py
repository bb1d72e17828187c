"""What the data modules give the stages, whatever the data's place."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from types import SimpleNamespace

import pytest
import torch

from af.cli.main import main
from af.data.shards import ShardReader
from af.data.stores import StoreError
from af.errors import UserError
from af.models.speech import LogMel
from af.pipeline.encode import STATISTICS_NAME, read_statistics, write_statistics
from af.training.datamodule import PairData, WindowData
from tests.faulty_server import FaultyServer

FEATURES = {"window_frames": 20, "block_frames": 5}


@pytest.fixture
def store(dyads, latents, losers, tmp_path, monkeypatch):
    """A server of everything, and where it lies here."""
    for name, folder in (("dyads", dyads), ("latents", latents), ("losers", losers)):
        (tmp_path / "served").mkdir(exist_ok=True)
        (tmp_path / "served" / name).symlink_to(folder)
    monkeypatch.setenv("AF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AF_STORE_ATTEMPTS", "2")
    with FaultyServer(tmp_path / "served").running() as server:
        yield server


def tensors(data) -> list[torch.Tensor]:
    batches = [*itertools.islice(data.train_dataloader(), 3), *data.val_dataloader()]
    batches = [getattr(b, "batch", b) for b in batches]
    return [x for b in batches for x in dataclasses.astuple(b) if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("stage", ["vae", "denoiser", "preference"])
def test_a_url_gives_what_the_folder_gives(store, stage):
    def data(root: str):
        common = {"batch_size": 4, "workers": 0}
        if stage == "vae":
            return PairData(f"{root}/dyads", pairs_per_person=2, **common)
        more = {"losers": f"{root}/losers", "balance": 2.0} if stage == "preference" else {}
        return WindowData(f"{root}/latents", features=LogMel(**FEATURES), **FEATURES, **common, **more)

    found, expected = tensors(data(store.url)), tensors(data(str(store.folder)))
    assert len(found) == len(expected) > 4
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_a_validation_split_is_not_lost_to_an_outage(store):
    store.faults = lambda path, before: "503" if "/val/" in path else None
    with pytest.raises(StoreError, match=r"/latents/val/index\.json: could not be read"):
        WindowData(f"{store.url}/latents", features=LogMel(**FEATURES), **FEATURES)


def mixture(latents, tmp_path) -> dict[str, float]:
    """Two sets of the same latents: the second has another folder and its statistics shifted."""
    other = tmp_path / "other"
    shutil.copytree(latents, other)
    statistics = read_statistics(latents)
    moved = dataclasses.replace(statistics, mean=statistics.mean + 3 * statistics.std)
    write_statistics(other / STATISTICS_NAME, moved)
    return {str(latents): 0.75, str(other): 0.25}


def windows(root, seed: int = 0) -> WindowData:
    return WindowData(root, features=LogMel(**FEATURES), **FEATURES, batch_size=4, workers=0, seed=seed)


def test_a_mixture_goes_on_where_its_checkpoint_stopped(latents, tmp_path):
    root = mixture(latents, tmp_path)
    whole = list(itertools.islice(windows(root).train_dataloader(), 6))
    first = windows(root)
    first.trainer = SimpleNamespace(
        global_rank=0, world_size=1, overfit_batches=0, lightning_module=SimpleNamespace(batches_seen=2)
    )
    state = first.state_dict()
    later = windows(root)
    later.load_state_dict(state)
    for found, expected in zip(itertools.islice(later.train_dataloader(), 4), whole[2:], strict=True):
        assert torch.equal(found.avatar_motion, expected.avatar_motion)
    with pytest.raises(UserError, match=r"data\.root mixes .* by \[1\.0\], the checkpoint .* by \[0\.75, 0\.25\]"):
        windows(latents).load_state_dict(state)
    assert len(windows(root).validation_index.samples) == 2 * len(windows(latents).validation_index.samples)


def test_statistics_of_a_mixture_are_those_of_its_samples(latents, tmp_path):
    one = read_statistics(latents)
    pooled = windows(mixture(latents, tmp_path)).motion_statistics
    # three quarters at the mean, one at three standard deviations: a variance of 1 + 9 · 0.75 · 0.25
    torch.testing.assert_close(pooled.mean, one.mean + 0.75 * one.std)
    torch.testing.assert_close(pooled.std, one.std * 2.6875**0.5, rtol=1e-4, atol=1e-6)


def test_losers_of_a_mixture_are_refused(latents, losers, tmp_path):
    with pytest.raises(UserError, match=r"single data\.root"):
        WindowData(mixture(latents, tmp_path), features=LogMel(**FEATURES), **FEATURES, losers=losers)


def test_rearranged_shards_can_be_trained_on(latents, losers, tmp_path):
    new = {name: tmp_path / name for name in ("latents", "losers", "split")}
    for name, folder in (("latents", latents), ("losers", losers)):
        assert main(["shards", "reshard", str(folder), "--out", str(new[name]), "--shuffle", "1"]) == 0
    torch.testing.assert_close(read_statistics(new["latents"]).std, read_statistics(latents).std)
    data = WindowData(new["latents"], features=LogMel(**FEATURES), **FEATURES, workers=0, losers=new["losers"])
    assert next(iter(data.train_dataloader())).loser is not None
    fractions = ["--fractions", "0.4,0.3,0.3", "--rename"]
    assert main(["shards", "split", str(latents), "--out", str(new["split"]), *fractions]) == 0
    reader = ShardReader(new["split"] / "train")
    clips = [reader.read(i, {"motion"}) for i in range(len(reader))]
    rows = torch.cat([torch.from_numpy(person.motion) for clip in clips for person in (clip.a, clip.b)])
    found = windows(new["split"]).motion_statistics
    torch.testing.assert_close(found.mean, (rows @ found.basis).mean(0), rtol=1e-3, atol=1e-4)
