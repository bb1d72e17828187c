from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from af.cli.main import main
from af.data.index import Index, build_index
from af.data.schema import ClipMeta
from af.data.shards import ShardError, ShardReader, write_shard
from af.data.video import read_video
from af.errors import UserError
from af.evaluation.checkpoint import Subject
from af.evaluation.extractors import thumbnail
from af.evaluation.linear_probe import LinearProbe
from af.evaluation.manifest import read_manifest
from af.evaluation.measured import Measured
from af.evaluation.read_videos import Reader
from af.evaluation.reconstruction import likeness, reconstruction_rows
from af.evaluation.settings import CheckpointSettings, FilesSettings
from af.forcing.anchor import Anchor
from af.forcing.guidance import Guidance
from af.forcing.noise import clip_noise
from af.metrics import families
from af.models.artifact import load_model
from af.models.autoencoder import MotionAutoencoder
from af.models.tracker import load_tracker
from af.pipeline.rolling import RolloutSettings, roll_out, turn_of
from af.types import FaceSpec, MotionSpec

FIELDS = {"audio", "motion", "audio_features"}


class Brightness:
    """A tracker of two numbers."""

    face_spec = FaceSpec(("brightness", "contrast"), 1, "test/1")

    def track(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([frames.mean((1, 2, 3)), frames.std((1, 2, 3))], 1).astype(np.float32)


@pytest.fixture
def subject(autoencoder_folder, denoiser_folder, latents):
    def make(**settings) -> Subject:
        places = {"data": str(latents / "test"), "autoencoder": str(autoencoder_folder)}
        made = CheckpointSettings(**places, tracker=Brightness(), steps=2, videos=1, **settings)
        return Subject.load(denoiser_folder, made, torch.device("cpu"))

    return make


def measured(subject: Subject, out) -> list[Measured]:
    results = {}
    for group in subject.groups():
        results |= subject.measure(group, out)
    return [results[i] for i in sorted(results)]


def test_a_model_is_sampled_as_it_says_unless_something_else_is_asked_for(
    autoencoder_folder, denoiser_folder, latents, tmp_path
):
    """A student in one pass without being told, a denoiser with its own guidance, and both as asked."""
    about = json.loads((denoiser_folder / "model.json").read_text())
    own = {"steps": 5, "solver": "heun", "guidance": {"audio": 0.5, "user": 0.25, "joint": 1.0}, "dead_band": 0.2}
    said = {
        "student": {"stage": "distill"},
        "denoiser": {"sampling": {**own, "anchor": {"sink_frames": 3, "pull": 0.1}}},
    }

    def rollout(name: str, **asked) -> RolloutSettings:
        folder = tmp_path / name
        if not folder.is_dir():
            shutil.copytree(denoiser_folder, folder)
            (folder / "model.json").write_text(json.dumps({**about, **said[name]}))
        settings = CheckpointSettings(data=str(latents / "test"), autoencoder=str(autoencoder_folder), **asked)
        return Subject.load(folder, settings, torch.device("cpu")).rollout

    assert rollout("student") == RolloutSettings(1, "euler", "uniform", Guidance.conditional())
    assert rollout("student", steps=2).steps == 2
    found = rollout("denoiser")
    assert (found.steps, found.solver, found.schedule, found.dead_band) == (5, "heun", "uniform", 0.2)
    assert (found.guidance, found.anchor) == (Guidance(0.5, 0.25, 1), Anchor(3, 0.1))
    asked = rollout("denoiser", guidance_user=0, dead_band=0, anchor_sink=0, schedule="fine_end")
    assert (asked.guidance, asked.anchor) == (Guidance(0.5, 0, 1), Anchor(0, 0.1))
    assert asked == replace(found, schedule="fine_end", guidance=asked.guidance, anchor=asked.anchor, dead_band=0)
    assert rollout("denoiser", unguided=True).guidance == Guidance.conditional()


def test_a_clip_does_not_depend_on_its_company(subject, tmp_path):
    alone, together = measured(subject(batch=1), tmp_path / "a"), measured(subject(batch=2), tmp_path / "b")
    assert [c.clip.name for c in alone] == [c.clip.name for c in together]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.clip.generated, other.clip.generated, atol=0.6)  # a grey level of 8 bits
        assert one.clip.phrase_ends is not None


