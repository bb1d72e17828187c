"""The experiments' commands in the small."""

from __future__ import annotations

import csv
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from af.cli import multirun
from af.cli.main import main
from af.data.video import read_video
from af.data.video_writer import write_video
from af.files import read_json
from af.metrics import two_sample

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_metric_calibration_goes_on_and_keeps_the_words_of_its_readme(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "calibration"
    shutil.copytree(EXPERIMENTS / "003_metric_calibration", folder, ignore=shutil.ignore_patterns("*.png", "results.*"))
    sizes = ["--sessions", "8", "--rendered", "1", "--resamples", "40", "--cache", str(tmp_path / "cache")]
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "argv", ["run.py", *sizes])
    for name, few in (("FOLDS", 2), ("TREES", 8)):  # its classifiers take most of the time
        monkeypatch.setattr(two_sample, name, few)
    words = (folder / "README.md").read_text().partition("<!-- results -->")[0]
    runpy.run_path(str(folder / "run.py"), run_name="__main__")
    assert (folder / "README.md").read_text().startswith(words + "<!-- results -->\n8 conversations")
    results = json.loads((folder / "results.json").read_text())["conditions"]
    gain = {name: row["reaction_gain"]["value"] for name, row in results.items()}
    assert gain["another sample"] > gain["reactions removed (blind talker)"]
    assert results["lips 3 frames late"]["lip/lag"]["value"] == 3
    assert results["the truth itself"]["c2st/motion"]["value"] == 0.5 < 0.9 < results["frozen"]["c2st/motion"]["value"]
    assert {p.name for p in folder.glob("*.png")} == {"map.png", "doses.png"}
    kept = sorted((tmp_path / "cache").iterdir())
    assert len(kept) == len(results)
    kept[3].unlink()
    times = [p.stat().st_mtime_ns for p in kept if p.exists()]
    runpy.run_path(str(folder / "run.py"), run_name="__main__")
    assert [p.stat().st_mtime_ns for p in kept if p != kept[3]] == times
    assert json.loads((folder / "results.json").read_text())["conditions"] == results


def test_faults_of_true_clips_are_what_their_names_say():
    script = runpy.run_path(str(EXPERIMENTS / "014_real_people" / "faults.py"))
    own, other = (np.random.default_rng(n).integers(0, 255, (n, 100, 90, 3), dtype=np.uint8) for n in (12, 5))
    made = {fault.name: fault.images(own, other) for fault in script["FAULTS"]}
    assert {images.shape for images in made.values()} == {own.shape}
    for name, expected in (
        ("copy", own),
        ("3 frames late", own[[0, 0, 0, *range(9)]]),
        ("mirrored", own[:, :, ::-1]),
        ("frozen", own[[0] * 12]),
        ("another person", other[[*range(5)] * 2 + [0, 1]]),
        ("voice 5 frames late", own),
    ):
        np.testing.assert_array_equal(made[name], expected)
    assert made["blurred"].std() < 0.7 * own.std()
    cell, expected = script["Cell"], script["Expected"]
    rows = {"lag": {"copy": cell(-2.0), "late": cell(1.0)}, "db": {"copy": cell(40.0), "late": cell(30.0, moved=True)}}
    claims = [("lag", 3.0), ("lag", 2.0), ("db", "down"), ("db", "up"), ("db", "same"), ("lag", "same"), ("none", "up")]
    assert [expected("late", *claim).holds(rows) for claim in claims] == [True, False, True, False, False, True, None]


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
        command = ["compare", str(out / f"{system}.csv"), "evaluation.protocol.block=10", "evaluation.gallery=false"]
        assert main([*command, "--out", str(tmp_path / system)]) == 0
        numbers[system] = json.loads((tmp_path / system / "metrics.json").read_text())
    assert numbers["copy"]["ssim"] == pytest.approx(1)
    assert numbers["late"]["psnr"] < 40 < numbers["copy"]["psnr"]
    assert "evaluation/tracker=mediapipe" in numbers["late"]["not_computed"]["reaction_gain"]


DENOISER = ["model.hidden=16", "model.depth=1", "model.heads=2", "model.condition_dim=16", "model.condition_heads=2"]
SPACE = ["model.motion_space.latent_dim=16", "model.motion_space.directions=6"]
BLOCKS = ["model.block_frames=5", "model.window_frames=20", "features.block_frames=5", "features.window_frames=20"]
ONE_STEP = ["trainer.max_steps=1", "trainer.val_check_interval=1", "data.batch_size=2", "data.workers=0"]


