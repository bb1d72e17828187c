"""`experiment=vae_light`: the decoder alone changes, towards the full one's images; motion and denoisers stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from af import Avatar
from af.cli.main import main
from af.errors import UserError
from af.models.artifact import load_as, load_model
from af.models.autoencoder import MotionAutoencoder
from af.models.decoder import LightDecoder
from af.training.light import lightened

PLAIN = ["data.workers=0", "trainer.precision=32-true", "checkpoints.every_n_steps=3", "logger=none", "light=64"]
LIGHT = ["experiment=vae_light", *PLAIN, "data.batch_size=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, dyads, autoencoder_folder) -> Path:
    folder = tmp_path_factory.mktemp("light") / "run"
    words = [*LIGHT, f"start={autoencoder_folder}", f"data.root={dyads}", f"run={folder}"]
    assert (
        main(["train", *words, "trainer.max_steps=6", "trainer.val_check_interval=3", "scheduler.warmup_steps=0"]) == 0
    )
    return folder


def test_only_the_decoder_changes_and_latents_and_denoisers_stay(run, autoencoder_folder, denoiser_folder):
    full, light = load_model(autoencoder_folder), load_model(run / "export")
    assert isinstance(light.model.decoder, LightDecoder)
    before, after = full.model.state_dict(), light.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if not name.startswith("decoder."))
    start = lightened(autoencoder_folder, 64).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in after.items())
    assert light.latents == full.latents
    Avatar.load(run / "export", denoiser_folder)  # which was trained on the full one's latents


def test_checkpoints_hold_no_teacher(run):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [name for name in saved["state_dict"] if "teacher" in name]
    assert all(name.startswith("decoder.") for name in saved["callbacks"]["Ema"]["average"])


def test_it_learns_the_images_of_the_full_decoder(autoencoder_folder, dyads, tmp_path):
    words = [*LIGHT, f"start={autoencoder_folder}", f"data.root={dyads}", f"run={tmp_path}", "ema_decay=0.9"]
    assert main(["train", *words, "trainer.max_steps=80", "trainer.val_check_interval=80"]) == 0
    full, _ = load_as(autoencoder_folder, MotionAutoencoder)
    light, _ = load_as(tmp_path / "export", MotionAutoencoder)
    images = torch.rand(4, 3, full.image_size, full.image_size) * 2 - 1
    with torch.no_grad():
        target = full(images).image
        before = (lightened(autoencoder_folder, 64)(images).image - target).abs().mean()
        after = (light(images).image - target).abs().mean()
    assert after < 0.7 * before


def test_a_light_one_is_no_teacher(run):
    with pytest.raises(UserError, match="has a light decoder already"):
        lightened(run / "export", 64)