def test_a_stopped_evaluation_goes_on(subject, tmp_path):
    first = measured(subject(), tmp_path)
    kept = sorted((tmp_path / "clips").glob("*.npz"))
    times = [p.stat().st_mtime_ns for p in kept]
    kept[1].unlink()
    second = measured(subject(), tmp_path)
    assert kept[0].stat().st_mtime_ns == times[0]
    for one, other in zip(first, second, strict=True):
        # batched with other clips, or alone
        np.testing.assert_allclose(one.clip.generated, other.clip.generated, atol=0.01)
        assert one.clip.avatar_audio is not None
        assert np.array_equal(one.clip.avatar_audio, other.clip.avatar_audio)
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 1


def test_an_evaluation_from_before_schedules_had_names_goes_on_in_equal_steps(subject, tmp_path):
    whole = subject(schedule="uniform")
    whole.claim(tmp_path)
    file = tmp_path / "evaluation.json"
    kept = json.loads(file.read_text())
    del kept["schedule"]
    file.write_text(json.dumps(kept))
    whole.claim(tmp_path)
    with pytest.raises(UserError, match="schedule: uniform there, fine_end asked for"):
        subject().claim(tmp_path)


def test_other_networks_read_the_kept_clips_anew(subject, tmp_path):
    first = measured(subject(), tmp_path)
    assert not first[0].clip.features
    with_network = subject(networks={"small": thumbnail(2)})
    for found in measured(with_network, tmp_path):
        (features,) = found.clip.features
        assert features.tag == "thumbnail2-1"
        assert features.generated.shape == (len(found.clip.generated), 12)


def test_a_conversation_that_cannot_be_read_loses_no_other(subject, latents, tmp_path, monkeypatch):
    read, broken = ShardReader.read, Index.load(latents / "test").samples[0].key

    def breaks(self, i, fields=None):
        if self.index.samples[i].key == broken:
            raise ShardError(tmp_path, broken, "truncated", "cut off")
        return read(self, i, fields)

    whole = subject()
    monkeypatch.setattr(ShardReader, "read", breaks)
    found = measured(whole, tmp_path)
    assert broken in found[0]
    assert isinstance(found[1], Measured)


def test_noise_belongs_to_the_clip_and_the_seed():
    assert clip_noise("a", 0, 5, 3).equal(clip_noise("a", 0, 5, 3))
    assert not clip_noise("a", 0, 5, 3).equal(clip_noise("b", 0, 5, 3))
    assert not clip_noise("a", 0, 5, 3).equal(clip_noise("a", 1, 5, 3))


def test_reconstruction_has_its_baseline(autoencoder_folder, latents):
    model = load_model(autoencoder_folder, MotionAutoencoder).model
    rows = {row.tag: row for row in reconstruction_rows(model, Index.load(latents / "test"))}
    assert rows["psnr"].n == 16
    for name, sign in (("psnr", 1), ("ssim", 1), ("l1", -1)):  # an untrained autoencoder is worse than the source shown
        assert sign * rows[name].null > sign * rows[name].value


def test_likeness_by_hand():
    true = np.full((2, 16, 16, 3), 100, np.uint8)
    values = likeness(true + np.uint8(51), true, lambda a, b: (a - b).abs().mean())
    assert values["l1"] == pytest.approx(0.2)
    assert values["psnr"] == pytest.approx(-20 * np.log10(0.2))
    assert values["lpips"] == pytest.approx(0.4)  # the network sees −1 … 1
    assert likeness(true, true)["ssim"] == pytest.approx(1, abs=1e-3)  # fp32 variances of a flat image


