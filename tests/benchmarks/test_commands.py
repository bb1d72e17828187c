"""Every benchmark in the small: what it prints is JSON with the speeds in it, and a mistake is one line."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from af.cli.config import instantiate
from benchmarks import export, gpu, growth, laptop, live, loader, recipe, rollout, training, vae, waiting
from benchmarks.common import encoded_example, options, report
from tests.conftest import AUTOENCODER, DENOISER


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_vae_prints_speeds_memory_and_the_difference_from_the_baseline(monkeypatch, capsys) -> None:
    monkeypatch.setattr(vae, "experiment", lambda *words: {"model": AUTOENCODER})
    assert vae.main(["--threads", "1", "--seconds", "0.01"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threads"] == 1
    assert found["image_size"] == 32
    assert found["decode_speedup"] == found["decode_frames_per_s"] / found["baseline_decode_frames_per_s"]
    assert found["difference_from_baseline"] < 1e-5


def test_training_prints_steps_and_what_the_demo_takes(monkeypatch, capsys) -> None:
    tiny = {
        "denoiser_demo": {"model": DENOISER, "data": {"batch_size": 2}},
        "vae_demo": {"model": AUTOENCODER, "data": {"batch_size": 1}, "trainer": {"max_steps": 600}},
    }
    monkeypatch.setattr(training, "experiment", tiny.get)
    monkeypatch.setattr(training, "matmul_gflops", partial(training.matmul_gflops, size=256))
    assert training.main(["--seconds", "0.01"]) == 0
    found = json.loads(capsys.readouterr().out)
    for name, items in (("denoiser", 2), ("autoencoder", 2), ("autoencoder_fp32", 2)):
        step = found[name]
        assert step["items_per_second"] == pytest.approx(items / step["seconds"])
        assert step["gflops"] > 0
        assert step["share_of_matmul_peak"] > 0
    minutes = found["demo_autoencoder_minutes"]
    assert minutes["autoencoder_fp32"] == pytest.approx(600 * found["autoencoder_fp32"]["seconds"] / 60)


def test_laptop_takes_a_block_apart_on_both_runtimes(monkeypatch, capsys) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    sizes = ["model.image_size=32", "model.latent_dim=32", "model.channel_base=128", "model.max_channels=16"]
    monkeypatch.setattr(laptop, "AVATARS", {"32 px, light": (sizes, 64), "not this": ((), None)})
    monkeypatch.setattr(laptop, "matmul_gflops", partial(training.matmul_gflops, size=256))
    assert laptop.main(["--threads", "1", "--blocks", "3", "--only", "light"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["runtime"] for row in rows] == ["torch", "onnx"]
    for row in rows:
        parts = sum(row[f"{part}_ms"] for part in laptop.PARTS)
        assert row["block_ms"] == pytest.approx(parts, abs=0.03)
        assert row["share_of_real_time"] == pytest.approx(row["block_ms"] / 200, abs=1e-3)
        assert row["limit_ms"] > 0


def test_waiting_compares_with_threads_that_sleep_at_once(monkeypatch, capsys) -> None:
    seen = []

    def speeds(variables, threads, seconds):
        seen.append(variables)
        fast = 2.0 if variables.get("GOMP_SPINCOUNT") == "1000" else 1.0
        return {step: {"items_per_second": fast} for step in waiting.STEPS}

    monkeypatch.setattr(waiting, "_speeds", speeds)
    assert waiting.main(["--rounds", "2", "--busy", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert seen == [*waiting.WAITS.values()] * 2  # in turns
    assert set(found["ratio"]["1000"].values()) == {2.0}
    assert set(found["ratio"]["endless"].values()) == {1.0}


@pytest.mark.slow
def test_ranks_see_the_frames_that_the_ratio_says(tmp_path) -> None:
    latents = encoded_example(tmp_path, conversations=1, seconds=2.4)
    small = ["model.hidden=16", "model.depth=1", "model.heads=2", "model.condition_dim=16", "model.condition_heads=2"]
    found = training.ranks(2, latents, tmp_path, steps=21, rounds=1, overrides=small)
    alone, both = found["frames_per_second_of_one_rank"], found["frames_per_second_of_2_ranks"]
    assert found["efficiency"] == pytest.approx(both / (2 * alone))


@pytest.mark.parametrize("module", [gpu, growth, live, loader, recipe, rollout, training, vae])
def test_help_teaches(module, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    name = module.__name__
    assert f"python -m {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "option"),
    [
        (export, "blocks"), (gpu, "minutes"), (growth, "scale"), (live, "minutes"), (live, "jitter"),
        (live, "lose-inputs"), (live, "loss"), (loader, "seconds"), (training, "seconds"), (vae, "seconds"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "x"])
def test_a_duration_is_a_finite_number_that_is_not_negative(module, option, value, capsys) -> None:
    with pytest.raises(SystemExit):
        module.main([f"--{option}={value}"])
    assert f"--{option}" in capsys.readouterr().err


def test_a_mistake_is_one_line(tmp_path, capsys) -> None:
    assert loader.main(["--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert rollout.main(["--device", "cuda:63"]) == 1
    assert "--device cuda:63" in capsys.readouterr().err


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        report(options("x", "y"), lambda args: {"z": 1 / 0}, [])


def test_the_recipe_counts_what_a_step_executes() -> None:
    """The counted products are those of the real step, and an item more in a batch takes as much again."""
    words = ["data.root=x", "features=logmel", "model.motion_space.latent_dim=16", "model.motion_space.directions=6"]
    words += ["model.hidden=64", "model.depth=2", "model.heads=2", "model.condition_dim=16", "model.condition_heads=2"]
    config = recipe.experiment("denoiser_paper", *words)
    stage = recipe.denoiser_stage(config)
    denoiser = instantiate(config["model"])
    real = training.denoiser_speed(denoiser, 3, config["features"]["dim"], 0.01)
    assert stage.parameters == sum(p.numel() for p in denoiser.parameters())
    assert 3 * stage.gflop_per_item == pytest.approx(real.gflops * real.seconds, rel=1e-3)
    one, eight = (recipe.priced(stage, recipe.Machine(devices=n, step_ms=1e-6, read_gb_s=1e6)) for n in (1, 8))
    assert one["limit"] == eight["limit"] == "compute"
    assert one["hours"] == pytest.approx(8 * eight["hours"], rel=1e-3)
    assert recipe.priced(stage, recipe.Machine(step_ms=3600))["hours"] == pytest.approx(stage.steps / 1000)


def test_the_recipe_counts_the_parts_of_an_adversarial_step(tmp_path) -> None:
    vgg = recipe.untrained_vgg(tmp_path / "vgg.pth")
    small = [
        "data.root=x",
        "model.image_size=32",
        "model.latent_dim=32",
        "model.channel_base=128",
        "model.max_channels=16",
    ]
    small += [
        f"loss.distance.features.weights={vgg}",
        "+module.discriminator.channel_base=128",
        "trainer.precision=32-true",
    ]
    stage = recipe.vae_stage(recipe.experiment("vae_256", *small))
    assert stage.work.keys() == {"autoencoder", "loss", "discriminator as judge", "discriminator", "R1"}
    assert min(stage.work.values()) > 0
    assert stage.activation_gb_per_item > 0
    rarer = recipe.vae_stage(recipe.experiment("vae_256", *small, "module.adversarial.r1_every=32"))
    assert rarer.work["R1"] == pytest.approx(stage.work["R1"] / 2)
