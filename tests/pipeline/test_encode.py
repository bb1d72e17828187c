from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from af.cli.main import main
from af.data.index import Index, build_index
from af.data.shards import ShardReader, write_shard
from af.errors import UserError
from af.models.artifact import build, load_model, save_model
from af.models.autoencoder import MotionAutoencoder
from af.pipeline.encode import encode, read_statistics, video_motion, video_motion_pieces
from af.synth.build import SynthSettings
from af.synth.build import build as build_conversations
from af.synth.session import SessionConfig
from af.types import FaceSpec

from ..conftest import AUTOENCODER, FEATURES
from ..toy_shards import members, meta


def test_latents_and_features_are_those_of_the_models(dyads, latents, autoencoder_folder):
    model = load_model(autoencoder_folder).model
    features = build(FEATURES)
    raw, encoded = ShardReader(dyads / "val"), ShardReader(latents / "val")
    source, made = raw.read(0), encoded.read(0)
    np.testing.assert_allclose(made.a.motion, video_motion(model, source.a.video), atol=1e-6)
    expected = features(torch.from_numpy(source.b.audio)).numpy()
    np.testing.assert_array_equal(made.b.audio_features, expected)
    np.testing.assert_array_equal(made.a.face, source.a.face)
    assert made.meta["motion_spec"]["autoencoder"] == load_model(autoencoder_folder).digest


class Landmarker:
    """Reads the brightness of a frame, and no face in the second one."""

    face_spec = FaceSpec(("brightness", "yaw"), 1, "toy/1")

    def track(self, frames: np.ndarray) -> np.ndarray:
        rows = np.stack([frames.mean((1, 2, 3)), np.zeros(len(frames))], 1).astype(np.float32)
        rows[1] = np.nan
        return rows


