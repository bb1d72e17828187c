"""A hub folder is read whole and unchanged, or not at all."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file

from af import Avatar
from af.clock import SAMPLE_RATE, frames_to_samples
from af.errors import UserError
from af.files import sha256_of, write_json
from af.forcing.guidance import Guidance
from af.models.artifact import read_description
from af.pipeline.sampling import usual_sampling
from af.serve.ship import shipped
from af.share.folder import MODEL_FILES, verify, write_folder
from tests.share.conftest import save_models
from tests.toy_avatar import recording

WAV2VEC2 = "af.models.speech.Wav2Vec2Features"


@pytest.fixture
def folder(models, tmp_path):
    write_folder(tmp_path / "hub", *models)
    return tmp_path / "hub"


@pytest.fixture
def no_memory(monkeypatch):
    """No weights are read."""
    monkeypatch.setattr("af.models.artifact.load_file", lambda *_: pytest.fail("weights were read"))


def shown(avatar: Avatar) -> np.ndarray:
    given = recording()
    identity, reference = avatar.identity(given["user_frames"][0])
    voice = given["avatar_audio"][: frames_to_samples(10)]
    noise = torch.Generator().manual_seed(0)
    return np.stack(
        list(avatar.frames(identity, avatar.motion(reference, 10, avatar_audio=voice, generator=noise, steps=2)))
    )


def again(folder, name, change) -> None:
    """Change the JSON of a file, and its hash and size in avatar.json, as whoever makes a malicious folder would."""
    data = json.loads((folder / name).read_text())
    change(data)
    write_json(folder / name, data)
    manifest = json.loads((folder / "avatar.json").read_text())
    manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    write_json(folder / "avatar.json", manifest)


def test_a_model_may_say_how_it_is_sampled(models, tmp_path):
    """So the avatar of the package says it, and whoever loads its folders samples it so."""
    said = dict(usual_sampling(read_description(shipped() / "denoiser")))
    assert (said["guidance"], said["dead_band"]) == (Guidance(audio=0.7, user=0, joint=1), 0.05)
    assert Avatar.load(shipped() / "autoencoder", shipped() / "denoiser").sampling == said
    write_folder(tmp_path / "hub", shipped() / "autoencoder", shipped() / "denoiser")
    assert verify(tmp_path / "hub").sampling == said
    assert usual_sampling(read_description(shipped() / "student"))["steps"] == 1
    for wrong in ({}, [], {**said, "steps": 0}):
        with pytest.raises(UserError, match="sampling cannot be used"):
            usual_sampling({"sampling": wrong})


def test_out_and_in_again_it_shows_the_same_bits(models, tmp_path):
    avatar = Avatar.load(*models)
    avatar.save_pretrained(tmp_path / "a")
    first = Avatar.from_pretrained(tmp_path / "a")
    first.save_pretrained(tmp_path / "b")
    second = Avatar.from_pretrained(str(tmp_path / "b"))
    np.testing.assert_array_equal(shown(avatar), shown(second))
    for name in ("avatar.json", "README.md", *MODEL_FILES):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert verify(tmp_path / "a").sampling["guidance"] == Guidance()


def test_a_denoiser_in_a_hub_folder_is_sampled_as_the_folder_says(models, tmp_path):
    """Verbs take `denoiser/` as a model folder: the numbers of the card are of this sampling, and no other."""
    write_folder(tmp_path / "hub", *models, {"steps": 3, "guidance": Guidance(1.5, 0), "dead_band": 0.1})
    said = verify(tmp_path / "hub").sampling
    assert (said["steps"], said["guidance"], said["dead_band"]) == (3, Guidance(1.5, 0), 0.1)
    assert usual_sampling(read_description(tmp_path / "hub" / "denoiser")) == said


def test_places_of_this_machine_stay_here(folder):
    said = "".join((folder / part / "model.json").read_text() for part in ("autoencoder", "denoiser"))
    assert "/home/ann" not in said
    assert read_description(folder / "denoiser")["recipe"]["command"] == ["train", "experiment=x", "seed=3"]


@pytest.mark.parametrize(
    ("what", "usual", "other", "unnamed"),
    [("solver", "midpoint", "heun", "euler"), ("schedule", "fine_end", "released", "uniform")],
)
def test_solver_and_schedule_are_kept_and_unnamed_ones_are_those_of_before(
    models, tmp_path, what, usual, other, unnamed
):
    assert Avatar.load(*models).sampling[what] == usual
    write_folder(tmp_path / "hub", *models, {"steps": 2, "guidance": Guidance()})
    assert Avatar.from_pretrained(tmp_path / "hub").sampling[what] == unnamed
    manifest = json.loads((tmp_path / "hub/avatar.json").read_text())
    for named in (other, None):
        manifest["sampling"][what] = named
        if named is None:  # as earlier versions wrote it
            del manifest["sampling"][what]
        write_json(tmp_path / "hub/avatar.json", manifest)
        assert Avatar.from_pretrained(tmp_path / "hub").sampling[what] == (named or unnamed)


def test_students_are_sampled_in_one_pass(tmp_path):
    write_folder(tmp_path / "hub", *save_models(tmp_path, stage="distill"))
    assert Avatar.from_pretrained(tmp_path / "hub").sampling["steps"] == 1


@pytest.mark.parametrize("name", MODEL_FILES)
def test_changed_cut_longer_and_missing_files_are_one_clear_error(folder, no_memory, name):
    whole = (folder / name).read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content, what in (
        (changed, "was changed"),
        (whole[:-1], "cut off"),
        (whole + b"0", "another file"),
        (None, "is missing"),
    ):
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=what) as error:
            Avatar.from_pretrained(folder)
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m.update(format=9), "format 9"),
        (lambda m: m["files"].update({"denoiser/pytorch_model.bin": m["files"][MODEL_FILES[0]]}), "pytorch_model.bin"),
        (lambda m: m["files"].update({"../model.json": m["files"][MODEL_FILES[0]]}), "no part of a hub folder"),
        (lambda m: m["files"].pop(MODEL_FILES[1]), f"does not list {MODEL_FILES[1]}"),
        (lambda m: m["files"][MODEL_FILES[1]].update(bytes="many"), "size or SHA-256"),
        (lambda m: m["files"][MODEL_FILES[1]].update(sha256=7), "avatar.json cannot be used"),
        (lambda m: m["sampling"].update(steps=10**9), "sampling.steps"),
        (lambda m: m["sampling"].update(solver="shell"), "euler, heun, midpoint"),
        (lambda m: m["sampling"].update(schedule="shell"), "uniform, fine_end, released, pyramid"),
        (lambda m: m["sampling"]["guidance"].update(shell="rm"), "shell"),
        (lambda m: m["sampling"]["guidance"].update(audio="2"), "guidance.audio must be a number"),
        (lambda m: m["sampling"]["anchor"].update(sink_frames=10**9), "sampling.anchor.sink_frames"),
        (lambda m: m.update(padding="x" * 2**20), "too many"),
    ],
)
def test_a_list_that_is_none_is_refused(folder, no_memory, change, what):
    manifest = json.loads((folder / "avatar.json").read_text())
    change(manifest)
    write_json(folder / "avatar.json", manifest)
    with pytest.raises(UserError, match=what):
        Avatar.from_pretrained(folder)


@pytest.mark.parametrize(
    ("part", "change", "what"),
    [
        ("denoiser", lambda d: d["model"].update(hidden=2**20, heads=2**10), "larger than|does not fit"),
        (
            "autoencoder",
            lambda d: d["model"].update(channel_base=2**20, max_channels=2**14),
            "larger than|does not fit",
        ),
        ("denoiser", lambda d: d["features"].update(_target_="os.system"), "not a class"),
        ("denoiser", lambda d: d["features"].update(checkpoint="somebody/pickles"), "not in the folder"),
        ("denoiser", lambda d: d["features"].update(_target_=WAV2VEC2), "not in the folder"),
        (
            "denoiser",
            lambda d: d["features"].update(dim={"_target_": WAV2VEC2, "checkpoint": "a/b"}),
            "not in the folder",
        ),
        ("autoencoder", lambda d: d["model"].update(directions={"_target_": WAV2VEC2}), "not in the folder"),
        ("denoiser", lambda d: d["features"].update(checkpoint="../features"), "not in the folder"),
    ],
)
def test_consistent_lies_are_found_before_memory_is_taken(folder, monkeypatch, part, change, what):
    again(folder, f"{part}/model.json", change)
    weights = load_file
    monkeypatch.setattr("af.models.artifact.load_file", lambda p: pytest.fail("read") if part in str(p) else weights(p))
    with pytest.raises(UserError, match=what):
        Avatar.from_pretrained(folder)


@pytest.mark.slow  # imports transformers
def test_the_features_weights_lie_in_the_folder(tmp_path):
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    from af.models.speech import Wav2Vec2Features

    sizes = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    config = Wav2Vec2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, **sizes)
    torch.manual_seed(0)
    Wav2Vec2Model(config).save_pretrained(tmp_path / "net")
    how = {"checkpoint": str(tmp_path / "net"), "block_frames": 5, "window_frames": 20}
    features = Wav2Vec2Features(**how)
    described = {"_target_": "af.models.speech.Wav2Vec2Features", **how}
    models = save_models(tmp_path, features=described, feature_spec=features.spec.to_json())
    before = shown(Avatar.load(*models))
    write_folder(tmp_path / "hub", *models)
    shutil.rmtree(tmp_path / "net")
    np.testing.assert_array_equal(shown(Avatar.from_pretrained(tmp_path / "hub")), before)
    Avatar.load(tmp_path / "hub" / "autoencoder", tmp_path / "hub" / "denoiser")  # as the command line reads it
    again(tmp_path / "hub", "features/config.json", lambda c: c.update(hidden_size=2**16, intermediate_size=2**16))
    with pytest.raises(UserError, match=r"features/config\.json describes a model that is larger"):
        Avatar.from_pretrained(tmp_path / "hub")


def test_a_folder_with_other_things_in_it_is_left_alone(models, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        write_folder(tmp_path, *models)
    with pytest.raises(UserError, match=r"no hub folder: avatar\.json is missing"):
        Avatar.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="no such folder, and no name on a hub"):
        Avatar.from_pretrained(tmp_path / "nowhere")


def test_one_line_generates_and_one_talks(models, tmp_path):
    """A live session gives the frames of `motion`, sampled as the folder says."""
    avatar = Avatar.load(*models)
    given = recording()
    live = avatar.live(given["user_frames"][0], generator=torch.Generator().manual_seed(0), steps=2)
    frames = live.push(**given) + live.finish()
    assert len(frames) == len(given["user_frames"])
    assert frames[0].shape == (16, 16, 3)
    Image.fromarray(given["user_frames"][0]).resize((64, 64)).save(tmp_path / "face.png")
    soundfile.write(tmp_path / "voice.wav", given["avatar_audio"], SAMPLE_RATE)
    made = avatar.generate(
        tmp_path / "face.png", str(tmp_path / "a.mp4"), avatar_audio=tmp_path / "voice.wav", find_face=False, steps=1
    )
    assert made == len(given["user_frames"])
    assert (tmp_path / "a.mp4").stat().st_size > 0