def experiment(name: str, monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    runpy.run_path(str(EXPERIMENTS / name / "run.py"), run_name="__main__")


#: In place of `af`: asks the process of the tests, which has imported everything already, and ends as it says.
ASK = """#!{python} -S
import json, os, sys
os.write({questions}, json.dumps(sys.argv[1:]).encode() + b"\\n")
sys.exit(int(os.read({answers}, 9)))
"""


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Callable[..., list[dict]]:
    """Runs the commands of an experiment in a folder of its own, `af` and the jobs of its multiruns in this process;
    returns the rows of their report.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(multirun, "_train", lambda file, _: main(["train", "--resolved", str(file)]))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    tool = tmp_path / "bin" / "af"
    tool.parent.mkdir()

    def run(name: str, report: str, *words: object, **environment: object) -> list[dict]:
        (heard, questions), (answers, said) = os.pipe(), os.pipe()
        tool.write_text(ASK.format(python=sys.executable, questions=questions, answers=answers))
        tool.chmod(0o755)
        command = [EXPERIMENTS / name / "run.sh", *map(str, words)]
        more = {key: str(value) for key, value in environment.items()}
        with subprocess.Popen(command, env={**os.environ, **more}, pass_fds=(questions, answers)) as script:
            os.close(questions)
            os.close(answers)
            with open(heard) as asked, open(said, "wb", buffering=0) as answer:
                for question in asked:
                    answer.write(b"%d\n" % main(json.loads(question)))
        assert script.returncode == 0
        return read_json(tmp_path / "runs" / report / "report" / "table.json")["table"]

    return run


def settings(table: list[dict]) -> dict[str, int]:
    """Rows with a number for the lips, and of how many runs it is."""
    return {row["setting"]: row["runs"] for row in table if row["metric"] == "mouth/corr"}


@pytest.mark.slow
def test_velocity_losses_in_one_table(latents, tmp_path, commands):
    words = ["seed=0", "module.loss.kind=l2", *DENOISER, *SPACE, *BLOCKS, *ONE_STEP]
    rows = settings(commands("005_velocity_loss", "velocity_loss", *words, LATENTS=latents))
    assert rows == {f"module.loss.kind=l2, evaluation=evaluation/w_u={w}": 1 for w in (1, 2, 3)}
    model = tmp_path / "runs" / "velocity_loss" / "module.loss.kind=l2,seed=0" / "export" / "model.safetensors"
    written = model.stat().st_mtime_ns
    assert settings(commands("005_velocity_loss", "velocity_loss", *words, LATENTS=latents)) == rows
    assert model.stat().st_mtime_ns == written


@pytest.mark.slow
def test_students_beside_their_teacher(latents, denoiser_folder, commands):
    words = ["seed=0", "steps=1", *ONE_STEP]
    rows = settings(commands("008_distillation", "distillation", *words, LATENTS=latents, START=denoiser_folder))
    teachers = [f"runs/distillation/teacher-{steps}" for steps in (8, 2, 1)]
    assert rows == {"steps=1": 1, **dict.fromkeys(teachers, 1)}


@pytest.mark.slow
def test_the_preference_stage_finds_the_base_of_its_loss_and_seed(latents, tmp_path, commands):
    base = " ".join([*DENOISER, *SPACE, *BLOCKS])
    words = ["seed=0", "module.loss.kind=l2", *ONE_STEP]
    rows = settings(commands("010_reactions", "reactions", *words, LATENTS=latents, BASE=base))
    variants = ("user_motion", "no_user_motion", "preference")
    assert rows == {f"module.loss.kind=l2, variant={variant}": 1 for variant in variants}
    folder = tmp_path / "runs" / "reactions" / "module.loss.kind=l2,seed=0,variant=preference"
    assert read_json(folder / "config.json")["start"].endswith("module.loss.kind=l2,seed=0,variant=user_motion/export")


@pytest.mark.slow
def test_losers_of_two_sources_and_none(latents, denoiser_folder, commands):
    """Losers of three sources; a stage for one of them, and one on line. (One conversation has nobody to shuffle with.)"""
    talking = " ".join([*DENOISER, *SPACE, *BLOCKS, *ONE_STEP])
    words = ["seed=0", "loser=weak", "scheme=forcing", *ONE_STEP]  # the denoiser looks ahead
    given = {"LATENTS": latents, "START": denoiser_folder, "TALKING": talking, "ITSELF": "weak"}
    rows = settings(commands("012_loser_sources", "losers", *words, **given))
    assert rows == {"loser=weak": 1, "loser=online": 1, "runs/losers/none-0": 1, "runs/losers/none-1": 1}


@pytest.mark.slow
def test_a_killed_training_ends_as_the_undisturbed_one(tmp_path, monkeypatch):
    words = ["--work", tmp_path, "--out", tmp_path, "--kills", "1", "--steps", "80"]
    with pytest.raises(SystemExit) as ended:
        experiment("007_chaos", monkeypatch, *words)
    assert ended.value.code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["equal"]
    assert all(kill["lost_steps"] <= 8 for kill in results["kills"])


@pytest.mark.slow
def test_latent_sizes_in_one_table(tmp_path, commands):
    data = tmp_path / "data"
    sizes = ["--train", "4", "--val", "0", "--test", "4", "--seconds", "4", "--size", "32", "--workers", "1"]
    assert main(["synth", "--out", str(data), *sizes]) == 0
    small = ["model.image_size=32", "model.latent_dim=48", "model.channel_base=128", "model.directions=5", *ONE_STEP]
    probe = "--pairs 4 --conversations 4 --frames 20"
    table = commands("009_latent_size", "latent_size", *small, DATA=data, PROBE=probe)
    assert {row["setting"]: row["runs"] for row in table if row["metric"] == "transfer/psnr"} == {
        "model.directions=5": 1, "loss.kl=0.0001": 1, "loss.kl=0.01": 1
    }  # fmt: skip
