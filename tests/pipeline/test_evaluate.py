from __future__ import annotations

import json

import numpy as np
import pytest

from af.cli.main import main
from af.data.index import Index
from af.pipeline.avatar import Avatar
from af.pipeline.evaluate import RolloutSettings, clip_noise, evaluate_reconstruction, evaluate_split
from af.types import FaceSpec

FACE = FaceSpec(("brightness", "contrast"), 1, "test/1")


def tracker(frames: np.ndarray) -> np.ndarray:
    return np.stack([frames.mean((1, 2, 3)), frames.std((1, 2, 3))], 1).astype(np.float32)


@pytest.fixture(scope="module")
def avatar(autoencoder_folder, denoiser_folder) -> Avatar:
    return Avatar.load(autoencoder_folder, denoiser_folder)


def run(avatar, latents, out, **settings):
    return evaluate_split(
        avatar,
        Index.load(latents / "test"),
        tracker,
        FACE,
        out,
        settings=RolloutSettings(steps=2, **settings),
        videos=1,
    )


def test_a_clip_does_not_depend_on_its_company(avatar, latents, tmp_path):
    alone, together = run(avatar, latents, tmp_path / "a", batch=1), run(avatar, latents, tmp_path / "b", batch=2)
    assert [c.name for c in alone] == [c.name for c in together]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.generated, other.generated, atol=0.6)  # a grey level of 8-bit frames
        assert one.phrase_ends is not None


def test_a_stopped_evaluation_goes_on(avatar, latents, tmp_path):
    first = run(avatar, latents, tmp_path)
    kept = sorted((tmp_path / "clips").glob("*.npz"))
    times = [p.stat().st_mtime_ns for p in kept]
    kept[1].unlink()
    second = run(avatar, latents, tmp_path)
    assert kept[0].stat().st_mtime_ns == times[0]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one.generated, other.generated, atol=0.01)  # batched with other clips, or alone
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 1


def test_noise_belongs_to_the_clip_and_the_seed():
    assert clip_noise("a", 0, 5, 3).equal(clip_noise("a", 0, 5, 3))
    assert not clip_noise("a", 0, 5, 3).equal(clip_noise("b", 0, 5, 3))
    assert not clip_noise("a", 0, 5, 3).equal(clip_noise("a", 1, 5, 3))


def test_reconstruction_has_its_baseline(avatar, latents):
    found = evaluate_reconstruction(avatar.autoencoder, Index.load(latents / "test"))
    assert found.pairs == 16
    assert found.psnr_copy > found.psnr  # an untrained autoencoder is worse than showing the source


def test_the_command_writes_numbers_and_films(autoencoder_folder, denoiser_folder, latents, tmp_path):
    models = ["--autoencoder", str(autoencoder_folder), "--denoiser", str(denoiser_folder)]
    arguments = ["--data", str(latents / "test"), "--out", str(tmp_path), "--steps", "2", "--videos", "1"]
    assert main(["evaluate", *models, *arguments]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["psnr/null"] > 0
    assert "react/smile" in metrics
    assert (tmp_path / "metrics.md").read_text().startswith("#")
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_every_subset_of_the_signals_in_one_table(autoencoder_folder, denoiser_folder, latents, tmp_path):
    models = ["--autoencoder", str(autoencoder_folder), "--denoiser", str(denoiser_folder), "--steps", "1"]
    arguments = ["evaluate", *models, "--data", str(latents / "test"), "--out", str(tmp_path), "--videos", "0"]
    assert main([*arguments, "--conditions", "all", "--limit", "2"]) == 0
    table = json.loads((tmp_path / "conditions" / "table.json").read_text())["table"]
    names = {record["setting"] for record in table}
    assert len(names) == 8
    assert {"avatar_audio+user_audio+user_motion", "avatar_audio", "none"} < names
    assert (tmp_path / "conditions" / "table.md").read_text().count("\n| ") >= 10
    assert main([*arguments, "--conditions", "avatar_audio+smell"]) == 1


def test_signals_that_are_left_out_do_not_matter(avatar, latents):
    from dataclasses import replace

    from af.data.shards import ShardReader
    from af.pipeline.evaluate import FIELDS, _roll_out

    reader = ShardReader(latents / "test")
    clips = [reader.read(i, FIELDS) for i in range(2)]
    strangers = [replace(clip, a=other.a) for clip, other in zip(clips, reversed(clips), strict=True)]
    alone = RolloutSettings(steps=2, signals=("avatar_audio",))
    assert _roll_out(clips, avatar, "b", alone).equal(_roll_out(strangers, avatar, "b", alone))


def test_kept_clips_of_other_settings_are_refused(autoencoder_folder, denoiser_folder, latents, tmp_path, capsys):
    models = ["--autoencoder", str(autoencoder_folder), "--denoiser", str(denoiser_folder), "--videos", "0"]
    arguments = ["evaluate", *models, "--data", str(latents / "test"), "--out", str(tmp_path), "--limit", "1"]
    assert main([*arguments, "--steps", "1"]) == 0
    assert main([*arguments, "--steps", "2"]) == 1
    assert "steps" in capsys.readouterr().err
