"""The avatar that comes with the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from af.clock import frames_to_samples
from af.data.audio import read_audio
from af.errors import UserError
from af.ingest.crops import read_portrait
from af.models.artifact import load_model
from af.models.tracker import load_tracker
from af.pipeline.avatar import Avatar
from af.pipeline.sampling import ONE_PASS
from af.serve import ship
from af.synth.face import FACE_INDEX

FRAMES = 30


@pytest.mark.parametrize(("denoiser", "sampling"), [(ship.DENOISER, {"steps": 2}), (ship.STUDENT, ONE_PASS)])
def test_the_shipped_avatar_speaks_when_it_has_a_voice_and_listens_with_closed_lips(denoiser, sampling) -> None:
    folder = ship.shipped()
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= ship.LARGEST
    assert {file.name for file in folder.iterdir()} >= {"README.md", ship.PORTRAIT, ship.VOICE}
    avatar = Avatar.load(folder / ship.AUTOENCODER, folder / denoiser)
    assert {weight.dtype for weight in avatar.denoiser.parameters()} == {torch.float32}
    face = read_portrait(folder / ship.PORTRAIT, avatar.autoencoder.image_size, find_face=False)
    identity, reference = avatar.identity(face)
    voice = read_audio(folder / ship.VOICE)[: frames_to_samples(FRAMES)]
    moved = []
    for said in (voice, np.zeros_like(voice)):
        heard = {"avatar_audio": said, "user_audio": np.zeros_like(voice)}
        motion = avatar.motion(reference, FRAMES, **heard, **sampling, generator=torch.Generator().manual_seed(0))
        faces = load_tracker().track(np.stack(list(avatar.frames(identity, motion))))
        moved.append(faces[:, FACE_INDEX["mouth_open"]].std())
    assert moved[0] > 0.1
    assert moved[1] < 0.25 * moved[0]


def test_an_avatar_is_shipped_in_half_precision(autoencoder_folder, denoiser_folder, tmp_path, monkeypatch) -> None:
    ship.ship(autoencoder_folder, denoiser_folder, denoiser_folder, tmp_path / "small")
    avatar = Avatar.load(tmp_path / "small" / ship.AUTOENCODER, tmp_path / "small" / ship.DENOISER)
    whole = load_model(denoiser_folder).model.state_dict()
    for name, value in avatar.denoiser.state_dict().items():
        assert value.dtype == whole[name].dtype
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-6)
    Avatar.load(tmp_path / "small" / ship.AUTOENCODER, tmp_path / "small" / ship.STUDENT)
    assert read_audio(tmp_path / "small" / ship.VOICE).any()
    monkeypatch.setattr(ship, "LARGEST", 1000)
    with pytest.raises(UserError, match="may be shipped"):
        ship.ship(autoencoder_folder, denoiser_folder, denoiser_folder, tmp_path / "large")