def test_faces_are_measured_where_shards_have_none(dyads, latents, autoencoder_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("af.pipeline.encode.FaceLandmarker", Landmarker)
    bare = {name: data for name, data in members(0, 20, 32).items() if not name.endswith("face.npy")}
    write_shard(tmp_path / "toy" / "train" / "0.tar", [("0", meta(0, 20, 32, "train", face_spec=None), bare)])
    build_index(tmp_path / "toy" / "train")
    encode(tmp_path / "toy", tmp_path / "out", autoencoder_folder, FEATURES, faces=True)
    reader = ShardReader(tmp_path / "out" / "train")
    clip = reader.read(0, {"face", "video"})
    assert reader.read_meta(0).face_spec == Landmarker.face_spec
    expected = clip.b.video.mean((1, 2, 3))
    expected[1] = expected[[0, 2]].mean()
    np.testing.assert_allclose(clip.b.face[:, 0], expected, atol=1e-3)
    encode(dyads, tmp_path / "drawn", autoencoder_folder, FEATURES, faces=True)
    kept, before = (ShardReader(folder / "val").read(0, {"face"}) for folder in (tmp_path / "drawn", latents))
    np.testing.assert_array_equal(kept.a.face, before.a.face)  # those of the drawing stay


def test_a_stopped_job_goes_on_and_gives_the_same_bytes(dyads, latents, autoencoder_folder, tmp_path):
    shutil.copytree(latents, tmp_path / "out")
    lost = tmp_path / "out" / "test" / "000000.tar"
    before = lost.read_bytes()
    lost.unlink()
    encode(dyads, tmp_path / "out", autoencoder_folder, FEATURES)
    assert lost.read_bytes() == before


def test_what_changed_since_is_encoded_again(autoencoder_folder, tmp_path):
    def conversations(seed: int, out: Path) -> Path:
        session = SessionConfig(seconds=3)
        build_conversations(
            out, SynthSettings(train=2, val=0, test=0, size=32, seed=seed, session=session, sessions_per_shard=1)
        )
        return out / "train"

    source, other = conversations(0, tmp_path / "source"), conversations(1, tmp_path / "other")
    encode(tmp_path / "source", tmp_path / "out", autoencoder_folder, FEATURES)
    kept, remade = (tmp_path / "out" / "train" / f"00000{n}.tar" for n in (0, 1))
    times = kept.stat().st_mtime_ns, remade.stat().st_mtime_ns
    shutil.copy(other / "000001.tar", source / "000001.tar")
    build_index(source)
    encode(tmp_path / "source", tmp_path / "out", autoencoder_folder, FEATURES)
    assert kept.stat().st_mtime_ns == times[0]
    assert remade.stat().st_mtime_ns > times[1]
    encode(tmp_path / "source", tmp_path / "anew", autoencoder_folder, FEATURES)
    assert remade.read_bytes() == (tmp_path / "anew" / "train" / "000001.tar").read_bytes()


def test_other_settings_in_the_same_folder_are_refused(dyads, latents, autoencoder_folder, tmp_path):
    shutil.copytree(latents, tmp_path / "out")
    with pytest.raises(UserError, match=r"features\.mode: None there, utterance asked for"):
        encode(dyads, tmp_path / "out", autoencoder_folder, {**FEATURES, "mode": "utterance"})


def test_statistics_are_those_of_the_training_split(latents, autoencoder_folder):
    statistics = read_statistics(latents)
    reader = ShardReader(latents / "train")
    motions = [p.motion for i in range(len(reader)) for p in (reader.read(i).a, reader.read(i).b)]
    coefficients = np.concatenate(motions) @ statistics.basis.numpy()
    np.testing.assert_allclose(statistics.mean, coefficients.mean(0), atol=1e-4)
    np.testing.assert_allclose(statistics.std, coefficients.std(0), atol=1e-4)
    assert statistics.basis.shape == (AUTOENCODER["latent_dim"], AUTOENCODER["directions"])


def test_motion_of_a_video_does_not_depend_on_the_pieces(dyads, autoencoder_folder):
    model = load_model(autoencoder_folder).model
    frames = ShardReader(dyads / "val").read(0).a.video
    pieces = np.concatenate(list(video_motion_pieces(model, iter(frames), batch=7)))
    np.testing.assert_allclose(pieces, video_motion(model, frames), atol=1e-5)


def test_large_frames_are_encoded_a_few_at_a_time(monkeypatch):
    """At 512 px the activations of one frame take more than 100 MB."""
    model, sizes = MotionAutoencoder(512, 8, 2, channel_base=512, max_channels=8), []
    monkeypatch.setattr(model, "motion", lambda images, check: sizes.append(len(images)) or torch.zeros(len(images), 8))
    assert video_motion(model, np.zeros((10, 512, 512, 3), np.uint8)).shape == (10, 8)
    assert sizes == [4, 4, 2]


def test_a_folder_without_encoded_shards_is_named(dyads):
    with pytest.raises(UserError, match="af encode"):
        read_statistics(dyads)


def test_settings_are_recorded(latents):
    settings = json.loads((latents / "encoding.json").read_text())
    assert settings["features"] == FEATURES
    assert Index.load(latents / "train").specs["audio"]["block_frames"] == FEATURES["block_frames"]


def test_shards_of_something_else_are_not_written_over(dyads, latents, autoencoder_folder, denoiser_folder, tmp_path):
    """Also when they are the very ones to be read."""
    for command in (
        ["encode", "--data", tmp_path / "source", "--autoencoder", autoencoder_folder],
        ["losers", "--data", tmp_path / "source", "--denoiser", denoiser_folder, "losers=drop_user"],
    ):
        shutil.rmtree(tmp_path / "source", ignore_errors=True)
        shutil.copytree(dyads if command[0] == "encode" else latents, tmp_path / "source")
        before = {path: path.read_bytes() for path in (tmp_path / "source").rglob("*.tar")}
        for overwrite in ([], ["--overwrite"]):
            assert main([*map(str, command), "--out", str(tmp_path / "source"), *overwrite]) == 1
            assert {path: path.read_bytes() for path in (tmp_path / "source").rglob("*.tar")} == before


def test_what_cannot_be_encoded_is_refused_before_the_folder_is_taken(
    dyads, autoencoder_folder, denoiser_folder, tmp_path
):
    larger, blind = {**AUTOENCODER, "image_size": 64}, tmp_path / "blind"
    save_model(tmp_path / "larger", build(larger), larger, {})
    encode(dyads, blind, autoencoder_folder, FEATURES, keep_video=False)
    for source, model, message in (
        (dyads, denoiser_folder, "is a MotionDenoiser, not a motion autoencoder"),
        (dyads, tmp_path / "larger", "frames of 32 px, the autoencoder is for 64"),
        (blind, autoencoder_folder, "no video"),
    ):
        with pytest.raises(UserError, match=message):
            encode(source, tmp_path / "out", model, FEATURES)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fast", [False, True])
def test_auto_encodes_in_what_the_processor_is_fast_in(dyads, autoencoder_folder, tmp_path, monkeypatch, capsys, fast):
    monkeypatch.setattr("af.nn.precision._fast_bf16", lambda device: (fast, "as the test says"))
    encode(dyads, tmp_path / "auto", autoencoder_folder, FEATURES, precision="auto")
    name = "bf16" if fast else "fp32"
    assert f"precision: {name} (auto: as the test says)" in capsys.readouterr().out
    encode(dyads, tmp_path / name, autoencoder_folder, FEATURES, precision=name)
    assert motion(tmp_path / "auto") == motion(tmp_path / name)
    encode(dyads, tmp_path / "exact", autoencoder_folder, FEATURES)
    assert (motion(tmp_path / "auto") == motion(tmp_path / "exact")) == (not fast)
    assert json.loads((tmp_path / "auto" / "encoding.json").read_text())["bf16"] == fast


def motion(folder) -> bytes:
    return ShardReader(folder / "test").read_bytes(0, "a.motion.npy")
