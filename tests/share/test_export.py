"""An export gives what torch gives, without torch."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from af import Avatar, Runtime
from af.clock import frames_to_samples
from af.errors import UserError
from af.files import write_json
from af.forcing.guidance import Guidance
from af.models.artifact import load_model
from af.serve.ship import PORTRAIT, shipped
from af.share.noise import Noise
from tests.toy_avatar import recording

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
FRAMES = 74  # the window is full after 50; the last block is a part
#: Of motion latents that reach 3.
CLOSE = 1e-4
#: All four branches, those without a signal weakly: strong guidance amplifies rounding, on some processors to 3e-4.
SAMPLING = {"steps": 8, "solver": "midpoint", "guidance": Guidance(0.1, 0.1, 1)}
#: So do some noises.
SEED = 4


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return np.asarray(Image.open(shipped() / PORTRAIT).convert("RGB"))


def export_of_package(out: Path, **how) -> dict[str, Any]:
    from af.share.export import export

    images, motion = (load_model(shipped() / name) for name in ("autoencoder", "denoiser"))
    return export(images, motion, SAMPLING, out, **how)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    export_of_package(folder := tmp_path_factory.mktemp("exported"))
    return folder


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    return replace(Avatar.load(shipped() / "autoencoder", shipped() / "denoiser"), sampling=SAMPLING)


@pytest.fixture
def runtime(exported) -> Runtime:
    return Runtime(exported, threads=1)


def inputs(avatar: Avatar, portrait: np.ndarray) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Two voices, and the frames of a user who sways and is then gone from the picture."""
    heard = recording(0, FRAMES)
    voices = {name: heard[name] for name in ("avatar_audio", "user_audio")}
    return voices, [np.roll(portrait, n % 7 - 3, 1) for n in range(FRAMES - 9)]


def torch_motion(avatar: Avatar, portrait, voices, faces, **sampling) -> tuple[np.ndarray, np.ndarray]:
    """Motion and frames by torch."""
    from af.pipeline.encode import video_motion_pieces

    identity, reference = avatar.identity(portrait)
    motion = list(
        avatar.motion(
            reference,
            FRAMES,
            user_motion=video_motion_pieces(avatar.autoencoder, faces, 1) if faces else None,
            generator=torch.Generator().manual_seed(SEED),
            **voices,
            **{**avatar.sampling, **sampling},
        )
    )
    return torch.cat(motion, 1).numpy(), np.stack(list(avatar.frames(identity, motion)))


@pytest.mark.parametrize("without", [(), ("avatar_audio",), ("user_audio", "user")], ids=["all", "listens", "talks"])
def test_rollout_and_frames_are_those_of_torch(avatar, runtime, portrait, without):
    voices, faces = inputs(avatar, portrait)
    voices = {name: voice for name, voice in voices.items() if name not in without}
    faces = [] if "user" in without else faces
    motion, frames = torch_motion(avatar, portrait, voices, faces)
    face = runtime.face(portrait)
    seen = map(runtime.user_motion, faces) if faces else None
    blocks = list(runtime.motion(face.reference, FRAMES, seed=SEED, user_motion=seen, **voices))
    made = np.concatenate(blocks, 1)
    assert np.abs(motion).max() > 1
    assert np.abs(made - motion).max() < CLOSE
    shown = np.stack(list(runtime.frames(face, blocks)))
    assert shown.shape == frames.shape
    assert np.abs(shown.astype(int) - frames).max() <= 1
    assert np.mean(shown != frames) < 1e-3


@pytest.mark.parametrize(
    ("sampling", "close"),
    [
        ({"steps": 3, "guidance": Guidance(1.5, 2.5)}, CLOSE),
        ({"steps": 4, "solver": "euler"}, CLOSE),
        ({"steps": 7, "schedule": "fine_end"}, CLOSE),
        ({"dead_band": 0.1}, 3 * CLOSE),
    ],
    ids=["scales", "solver", "schedule", "dead band"],
)
def test_other_sampling_is_that_of_torch(avatar, runtime, portrait, sampling, close):
    voices, faces = inputs(avatar, portrait)
    motion, _ = torch_motion(avatar, portrait, voices, faces, **sampling)
    usual, _ = torch_motion(avatar, portrait, voices, faces)
    seen = map(runtime.user_motion, faces)
    made = runtime.motion(runtime.face(portrait).reference, FRAMES, seed=SEED, user_motion=seen, **voices, **sampling)
    assert np.abs(np.concatenate(list(made), 1) - motion).max() < close < np.abs(usual - motion).max()


