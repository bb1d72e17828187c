"""One device for all that belongs together, and nothing that makes the host wait for it: on `tests.fake_device`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from af.cli.main import main
from af.data.index import Index
from af.data.shards import ShardReader
from af.devices import choose_device
from af.errors import UserError
from af.models.artifact import load_model
from af.models.speech import LogMel
from af.pipeline.avatar import Avatar
from af.pipeline.live import live_session
from af.training.denoiser import DenoiserModule
from tests import fake_device
from tests.conftest import FEATURES
from tests.training import test_resume


@pytest.fixture
def device() -> Iterator[torch.device]:
    with fake_device.present() as found:
        yield found


def syncs(work: Callable[[], Any]) -> list[str]:
    """Where the host waited for the device during `work`."""
    before = len(fake_device.State.syncs)
    work()
    return fake_device.State.syncs[before:]


# The fake device itself: what it must notice


def test_the_fake_device_refuses_what_a_gpu_refuses(device):
    here, there = torch.ones(3, device=device), torch.ones(3)
    for wrong in (lambda: here + there, lambda: torch.cat((here, there)), lambda: here[torch.tensor([0])]):
        with pytest.raises(fake_device.WrongDevice, match="beside"):
            wrong()
    for wide in (here.double, lambda: torch.arange(3, dtype=torch.float64, device=device)):
        with pytest.raises(fake_device.WrongDevice, match="float64"):
            wide()
    with pytest.raises(fake_device.WrongDevice, match="numpy"):
        np.asarray(here)
    assert (2 * here + torch.tensor(1.0)).cpu().equal(torch.full((3,), 3.0))  # single numbers are arguments


def test_the_fake_device_tells_who_waits(device):
    x, inputs = torch.arange(4.0, device=device), torch.ones(4)
    for waits in (
        x.sum().item,
        x.tolist,
        x.cpu,
        x.nonzero,
        lambda: x[x > 1],
        lambda: bool(x.any()),
        lambda: inputs.to(device),
    ):
        assert len(syncs(waits)) == 1
    event = torch.get_device_module(device.type).Event()
    event.record()
    assert len(syncs(event.synchronize)) == 1
    x.square()  # it has got on with the work since
    for free in (
        event.synchronize,
        x.square,
        lambda: inputs.to(device, non_blocking=True),
        lambda: x[torch.arange(2, device=device)],
    ):
        assert syncs(free) == []


# Choosing a device

VERBS = {
    "encode": ["--data", "d", "--autoencoder", "a"],
    "losers": ["--data", "d", "--denoiser", "n"],
    "teacher": ["--data", "d", "--denoiser", "n"],
    "evaluate": ["--data", "d", "--autoencoder", "a", "--denoiser", "n"],
    "probe": ["--data", "d", "--autoencoder", "a"],
    "generate": ["--autoencoder", "a", "--denoiser", "n", "--portrait", "p.png", "--avatar-audio", "s.wav"],
    "tracker": ["train"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["cuda:63", "gpu", "meta", "cpu:-1"])
def test_a_device_that_is_not_there_is_one_line_before_any_work(verb, name, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    assert main([verb, *VERBS[verb], "--out", str(out), "--device", name]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"af {verb}: --device {name}: ")
    assert "cpu" in error.split("allowed:")[1]
    assert error.count("\n") == 1
    assert not out.exists()


def test_auto_is_the_accelerator_that_is_there():
    with fake_device.present() as device:
        assert choose_device() == torch.device(device.type)
        assert choose_device("fake:1").index == 1
        with pytest.raises(UserError, match="allowed: auto, cpu, fake:0, fake:1"):
            choose_device("fake:2")
    if not torch.cuda.is_available():
        assert choose_device().type == "cpu"


# Everything that runs on one


@pytest.fixture
def computed(monkeypatch) -> Iterator[dict[str, set[str]]]:
    """{kind of module: kinds of devices that it has computed on}."""
    found: dict[str, set[str]] = {}

    def note(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        there = {x.device.type for x in given if isinstance(x, torch.Tensor)}
        found.setdefault(type(module).__name__, set()).update(there)

    encode = LogMel.encode
    monkeypatch.setattr(LogMel, "encode", lambda self, windows: (note(self, (windows,)), encode(self, windows))[1])
    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    yield found
    handle.remove()


def test_every_verb_that_runs_a_model_runs_on_it(
    dyads, latents, autoencoder_folder, denoiser_folder, device, computed, tmp_path
):
    models = ["--autoencoder", autoencoder_folder, "--denoiser", denoiser_folder]
    example = tmp_path / "example"
    commands: list[list[Any]] = [
        ["encode", "--data", dyads, *models[:2], "--out", tmp_path / "latents", "--workers", "1",
         *(f"features.{key}={FEATURES[key]}" for key in ("block_frames", "window_frames"))],
        ["losers", "--data", latents, *models[2:], "--out", tmp_path / "losers", "losers.steps=2"],
        ["teacher", "--data", latents, *models[2:], "--out", tmp_path / "teacher", "--steps", "2"],
        ["evaluate", *models, "--data", latents / "test", "--out", tmp_path / "numbers",
         "evaluation.steps=2", "evaluation.videos=1", "evaluation.limit=1", "evaluation/networks=[thumbnail]"],
        ["evaluate", "--linear-probe", latents / "train", *models[2:], "--data", latents / "test", "--out", tmp_path / "read",
         "evaluation.steps=2", "evaluation.limit=1"],
        ["shards", "extract", latents / "test", "--sample", "0", "--out", example],
        ["generate", *models, "--portrait", example / "avatar.png", "--avatar-audio", example / "avatar.wav",
         "--user-video", example / "user.mp4", "--no-crop", "--out", tmp_path / "avatar.mp4", "--seconds", "1"],
        ["tracker", "check", "--people", "1"],
    ]  # fmt: skip
    for command in commands:
        there = [] if command[0] == "shards" else ["--device", "fake"]
        computed.clear()
        assert main([str(word) for word in (*command, *there)]) == 0, command
        assert set().union(*computed.values()) == ({device.type} if there else set()), (command, computed)
        assert (
            "LogMel" in computed
            or command[0] in ("losers", "teacher", "shards", "tracker")
            or "--linear-probe" in command
        )
    made, expected = (ShardReader(Index.load(folder / "test")) for folder in (tmp_path / "latents", latents))
    for part, scale in (("audio", 2.0**-9), ("motion", 1e-4)):  # float16's step at values up to 4; float32 sums
        rows = [reader.read_rows(0, f"a.{part}.npy", 0, 50).astype(np.float64) for reader in (made, expected)]
        assert np.abs(rows[0] - rows[1]).max() <= scale * max(1.0, np.abs(rows[1]).max())
    assert json.loads((tmp_path / "numbers" / "metrics.json").read_text())["speed/rtf"] > 0


def test_an_avatar_is_on_one_device_however_it_is_made(autoencoder_folder, denoiser_folder, device):
    images, motion = load_model(autoencoder_folder), load_model(denoiser_folder)
    loaded = Avatar.of(images, motion, device)
    put_together = Avatar(load_model(autoencoder_folder).model, loaded.denoiser, LogMel())
    for avatar in (loaded, put_together):
        for part in (avatar.autoencoder, avatar.denoiser, avatar.features):
            assert {t.device for t in (*part.parameters(), *part.buffers())} == {device}


def test_voices_computed_together_are_what_they_are_alone():
    features = LogMel(block_frames=5, window_frames=20)
    voices = torch.randn(3, 30_000, generator=torch.Generator().manual_seed(0)) * 0.1
    together = [torch.cat(pieces) for pieces in zip(*features.voices(list(voices)), strict=True)]
    alone = [features(voice) for voice in voices]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=2.0**-10, atol=2.0**-10)  # both are rounded to float16
    with pytest.raises(ValueError, match="one length"):
        list(features.voices([voices[0], voices[1, :20_000]]))


def test_a_part_that_fails_takes_nothing_with_it(
    latents, autoencoder_folder, denoiser_folder, tmp_path, monkeypatch, capsys
):
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device is lost")

    for part in ("measure_running", "long_drift", "reconstruction_rows"):
        monkeypatch.setattr(f"af.evaluation.checkpoint.{part}", fails)
    monkeypatch.setattr("af.evaluation.report.make_gallery", fails)
    out = tmp_path / "numbers"
    models = ["--autoencoder", autoencoder_folder, "--denoiser", denoiser_folder]
    command = [
        "evaluate",
        *models,
        "--data",
        latents / "test",
        "--out",
        out,
        "evaluation.steps=2",
        "evaluation.videos=1",
        "evaluation.drift=true",
    ]
    assert main([str(word) for word in command]) == 1
    found = json.loads((out / "metrics.json").read_text())
    assert found["rpcc/exp"] is not None
    assert (out / "metrics.md").is_file()
    for part in ("latency, speed", "drift", "psnr, ssim, l1", "gallery"):
        assert "the device is lost" in found["not_computed"][part]
    assert "gallery" in capsys.readouterr().err.splitlines()[-1]


# Live


def test_a_live_session_is_on_one_device_and_waits_only_for_its_blocks(
    dyads, autoencoder_folder, denoiser_folder, device
):
    clip = ShardReader(Index.load(dyads / "test")).read(0, {"video", "audio"})
    avatar = Avatar.load(autoencoder_folder, denoiser_folder, device)
    _, reference = avatar.identity(clip.b.video[0])
    session = live_session(avatar, reference, generator=torch.Generator().manual_seed(0), steps=2)
    blocks = 0
    for t in range(12):
        sound = slice(640 * t, 640 * (t + 1))
        pushed = {
            "avatar_audio": clip.b.audio[sound],
            "user_audio": clip.a.audio[sound],
            "user_frames": clip.a.video[t : t + 1],
        }
        before = blocks

        def push(pushed: dict[str, Any] = pushed) -> None:
            nonlocal blocks
            for block in session.push(**pushed):
                assert block.motion.device == device
                blocks += 1

        waited = syncs(push)
        assert len(waited) == blocks - before, waited  # one for each block: it is there when it is returned
    assert blocks == 2


# Training


class Waits(Callback):
    """{step: where the host waited for the device and where else the package copied to it}, from the start of a batch to
    the start of the next one, which is moved to the device in between.
    """

    seen: dict[int, tuple[list[str], list[str]]] = {}  # noqa: RUF012
    logged: dict[int, set[str]] = {}  # noqa: RUF012

    def __init__(self) -> None:
        Waits.seen, Waits.logged = {}, {}
        self.step = -1

    def on_train_batch_start(self, trainer, *_) -> None:
        state = fake_device.State
        if self.step >= 0:
            batch = ("types.py", "training/datamodule.py")
            copies = [where for where in state.copies[self.before[1] :] if not where.startswith(batch)]
            Waits.seen[self.step] = state.syncs[self.before[0] :], copies
            Waits.logged[self.step] = set(trainer.logged_metrics)
        self.step, self.before = self.step + 1, (len(state.syncs), len(state.copies))


ADVERSARIAL = (
    "module.adversarial={_target_: af.losses.adversarial.AdversarialLoss, weight: 0.1}",
    "module.discriminator={_target_: af.models.discriminator.Discriminator, image_size: 32, channel_base: 64, max_channels: 8}",
)


def stage(request, dyads, latents, losers, teacher, denoiser_folder) -> list[str]:
    started = [f"start={denoiser_folder}", f"data.root={latents}"]
    preference = ["experiment=preference_demo", "scheme=forcing", *started]
    return {
        "vae": [*test_resume.VAE, f"data.root={dyads}"],
        "adversarial": [*test_resume.VAE, "+model.variational=true", *ADVERSARIAL, f"data.root={dyads}"],
        "denoiser": [*test_resume.DENOISER, f"data.root={latents}"],
        "autoregressive": [*test_resume.DENOISER, "scheme=autoregressive", f"data.root={latents}"],
        "distill": ["experiment=distill_demo", "scheme=forcing", *started, f"data.teacher={teacher}"],
        "preference": [*preference, f"data.losers={losers}", "module.online=null"],
        "online": [*preference, "module.online.source.steps=2"],
    }[request]


@pytest.mark.parametrize(
    ("save", "validate"), [(1, 5), (100, 5), (100, 3)]
)  # who reads it: save, next step, validation
def test_a_gradient_that_is_not_finite_stops_the_run_a_step_later_and_spoils_nothing(
    save, validate, latents, device, tmp_path, monkeypatch, capsys
):
    original = DenoiserModule.training_step

    def step(self, batch, batch_idx):
        return original(self, batch, batch_idx) * (float("nan") if self.batches_seen == 3 else 1.0)

    monkeypatch.setattr(DenoiserModule, "training_step", step)
    fake_device.register_accelerator()
    arguments = [*test_resume.DENOISER, f"data.root={latents}", f"run={tmp_path}", "trainer.accelerator=fake"]
    options = ["data.batch_size=2", "data.workers=0", "trainer.max_steps=5", f"trainer.val_check_interval={validate}"]
    quiet = ["callbacks.previews.clips=0", f"checkpoints.every_n_steps={save}"]
    assert main(["train", *arguments, *options, *quiet]) == 1
    assert "step 2: the gradient is not finite in" in capsys.readouterr().err
    saved = torch.load(tmp_path / "nonfinite" / "step00000002_rank0.pt", weights_only=True)
    assert (saved["step"], saved["batches_seen"]) == (2, 3)
    assert not (tmp_path / "validation.jsonl").exists()
    for file in (tmp_path / "checkpoints").glob("*.ckpt"):
        state = torch.load(file, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


STAGES = ("vae", "adversarial", "denoiser", "autoregressive", "distill", "preference", "online")


@pytest.mark.parametrize("name", STAGES)
def test_a_training_step_does_not_wait_for_the_device(
    name, dyads, latents, losers, teacher, denoiser_folder, device, tmp_path
):
    fake_device.register_accelerator()
    arguments = stage(name, dyads, latents, losers, teacher, denoiser_folder)
    options = [
        "data.batch_size=2", "data.workers=0", "trainer.max_steps=5", "trainer.val_check_interval=5",
        "trainer.log_every_n_steps=3", "checkpoints.every_n_steps=100", "trainer.accelerator=fake",
        "~callbacks.throughput", "~callbacks.progress",
        "~callbacks.heartbeat" if name in ("vae", "adversarial") else "callbacks.previews.clips=0",
        "+callbacks.waits._target_=tests.test_devices.Waits",
    ]  # fmt: skip
    assert main(["train", *arguments, f"run={tmp_path}", *options]) == 0
    for step in (1, 3):
        assert Waits.seen[step] == ([], []), step
    waits, copies = Waits.seen[2]  # the third step is written: everything is read at once
    assert len(waits) == 1, waits
    assert copies == []
    assert {"train/loss", "lr", "grad_norm"} < Waits.logged[2]


# The whole demo


@pytest.mark.slow
def test_the_demo_runs_on_it_to_the_end(device, tmp_path, monkeypatch):
    """Every stage in this process, where the device is: up to what only a real one can tell, its speed."""
    fake_device.register_accelerator()
    more = {
        "synth": ["--workers", "1", "--train", "2", "--val", "1", "--test", "2", "--seconds", "4"],
        "encode": ["--workers", "1"],
        "train": ["trainer.accelerator=fake", "data.workers=0", "data.batch_size=2", "trainer.max_steps=3",
                  "trainer.val_check_interval=2"],
        "evaluate": ["evaluation.steps=2"],
        "generate": ["--steps", "2", "--seconds", "2"],
    }  # fmt: skip

    def here(arguments: tuple[str, ...], entry: dict) -> int:
        return main([*arguments, *more.get(arguments[0], [])])

    monkeypatch.setattr("af.cli.demo._run", here)
    places = [f"run={tmp_path / 'run'}", f"data_folder={tmp_path / 'data'}", f"latents_folder={tmp_path / 'latents'}"]
    assert main(["demo", "demo=tiny", *places]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["speed/rtf"] > 0
    assert (tmp_path / "run" / "videos" / "avatar.mp4").is_file()