def test_the_command_writes_numbers_and_films(autoencoder_folder, denoiser_folder, latents, tmp_path):
    models = ["--autoencoder", str(autoencoder_folder), "--denoiser", str(denoiser_folder)]
    arguments = ["--data", str(latents / "test"), "--out", str(tmp_path), "evaluation.steps=2", "evaluation.videos=1"]
    assert main(["evaluate", *models, *arguments]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["psnr/null"] > 0
    assert "react/smile" in metrics
    assert metrics["latency/worst_ms"] > 5 * 40
    assert metrics["speed/rtf"] > metrics["speed/rtf/motion"] > 0
    assert "evaluation.drift" in metrics["not_computed"]["drift"]
    assert (tmp_path / "metrics.md").read_text().startswith("#")
    scalars = set(EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"])
    assert {"psnr", "psnr/null", "react/smile", "react/smile/true", "final/react/smile"} <= scalars
    assert len(scalars) <= 80  # what a person looks at: the rest is in the files
    assert {"tlcc_exp.png", "block_borders.png"} <= {p.name for p in (tmp_path / "plots").iterdir()}
    films, clips = list((tmp_path / "videos").glob("*.mp4")), json.loads((tmp_path / "clips.json").read_text())
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "gallery.html").read_text(), re.S).group(1))
    assert {card["name"] for card in data} == set(clips)
    shown = [card for card in data if card["videos"]]
    assert [card["name"] for card in shown] == [film.stem for film in films]
    assert set(shown[0]["videos"]) == {"user", "generated", "true"}


def evaluation(*words: object) -> int:
    return main(["evaluate", *map(str, words)])


def test_filmed_faces_get_no_numbers_of_the_tracker_of_drawn_ones(
    autoencoder_folder, denoiser_folder, filmed, latents, tmp_path, capsys
):
    """Reconstruction and speed alone; every other row is named with what to do; the videos and their list go on."""
    models = ["--autoencoder", autoencoder_folder, "--denoiser", denoiser_folder, "evaluation.steps=1"]
    out = tmp_path / "filmed"
    assert evaluation(*models, "--data", filmed / "test", "--out", out) == 0
    said, metrics = capsys.readouterr().out, json.loads((out / "metrics.json").read_text())
    computed = {tag.split("/")[0] for tag in metrics["better"]}
    assert {"psnr", "ssim", "l1", "latency", "speed"} <= computed
    of_faces = {tag for metric in families() if metric.of_faces for tag in metric.needs}
    assert not computed & of_faces
    for tag in of_faces:
        assert "tracker=mediapipe" in metrics["not_computed"][tag]
    assert f"af compare {out / 'manifest.csv'}" in said.replace("\n", "")
    assert not (out / "clips.json").read_text().strip("{}\n ")

    clips = read_manifest(out / "manifest.csv")  # all of them, and each side alone
    assert [clip.clip for clip in clips] == [sample.key for sample in Index.load(filmed / "test").samples]
    for clip in clips:
        films = [read_video(path) for path in (clip.user, clip.true, clip.generated)]
        assert len({film.shape for film in films}) == 1
        assert films[0].shape[1] == films[0].shape[2]
    assert evaluation(*models, "--data", filmed / "test", "--out", out, "evaluation.conditions=all") != 0
    assert "conditions=all" in capsys.readouterr().err

    # `af compare` reads them, as they were
    reader = Reader(FilesSettings(tracker=load_tracker()), tmp_path / "cache")
    assert all(reader.read(clip).clip.side("generated").any() for clip in clips)
    clip = ShardReader(filmed / "test").read(0, {"video"})
    for side, person in (("user", clip.a), ("true", clip.b)):
        film = read_video(getattr(clips[0], side)).astype(int)
        step = film.shape[1] // person.video.shape[1]
        assert np.abs(film[:, ::step, ::step] - person.video).mean() < 4  # compressed


