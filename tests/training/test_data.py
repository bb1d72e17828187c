"""What the data modules give the stages, whatever the data's place."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from af.data.stores import StoreError
from af.models.speech import LogMel
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
