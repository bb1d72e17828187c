"""The experiments' commands in the small."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from af.cli.main import main
from af.data.media import read_video, write_video
from af.files import write_json

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_metric_calibration_goes_on_and_keeps_the_words_of_its_readme(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "calibration"
    shutil.copytree(EXPERIMENTS / "003_metric_calibration", folder, ignore=shutil.ignore_patterns("*.png", "results.*"))
    sizes = ["--sessions", "6", "--rendered", "2", "--resamples", "40", "--cache", str(tmp_path / "cache")]
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "argv", ["run.py", *sizes])
    words = (folder / "README.md").read_text().partition("<!-- results -->")[0]
    runpy.run_path(str(folder / "run.py"), run_name="__main__")
    assert (folder / "README.md").read_text().startswith(words + "<!-- results -->\n6 conversations")
    results = json.loads((folder / "results.json").read_text())["conditions"]
    gain = {name: row["reaction_gain"]["value"] for name, row in results.items()}
    assert gain["another sample"] > gain["reactions removed (blind talker)"]
    assert results["lips 3 frames late"]["lip/lag"]["value"] == 3
    assert {p.name for p in folder.glob("*.png")} == {"map.png", "doses.png"}
    kept = sorted((tmp_path / "cache").iterdir())
    assert len(kept) == len(results)
    kept[3].unlink()
    times = [p.stat().st_mtime_ns for p in kept if p.exists()]
    runpy.run_path(str(folder / "run.py"), run_name="__main__")
    assert [p.stat().st_mtime_ns for p in kept if p != kept[3]] == times
    assert json.loads((folder / "results.json").read_text())["conditions"] == results


@pytest.mark.slow
def test_videos_of_any_system_the_copy_is_perfect_and_the_late_one_is_not(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("user", "avatar"):
        light = rng.integers(0, 200, (50, 1, 1, 1)) + np.linspace(0, 50, 32)[None, None, :, None]
        frames = np.broadcast_to(light, (50, 32, 32, 3)).astype(np.uint8)
        write_video(tmp_path / f"{name}.mp4", frames, rng.normal(size=50 * 640).astype(np.float32) * 0.1)
    shutil.copy(tmp_path / "avatar.mp4", tmp_path / "avatar.wav")  # any file with sound will do
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["prepare.py", str(tmp_path), str(out), "--frames", "24", "--late", "5"])
    runpy.run_path(str(EXPERIMENTS / "004_videos_of_any_system" / "prepare.py"), run_name="__main__")
    rows = list(csv.DictReader((out / "late.csv").read_text().splitlines()))
    assert [row["clip"] for row in rows] == ["piece 0", "piece 1"]
    true, late = (read_video(out / folder / "1.mp4").mean((1, 2, 3)) for folder in ("true", "late"))
    np.testing.assert_allclose(late[5:], true[:-5], atol=4)
    numbers = {}
    for system in ("copy", "late"):
        command = ["evaluate", "--manifest", str(out / f"{system}.csv"), "--block", "10", "--no-gallery"]
        assert main([*command, "--out", str(tmp_path / system)]) == 0
        numbers[system] = json.loads((tmp_path / system / "metrics.json").read_text())
    assert numbers["copy"]["ssim"] == pytest.approx(1)
    assert numbers["late"]["psnr"] < 40 < numbers["copy"]["psnr"]
    assert "--mediapipe" in numbers["late"]["not_computed"]["reaction_gain"]


DENOISER = ["model.hidden=16", "model.depth=1", "model.heads=2", "model.condition_dim=16", "model.condition_heads=2"]
SPACE = ["model.motion_space.latent_dim=16", "model.motion_space.directions=6"]
BLOCKS = ["model.block_frames=5", "model.window_frames=20", "features.block_frames=5", "features.window_frames=20"]
ONE_STEP = ["trainer.max_steps=1", "trainer.val_check_interval=1", "data.batch_size=2", "data.workers=0"]


def experiment(name: str, monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    monkeypatch.setenv("PYTHONPATH", str(EXPERIMENTS.parent))
    monkeypatch.syspath_prepend(EXPERIMENTS.parent)
    runpy.run_path(str(EXPERIMENTS / name / "run.py"), run_name="__main__")


def test_a_finished_training_of_other_values_is_not_taken_for_this_one(tmp_path, monkeypatch):
    from af.cli.config import compose, resolve

    monkeypatch.syspath_prepend(EXPERIMENTS.parent)
    from experiments.grid import train

    def again(*overrides: str) -> Path:
        return train(tmp_path, "denoiser_demo", Path("moved/latents"), 0, overrides)

    write_json(tmp_path / "done.json", {"steps": 1})
    assert again("trainer.max_steps=5") == tmp_path / "export"  # taken over: nothing is known
    words = ["experiment=denoiser_demo", "data.root=some/latents", "run=x", "data.workers=0", "trainer.max_steps=1"]
    config = resolve(compose("train", words))
    del config["module"]["warmup_steps"]  # what there was not yet when it was trained
    write_json(tmp_path / "config.json", config)
    assert again("trainer.max_steps=1") == tmp_path / "export"
    with pytest.raises(SystemExit, match=r"\(trainer\.max_steps\)"):
        again("trainer.max_steps=5")
    with pytest.raises(SystemExit, match=r"\(trainer\.max_steps\)"):
        again()


@pytest.mark.slow
def test_velocity_losses_in_one_table(latents, tmp_path, monkeypatch):
    words = ["--latents", latents, "--runs", tmp_path / "runs", "--out", tmp_path, "--seeds", "0"]
    experiment("005_velocity_loss", monkeypatch, *words, "--set", *DENOISER, *SPACE, *BLOCKS, *ONE_STEP)
    table = json.loads((tmp_path / "results.json").read_text())["table"]
    assert {row["setting"] for row in table} == {
        f"{loss}, w_u = {w}" for loss in ("l1", "l2", "huber") for w in (1, 2, 3)
    }
    assert all(row["runs"] == 1 for row in table if row["metric"] == "mouth/corr")
    written = (tmp_path / "runs" / "l1-0" / "export" / "model.safetensors").stat().st_mtime_ns
    experiment("005_velocity_loss", monkeypatch, *words, "--set", *DENOISER, *SPACE, *BLOCKS, *ONE_STEP)
    assert (tmp_path / "runs" / "l1-0" / "export" / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.slow
def test_students_beside_their_teacher(latents, denoiser_folder, tmp_path, monkeypatch):
    words = ["--latents", latents, "--runs", tmp_path / "runs", "--out", tmp_path, "--start", denoiser_folder]
    experiment("008_distillation", monkeypatch, *words, "--seeds", "0", "--set", *ONE_STEP)
    table = json.loads((tmp_path / "results.json").read_text())["table"]
    assert {row["setting"].split(":")[0] for row in table} == {
        "teacher, 8 steps", "teacher, 2 steps", "teacher, 1 steps", "student, 2 steps", "student, 1 step"
    }  # fmt: skip


@pytest.mark.slow
def test_a_killed_training_ends_as_the_undisturbed_one(tmp_path, monkeypatch):
    words = ["--work", tmp_path, "--out", tmp_path, "--kills", "2", "--steps", "200"]
    with pytest.raises(SystemExit) as ended:
        experiment("007_chaos", monkeypatch, *words)
    assert ended.value.code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["equal"]
    assert all(kill["lost_steps"] <= 8 for kill in results["kills"])


@pytest.mark.slow
def test_an_experiment_that_is_a_sweep_has_a_table_of_a_part_of_it(latents, denoiser_folder, tmp_path, monkeypatch):
    """A base that is there is taken over; what is not evaluated is a row without runs."""
    (tmp_path / "l2-0").mkdir()
    (tmp_path / "l2-0" / "export").symlink_to(denoiser_folder)
    words = ["--latents", latents, "--runs", tmp_path / "runs", "--out", tmp_path, "--seeds", "0"]
    part = [f"base={tmp_path}/${{loss_kind}}-${{seed}}", "commands.base=null", "loss_kind=l2", "variant=user_motion"]
    experiment("010_reactions", monkeypatch, *words, "--set", *part)
    table = json.loads((tmp_path / "results.json").read_text())["table"]
    runs = {row["setting"]: row["runs"] for row in table if row["metric"] == "mouth/corr"}
    assert runs == {
        f"{loss}: {words}": int((loss, words) == ("L2", "user motion, no DPO"))
        for loss in ("L1", "L2")
        for words in ("no user motion, no DPO", "user motion, no DPO", "user motion, DPO")
    }


def test_a_row_of_a_sweep_has_jobs_that_differ_in_their_seeds_alone(tmp_path, monkeypatch):
    """A trial with fewer steps in the same folder is no further seed."""
    sweep = tmp_path / "011_condition_dropping"

    def job(name: str, seed: int, steps: int) -> None:
        write_json(sweep / name / "job.json", {"settings": {"seed": seed, "single": 0.1, "user": 0.1}, "stages": {}})
        write_json(sweep / name / "denoiser" / "config.json", {"trainer": {"max_steps": steps}, "seed": seed})
        write_json(sweep / name / "evaluation" / "metrics.json", {"react/smile": 0.1 * seed, "better": {}})
        (sweep / name / "evaluation" / "metrics.md").write_text("# Evaluation")

    words = ["--runs", tmp_path, "--out", tmp_path, "--table"]
    job("a", 0, 800)
    job("b", 1, 800)
    experiment("011_condition_dropping", monkeypatch, *words)
    table = json.loads((tmp_path / "results.json").read_text())["table"]
    (row,) = (r for r in table if r["setting"] == "each 10%, user 10%" and r["metric"] == "react/smile")
    assert (row["runs"], row["mean"]) == (2, pytest.approx(0.05))
    job("trial", 0, 5)
    with pytest.raises(SystemExit, match=r"max_steps=5: .*trial"):
        experiment("011_condition_dropping", monkeypatch, *words)


@pytest.mark.slow
def test_latent_sizes_in_one_table(tmp_path, monkeypatch):
    data = tmp_path / "data"
    sizes = ["--train", "4", "--val", "0", "--test", "4", "--seconds", "4", "--size", "32", "--workers", "1"]
    assert main(["synth", "--out", str(data), *sizes]) == 0
    words = ["--data", data, "--runs", tmp_path / "runs", "--out", tmp_path, "--steps", "1"]
    small = [
        "model.image_size=32",
        "model.latent_dim=48",
        "model.channel_base=128",
        "data.batch_size=2",
        "data.workers=0",
    ]
    probe = ["pairs", "4", "conversations", "4", "frames", "20"]
    experiment("009_latent_size", monkeypatch, *words, "--set", *small, "--probe", *probe)
    table = json.loads((tmp_path / "results.json").read_text())["table"]
    assert {row["setting"] for row in table} == {
        "K = 5", "K = 10", "K = 20", "K = 40", "K = 20, β_kl = 0.0001", "K = 20, β_kl = 0.01"
    }  # fmt: skip
    assert all(row["runs"] == 1 for row in table if row["metric"] in ("psnr", "transfer/psnr"))