def test_training_data_is_called_so(autoencoder_folder, denoiser_folder, latents, tmp_path, capsys):
    from af.data.provenance import TRAINED_ON, people_digests

    folder = tmp_path / "denoiser"
    shutil.copytree(denoiser_folder, folder)
    info = json.loads((folder / "model.json").read_text())
    info[TRAINED_ON] = people_digests([Index.load(latents / "train")])
    (folder / "model.json").write_text(json.dumps(info))
    words = ["--linear-probe", latents / "train", "--denoiser", folder, "evaluation.steps=1"]
    for split, known in (("train", "training data"), ("test", "held out")):
        out = tmp_path / split
        assert evaluation(*words, "--data", latents / split, "--out", out) == 0
        assert json.loads((out / "metrics.json").read_text())["people"] == known
        assert f"{known}: " in capsys.readouterr().out
        assert f"{known}: " in (out / "metrics.md").read_text()
    decoded = [
        "--autoencoder",
        autoencoder_folder,
        "--denoiser",
        folder,
        "evaluation.steps=1",
        "evaluation.limit=2",
        "evaluation.videos=0",
    ]
    assert evaluation(*decoded, "--data", latents / "train", "--out", tmp_path / "decoded") == 0
    assert "held-out" not in (tmp_path / "decoded" / "metrics.md").read_text()


def test_every_subset_of_the_signals_in_one_table(autoencoder_folder, denoiser_folder, latents, tmp_path):
    models = ["--autoencoder", str(autoencoder_folder), "--denoiser", str(denoiser_folder), "evaluation.steps=1"]
    arguments = ["evaluate", *models, "--data", str(latents / "test"), "--out", str(tmp_path), "evaluation.videos=0"]
    assert main([*arguments, "evaluation.conditions=all", "evaluation.limit=2"]) == 0
    table = json.loads((tmp_path / "conditions" / "table.json").read_text())["table"]
    names = {record["setting"] for record in table}
    assert len(names) == 8
    assert {"avatar_audio+user_audio+user_motion", "avatar_audio", "none"} < names
    assert (tmp_path / "conditions" / "table.md").read_text().count("\n| ") >= 10
    assert main([*arguments, "evaluation.conditions=avatar_audio+smell"]) == 1


def test_signals_that_are_left_out_do_not_matter(denoiser_folder, latents):
    reader = ShardReader(latents / "test")
    clips = [reader.read(i, FIELDS) for i in range(2)]
    strangers = [replace(clip, a=other.a) for clip, other in zip(clips, reversed(clips), strict=True)]
    alone = RolloutSettings(steps=2, signals=("avatar_audio",))
    first, second = ([turn_of(clip, "b") for clip in made] for made in (clips, strangers))
    denoiser = load_model(denoiser_folder).model
    assert roll_out(denoiser, first, alone).equal(roll_out(denoiser, second, alone))


def test_kept_clips_of_other_settings_are_refused(autoencoder_folder, denoiser_folder, latents, tmp_path, capsys):
    models = ["--autoencoder", str(autoencoder_folder), "--denoiser", str(denoiser_folder), "evaluation.videos=0"]
    arguments = ["evaluate", *models, "--data", str(latents / "test"), "--out", str(tmp_path), "evaluation.limit=1"]
    assert main([*arguments, "evaluation.steps=1"]) == 0
    assert main([*arguments, "evaluation.steps=2"]) == 1
    assert "steps" in capsys.readouterr().err