def test_light_decoders_are_those_of_torch(portrait, tmp_path):
    from af.models.artifact import LATENTS, read_description, save_model
    from af.share.export import export_avatar
    from af.training.light import lightened

    images, motion = tmp_path / "autoencoder", tmp_path / "denoiser"
    about = read_description(shipped() / "autoencoder")
    light = lightened(shipped() / "autoencoder", 512)
    torch.nn.init.normal_(light.decoder.fine.weight)
    save_model(images, light, {**about["model"], "light": 512}, {**about, LATENTS: about["sha256"]})
    shutil.copytree(shipped() / "denoiser", motion)
    avatar = Avatar.load(images, motion)
    voices, faces = inputs(avatar, portrait)
    moved, frames = torch_motion(avatar, portrait, voices, faces, steps=2)
    export_avatar(tmp_path, tmp_path / "export")
    runtime = Runtime(tmp_path / "export", threads=1)
    face = runtime.face(portrait)
    seen = map(runtime.user_motion, faces)
    blocks = list(runtime.motion(face.reference, FRAMES, seed=SEED, user_motion=seen, steps=2, **voices))
    assert np.abs(np.concatenate(blocks, 1) - moved).max() < CLOSE
    shown = np.stack(list(runtime.frames(face, blocks)))
    assert np.abs(shown.astype(int) - frames).max() <= 1


def test_a_student_is_that_of_torch(avatar, portrait, tmp_path):
    from af.share.export import export_avatar

    shutil.copytree(shipped(), tmp_path / "student")
    about = json.loads((tmp_path / "student/denoiser/model.json").read_text())
    write_json(tmp_path / "student/denoiser/model.json", {**about, "stage": "distill", "sampling": None})
    made = export_avatar(tmp_path / "student", tmp_path / "export", dtype="fp16")
    assert made["sampling"]["steps"] == len(made["branches"]) == 1
    voices, faces = inputs(avatar, portrait)
    motion, _ = torch_motion(avatar, portrait, voices, faces, steps=1, guidance=Guidance.conditional())
    runtime = Runtime(tmp_path / "export", threads=1)
    seen = map(runtime.user_motion, faces)
    given = runtime.motion(runtime.face(portrait).reference, FRAMES, seed=SEED, user_motion=seen, **voices)
    # the weights are those of the package, which are in half precision already; constants made of them are rounded
    assert np.abs(np.concatenate(list(given), 1) - motion).max() < 1e-2
    with pytest.raises(UserError, match="other branches"):
        runtime.sampler(runtime.face(portrait).reference, guidance=Guidance())


def test_a_live_session_is_that_of_torch_however_its_input_is_cut(avatar, runtime, portrait):
    voices, faces = inputs(avatar, portrait)
    live = avatar.live(portrait, generator=torch.Generator().manual_seed(SEED))
    whole = live.push(**voices, user_frames=[*faces, None, None]) + live.finish()
    session, made = runtime.live(portrait, seed=SEED), []
    for start in range(0, FRAMES, 3):
        part = slice(frames_to_samples(start), frames_to_samples(start + 3))
        cut = {name: voice[part] for name, voice in voices.items()}
        made += session.push(**cut, user_frames=[*faces, None, None][start : start + 3])
    made += session.finish()
    assert len(made) == len(whole) == FRAMES
    assert np.abs(np.stack(made).astype(int) - np.stack(whole)).max() <= 1


