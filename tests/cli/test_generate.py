"""Files in, films out: lengths, sound in step, every input optional."""

from __future__ import annotations

import av
import numpy as np
import pytest
import soundfile

from af.cli.main import main
from af.clock import frames_to_samples
from af.data.audio import read_audio
from af.data.container import probe
from af.data.contents import extract
from af.data.video import read_video
from af.forcing.solvers import SOLVER
from af.ingest.crops import face_frames, read_portrait
from af.pipeline.avatar import Avatar
from af.serve.service import Service
from af.serve.settings import Settings


@pytest.fixture(scope="module")
def files(latents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    extract(latents / "test", 0, folder)
    return folder


@pytest.fixture
def generate(autoencoder_folder, denoiser_folder, files, tmp_path):
    def run(*inputs: str, out: str = "out.mp4") -> int:
        models = ["--autoencoder", str(autoencoder_folder), "--denoiser", str(denoiser_folder)]
        portrait = ["--portrait", str(files / "avatar.png"), "--no-crop"]
        return main(["generate", *models, *portrait, *inputs, "--out", str(tmp_path / out), "--steps", "2"])

    return run


def test_a_conversation_gives_a_film_with_sound_in_step(generate, files, tmp_path):
    both = tmp_path / "both side by side, a=b.mp4"
    inputs = ["--avatar-audio", str(files / "avatar.wav"), "--user-video", str(files / "user.mp4")]
    assert generate(*inputs, "--side-by-side", str(both)) == 0
    film = probe(tmp_path / "out.mp4")
    assert film.video_s == pytest.approx(4.0, abs=0.001)
    assert film.audio_s == pytest.approx(film.video_s, abs=0.04)
    heard, said = read_audio(tmp_path / "out.mp4"), read_audio(files / "avatar.wav")
    count = min(len(heard), len(said))
    correlation = np.correlate(heard[:count], said[:count], "full")
    assert abs(int(correlation.argmax()) - (count - 1)) <= 16  # a millisecond
    pair = read_video(both)
    assert pair.shape[0] == 100
    side = pair.shape[2] // 2
    assert side == len(read_video(tmp_path / "out.mp4")[0]) < pair.shape[1]  # captions stand above the images


def test_a_live_conversation_shows_the_same_bits(
    generate, files, autoencoder_folder, denoiser_folder, monkeypatch
) -> None:
    """Of the same files, before the film is coded."""
    films: list[np.ndarray] = []
    monkeypatch.setattr("af.pipeline.generate.write_videos", lambda images, *_: films.append(np.stack(list(images))))
    voice, user_voice, user = (files / name for name in ("avatar.wav", "user.wav", "user.mp4"))
    inputs = ["--avatar-audio", str(voice), "--user-audio", str(user_voice), "--user-video", str(user)]
    assert generate(*inputs, "--seconds", "1.2", "--seed", "3") == 0

    avatar = Avatar.load(autoencoder_folder, denoiser_folder)
    size = avatar.autoencoder.image_size
    portrait = read_portrait(files / "avatar.png", size, find_face=False)
    service = Service(
        avatar, portrait, Settings({"steps": 2, "solver": SOLVER}, user="camera", barge_in=False, seed=3, mark=False)
    )
    conversation, heard = service.open(), read_audio(user_voice)
    conversation.say(read_audio(voice))
    shown = []
    for n, face in zip(range(30), face_frames(user, size, find_face=False), strict=False):
        conversation.hear(heard[frames_to_samples(n) : frames_to_samples(n + 1)])
        conversation.see(face)
        service.tick()
        while frame := conversation.playout.take():
            shown.append(frame.image)
    assert films[0].std(0).max() > 1  # it moves
    np.testing.assert_array_equal(shown, films[0])


@pytest.mark.parametrize(
    ("inputs", "frames"),
    [
        (["--avatar-audio", "avatar.wav"], 100),
        (["--user-video", "user.mp4"], 100),
        (["--user-audio", "user.wav"], 100),
        (["--avatar-audio", "avatar.wav", "--seconds", "0.5"], 12),
    ],
    ids=["talking only", "listening only", "hearing only", "cut"],
)
def test_every_input_is_optional(generate, files, tmp_path, inputs, frames):
    given = [str(files / i) if "." in i and i != "0.5" else i for i in inputs]
    assert generate(*given) == 0
    assert len(read_video(tmp_path / "out.mp4")) == frames


def test_the_ending_says_what_is_written(generate, files, tmp_path, capsys):
    """A GIF is a GIF, with the same frames as the mp4; other endings are refused before any work."""
    voice = ["--avatar-audio", str(files / "avatar.wav"), "--seconds", "0.4"]
    assert generate(*voice, "--side-by-side", str(tmp_path / "both.GIF"), out="a.gif") == 0
    assert "no audio" in capsys.readouterr().out
    assert generate(*voice, out="a.mp4") == 0
    assert (tmp_path / "a.gif").read_bytes()[:6] == (tmp_path / "both.GIF").read_bytes()[:6] == b"GIF89a"
    gif, film = (read_video(tmp_path / f"a.{suffix}").astype(int) for suffix in ("gif", "mp4"))
    assert gif.shape == film.shape
    assert abs(gif - film).mean() < abs(gif - np.roll(film, 3, axis=2)).mean()
    assert generate(*voice, "--no-mark", out="a.mp4") == 0
    unmarked = read_video(tmp_path / "a.mp4")
    different = (abs(film - unmarked) > 60).any((0, 3))  # more than coding does
    assert different.any()
    assert not different[: len(different) // 2].any()
    for wrong in ("b.webm", "b.mpeg4", "b"):
        assert generate(*voice, out=wrong) != 0
        assert f"{wrong} has " in (said := capsys.readouterr().err)
        assert ".mp4 or .gif" in said
    assert generate(*voice, "--side-by-side", str(tmp_path / "c.avi"), out="c.mp4") != 0
    assert "--side-by-side" in capsys.readouterr().err
    assert generate(*voice, "--side-by-side", str(tmp_path / "c.mp4"), out="c.mp4") != 0
    assert {p.name for p in tmp_path.iterdir()} == {"a.gif", "both.GIF", "a.mp4"}


def test_what_is_odd_about_the_inputs_is_said(generate, files, tmp_path, capsys):
    voice = 0.3 * np.sin(np.arange(16000) / 5)
    soundfile.write(tmp_path / "both.wav", np.stack([voice, voice], 1), 16000)
    soundfile.write(tmp_path / "left.wav", np.stack([voice, 0 * voice], 1), 16000)
    assert generate("--avatar-audio", str(tmp_path / "left.wav"), "--seconds", "0.4") == 0
    assert "left.wav: audio in left of 2 channels" in capsys.readouterr().err
    assert generate("--avatar-audio", str(tmp_path / "both.wav"), "--seconds", "0.4") == 0
    assert "note:" not in capsys.readouterr().err


def test_a_video_that_does_not_say_how_long_it_is_counts_whole(generate, files, tmp_path, capsys):
    """As browsers record them; and one of a single frame with a voice."""
    with av.open(str(tmp_path / "live.webm"), "w", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=25, options={"deadline": "realtime", "cpu-used": "8"})
        stream.width = stream.height = 64
        for picture in read_video(files / "user.mp4", stop=30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture[:64, :64].copy(), format="rgb24")))
        container.mux(stream.encode(None))
    assert probe(tmp_path / "live.webm").video_s is None
    assert generate("--user-video", str(tmp_path / "live.webm")) == 0
    assert "30 frames, 1.20 s" in capsys.readouterr().out