def test_the_table_of_subsets_is_of_these_settings(denoiser_folder, latents, tmp_path, monkeypatch, capsys):
    """Finished subsets are kept; those of other settings are refused, those of fewer clips computed again."""
    monkeypatch.setattr("af.training.evaluation.signal_subsets", lambda: [("avatar_audio",)])
    words = [
        "evaluate",
        "--linear-probe",
        str(latents / "train"),
        "--denoiser",
        str(denoiser_folder),
        "evaluation.steps=1",
    ]
    words += ["--data", str(latents / "test"), "--out", str(tmp_path), "evaluation.conditions=all"]
    numbers = tmp_path / "conditions" / "avatar_audio" / "metrics.json"
    assert main([*words, "evaluation.limit=1"]) == 0
    written = numbers.stat().st_mtime_ns
    assert main([*words, "evaluation.limit=1"]) == 0
    assert numbers.stat().st_mtime_ns == written
    assert main([*words, "evaluation.limit=1", "evaluation.guidance_user=3"]) == 1
    assert "guidance" in capsys.readouterr().err
    assert main(words) == 0
    assert json.loads(numbers.read_text())["clips"] == 2


def test_a_linear_probe_finds_what_the_latents_hold_and_nothing_else(tmp_path):
    """Latents that are a linear image of half of the parameters: those are read exactly, the others not at all."""
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.standard_normal((6, 2)))[0]
    face = FaceSpec(("seen_a", "seen_b", "unseen"), 3, "test/1")
    motion = MotionSpec(6, 2, "0" * 64, 32)
    clips = []
    for i in range(8):
        sides = {}
        for role in "ab":
            values = rng.standard_normal((50, 3)).astype(np.float32)
            sides |= {
                f"{role}.face.npy": values,
                f"{role}.motion.npy": (values[:, :2] @ mixing.T + 1).astype(np.float32),
            }
        meta = ClipMeta(
            "test", "none", "train", f"s{i}", (f"p{i}", f"q{i}"), 50, 32, motion_spec=motion, face_spec=face
        )
        clips.append((sides, meta))
    write_shard(tmp_path / "train" / "0.tar", ((f"k{i}", meta, sides) for i, (sides, meta) in enumerate(clips)))
    probe = LinearProbe.fit(build_index(tmp_path / "train"))
    assert probe.r2["seen_a"] > 0.999
    assert probe.r2["seen_b"] > 0.999
    assert abs(probe.r2["unseen"]) < 0.2
    sides = clips[0][0]
    np.testing.assert_allclose(probe(sides["b.motion.npy"])[:, :2], sides["b.face.npy"][:, :2], atol=0.02)


def test_an_evaluation_reads_latents_without_a_decoder(denoiser_folder, latents, tmp_path):
    """The command with --linear-probe: a table without pictures; other settings do not mix with what --out holds."""
    words = ["evaluate", "--linear-probe", str(latents / "train"), "--denoiser", str(denoiser_folder)]
    words += ["--data", str(latents / "test"), "evaluation.steps=2", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    numbers = json.loads((tmp_path / "out/metrics.json").read_text())
    assert "psnr" not in numbers
    assert "decoded video" in numbers["notes"]["linear_probe"][0]
    assert "linear_probe_r2/mouth_open" in numbers
    assert "reaction_gain" in numbers or numbers["clips"] == 2
    assert main([*words, "evaluation.guidance_user=3"]) != 0
    other = [str(latents / "test") if word == str(latents / "train") else word for word in words]
    assert main(other) != 0  # faces of another fit
    assert main([*words, "evaluation.guidance_user=3", "--overwrite"]) == 0


def test_overwriting_never_deletes_what_is_read(denoiser_folder, autoencoder_folder, latents, tmp_path, capsys):
    shutil.copytree(denoiser_folder, tmp_path / "all/denoiser")
    shutil.copytree(latents / "test", tmp_path / "all/test")
    model = ["--autoencoder", str(autoencoder_folder), "--denoiser", str(tmp_path / "all/denoiser")]
    split = ["--data", str(tmp_path / "all/test")]
    for out in (tmp_path / "all", tmp_path / "all/test", tmp_path / "all/denoiser"):
        assert main(["evaluate", *model, *split, "--out", str(out), "--overwrite"]) != 0
        assert re.search("would delete the input|which is read", capsys.readouterr().err)
    assert (tmp_path / "all/denoiser/model.json").is_file()
    assert (tmp_path / "all/test/index.json").is_file()