@pytest.mark.parametrize("frames", [0, 1, 5, 9, 11])
def test_the_end_of_a_live_session_is_that_of_torch_and_final(avatar, runtime, portrait, monkeypatch, frames):
    """Whatever the length, no more sound is computed than the frames need, and nothing follows."""
    voices, faces = inputs(avatar, portrait)
    cut = {name: voice[: frames_to_samples(frames) + 100] for name, voice in voices.items()}
    live = avatar.live(portrait, generator=torch.Generator().manual_seed(SEED))
    expected = live.push(**cut, user_frames=faces[: frames // 2]) + live.finish()
    extracted, extract = [], runtime.speech
    monkeypatch.setattr(runtime, "speech", lambda block, *sound: extracted.append(block) or extract(block, *sound))
    session = runtime.live(portrait, seed=SEED)
    made = session.push(**cut, user_frames=faces[: frames // 2]) + session.finish()
    assert len(made) == len(expected) == frames
    assert max([np.abs(a.astype(int) - b).max() for a, b in zip(made, expected, strict=True)], default=0) <= 1
    assert sorted(extracted) == sorted(2 * [*range(-(-frames // runtime.speech_frames))])
    for of in (live, session):
        assert [of.finish(), of.finish()] == [[], []]
        with pytest.raises(UserError, match="the session is finished; start a new one"):
            of.push(**cut)


def test_a_session_of_the_live_page_is_that_of_torch_and_takes_its_changes(avatar, runtime, portrait):
    from af import Signals, live_session
    from af.share.onnx_avatar import OnnxAvatar

    voices, faces = inputs(avatar, portrait)
    motions = []
    for of in (avatar, OnnxAvatar(runtime)):
        _, reference = of.identity(portrait)
        session = live_session(of, reference, generator=torch.Generator().manual_seed(SEED), guidance=Guidance(2, 2))
        half = frames_to_samples(40)
        blocks = session.push(**{name: voice[:half] for name, voice in voices.items()}, user_frames=faces[:40])
        session.change(signals=Signals(user_audio=False, user_motion=False), guidance=Guidance(1.5, 1))
        session.change_reference(0.5 * reference)
        blocks += session.push(
            **{name: voice[half:] for name, voice in voices.items()}, user_frames=[*faces[40:], None]
        )
        blocks += session.finish()
        motions.append(torch.cat([block.motion for block in blocks], 1))
    assert motions[0].shape == motions[1].shape == (1, FRAMES, 64)
    assert (motions[0] - motions[1]).abs().max() < CLOSE


@pytest.mark.parametrize(
    ("guidance", "offered"),
    [
        (Guidance(audio=1, user=0), ()),
        (Guidance(audio=0.5, user=0.5), ()),
        (Guidance.conditional(), ()),
        (Guidance(audio=2, user=0), ("audio",)),
        (Guidance(audio=0.7, user=0, joint=1), ("audio",)),
        (Guidance(audio=2, user=1), ("audio", "user")),
    ],
    ids=str,
)
def test_a_page_changes_the_guidance_whose_branches_the_export_has(models, guidance, offered):
    """Others are refused with a text, and the conversation goes on."""
    from af.serve.controls import Controls
    from af.serve.service import Service
    from af.serve.settings import Settings
    from af.share.onnx_avatar import live_avatar

    sampling = {"steps": 1, "guidance": guidance}
    avatar = live_avatar(*map(load_model, models), sampling, runtime="onnx", threads=1)
    service = Service(avatar, recording()["user_frames"][0], Settings(sampling))
    controls = Controls(service.open())
    for scale in (0, 1, 1.7):
        for name in ("audio", "user"):
            assert (controls.settings()[name] is not None) == (name in offered)
            answer = asyncio.run(controls(json.dumps({"do": "change", name: scale})))
            assert list(answer) == ["settings" if name in offered else "error"]
            for _ in range(avatar.denoiser.layout.block_frames):
                service.tick()
    assert service.conversations == [controls.conversation]
    assert controls.conversation.playout.take() is not None


def test_int8_stays_near_and_is_smaller(exported, runtime, portrait, avatar, tmp_path):
    about = export_of_package(tmp_path, int8=True)
    graphs = runtime.about["graphs"]
    assert about["graphs"]["step"]["bytes"] < graphs["step"]["bytes"] * 0.4
    assert about["graphs"]["decoder"]["bytes"] < graphs["decoder"]["bytes"] * 0.7
    voices, faces = inputs(avatar, portrait)
    face, eighth = runtime.face(portrait), Runtime(tmp_path, threads=1)
    motions = [
        np.concatenate(
            list(of.motion(face.reference, FRAMES, seed=SEED, user_motion=map(of.user_motion, faces), **voices)), 1
        )
        for of in (runtime, eighth)
    ]
    error = np.sqrt(np.square(motions[0] - motions[1]).mean() / motions[0].var())
    assert 1e-5 < error < 0.01


def test_programs_of_torch_give_the_same(avatar, portrait, tmp_path):
    from af.share.export import export_avatar

    about = export_avatar(shipped(), tmp_path, to="torch")
    program = torch.export.load(tmp_path / about["graphs"]["portrait"]["file"]).module()
    code, reference, *_ = program(torch.from_numpy(portrait[None].copy()))
    identity, expected = avatar.identity(portrait)
    assert torch.allclose(code, identity.code, atol=1e-4)
    assert torch.allclose(reference, expected, atol=1e-4)
    with pytest.raises(UserError, match="to onnx"):
        Runtime(tmp_path)


@pytest.mark.parametrize(("seed", "shape"), [(0, (1, 10, 20)), (7, (3, 7)), (2**40 + 1, (16,))])
def test_noise_is_that_of_torch(seed, shape):
    generator, noise = torch.Generator().manual_seed(seed), Noise(seed)
    for _ in range(3):
        assert np.allclose(noise(*shape), torch.randn(shape, generator=generator).numpy(), atol=1e-5)


def test_what_cannot_be_exported_or_run_is_one_line(models, exported, tmp_path):
    from af.share.export import export_avatar
    from af.share.folder import write_folder

    with pytest.raises(UserError, match="no hub folder"):
        export_avatar(tmp_path, tmp_path / "x")
    write_folder(tmp_path / "hub", *models)
    about = json.loads((tmp_path / "hub/avatar.json").read_text())
    about["sampling"]["anchor"]["pull"] = 0.5
    write_json(tmp_path / "hub/avatar.json", about)
    with pytest.raises(UserError, match="anchor"):
        export_avatar(tmp_path / "hub", tmp_path / "x")
    with pytest.raises(UserError, match="no export"):
        Runtime(tmp_path)
    shutil.copytree(exported, tmp_path / "cut")
    with (tmp_path / "cut/step.onnx").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match=r"step\.onnx"):
        Runtime(tmp_path / "cut")


RUNTIME_ALONE = """
import re, sys, tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def named(requirement):
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
there, found = set(), [*project["dependencies"], *project["optional-dependencies"]["runtime"]]
while found:
    if (name := named(found.pop())) not in there:
        there.add(name)
        try:
            found += [one for one in requires(name) or () if "extra ==" not in one]
        except PackageNotFoundError:
            pass  # not for this machine
missing = {module for module, homes in packages_distributions().items() if not there & {named(home) for home in homes}}
assert {"torch", "lightning", "hydra", "onnx"} <= missing - {"af"}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing - {"af"}:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocked())
from af import Runtime

folder, portrait, voice, out = sys.argv[1:]
runtime = Runtime(folder, threads=1)
frames = runtime.generate(portrait, out, avatar_audio=voice, user_audio=voice, seconds=1)
assert "torch" not in sys.modules
print(frames)
"""


def test_a_video_is_made_where_the_runtime_alone_is_installed(exported, tmp_path):
    import av

    out = tmp_path / "avatar.mp4"
    command = [sys.executable, "-c", RUNTIME_ALONE, exported, shipped() / PORTRAIT, shipped() / "voice.wav", out]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "25"
    with av.open(str(out)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 25


def test_a_small_avatar_goes_live_on_onnx_where_it_can(models):
    from af.data.container import Notes
    from af.forcing.anchor import Anchor
    from af.models.artifact import load_model
    from af.share.onnx_avatar import OnnxAvatar, live_avatar

    models = [load_model(folder) for folder in models]
    usual = {"steps": 2, "guidance": Guidance(2, 2)}
    held = usual | {"anchor": Anchor(pull=0.1)}
    assert isinstance(live_avatar(*models, usual, threads=1), OnnxAvatar)
    for avatar in (
        live_avatar(*models, usual, runtime="torch"),
        live_avatar(*models, usual, precision="fp32"),
        live_avatar(*models, held, notes=(notes := Notes())),
    ):
        assert not isinstance(avatar, OnnxAvatar)
    assert ["anchor" in note.text for note in notes] == [True]
    for sampling, precision, named in ((usual, "fp32", "--precision"), (held, None, "anchor")):
        with pytest.raises(UserError, match=named):
            live_avatar(*models, sampling, precision=precision, runtime="onnx")