def test_the_seed_decides(generate, files, tmp_path):
    voice = ["--avatar-audio", str(files / "avatar.wav"), "--seconds", "1"]
    for out, seed in (("a.mp4", "1"), ("b.mp4", "1"), ("c.mp4", "2")):
        assert generate(*voice, "--seed", seed, out=out) == 0
    a, b, c = (read_video(tmp_path / f"{n}.mp4") for n in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    "options",
    [
        ["--solver", "heun"],
        ["--solver", "euler"],
        ["--schedule", "pyramid"],
        ["--anchor-sink", "2"],
        ["--anchor-pull", "1"],
    ],
)
def test_the_sampler_can_be_chosen(generate, files, tmp_path, options):
    voice = ["--avatar-audio", str(files / "avatar.wav"), "--seconds", "1"]
    for out, chosen in (("a.mp4", []), ("b.mp4", options)):
        assert generate(*voice, *chosen, out=out) == 0
    a, b = (read_video(tmp_path / f"{n}.mp4") for n in "ab")
    assert a.shape == b.shape
    assert not np.array_equal(a, b)


def test_packed_weights_show_the_same_and_wrong_names_are_said(generate, files, tmp_path, capsys):
    voice = ["--avatar-audio", str(files / "avatar.wav"), "--seconds", "1"]
    for out, chosen in (("a.mp4", []), ("b.mp4", ["--precision", "fp32"])):
        assert generate(*voice, *chosen, out=out) == 0
    a, b = (read_video(tmp_path / f"{n}.mp4").astype(int) for n in "ab")
    assert abs(a - b).mean() < 0.05
    for wrong, allowed in (
        (["--precision", "fp8"], "fp32, bf16"),
        (["--anchor-sink", "99"], "anchor.sink_frames"),
    ):
        assert generate(*voice, *wrong, out="c.mp4") == 1
        assert allowed in capsys.readouterr().err
        assert not (tmp_path / "c.mp4").exists()


def test_what_is_missing_is_said(generate, files, tmp_path, capsys):
    assert generate() == 1
    assert "--avatar-audio" in capsys.readouterr().err
    assert generate("--avatar-audio", str(files / "no such, file=.wav")) == 1
    assert "no such, file=.wav" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.mp4"))


def test_models_that_were_not_made_for_each_other_are_refused(dyads, denoiser_folder, files, tmp_path, capsys):
    import torch

    from af.models.artifact import build, save_model
    from tests.conftest import AUTOENCODER

    with torch.random.fork_rng():
        torch.manual_seed(5)
        save_model(tmp_path / "other", build(AUTOENCODER), AUTOENCODER, {})
    models = ["--autoencoder", str(tmp_path / "other"), "--denoiser", str(denoiser_folder)]
    inputs = ["--portrait", str(files / "avatar.png"), "--avatar-audio", str(files / "avatar.wav")]
    assert main(["generate", *models, *inputs, "--out", str(tmp_path / "x.mp4")]) == 1
    assert "another autoencoder" in capsys.readouterr().err
