"""The recipe at the paper's size runs: two steps of every stage, each from the one before, on a conversation of seconds."""

from __future__ import annotations

import json
import os

import pytest
import torch

from af.cli.main import main
from benchmarks.recipe import untrained_vgg

TWO_STEPS = ["trainer=cpu", "trainer.precision=32-true", "trainer.max_steps=2", "trainer.val_check_interval=2"]
TWO_STEPS += ["data.batch_size=1", "data.workers=0", "data.validation=none", "checkpoints.every_n_steps=1000"]


def train(name: str, run, *words: str) -> str:
    assert main(["train", f"experiment={name}", f"run={run}", *TWO_STEPS, *words]) == 0
    assert json.loads((run / "done.json").read_text())["steps"] == 2
    return str(run / "export")


@pytest.mark.slow
@pytest.mark.timeout(0)  # as long as two steps of every stage take
@pytest.mark.skipif(
    not os.environ.get("AF_FULL_SIZE"), reason="11 GB of memory and minutes of a core: set AF_FULL_SIZE=1"
)
def test_two_steps_of_every_stage(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {}
    for size in (256, 512):
        sizes[size] = tmp_path / f"{size}"
        few = ["--train", "1", "--val", "0", "--test", "0", "--seconds", "2.4", "--workers", "1"]
        assert main(["synth", "--out", str(sizes[size]), "--size", str(size), *few]) == 0
    vgg = [f"loss.distance.features.weights={untrained_vgg(tmp_path / 'vgg19.pth')}", "data.regions=null"]
    vgg += ["module.adversarial.start=0", "data.both_ways=false", "data.cache_gb=0"]
    first = train("vae_256", tmp_path / "vae256", f"data.root={sizes[256]}", *vgg)
    second = train("vae_512", tmp_path / "vae512", f"data.root={sizes[512]}", f"start={first}", *vgg)

    speech = tmp_path / "wav2vec2"
    with torch.random.fork_rng():
        transformers.Wav2Vec2Model(transformers.Wav2Vec2Config()).save_pretrained(speech)
    features = ["features=wav2vec2", f"features.checkpoint={speech}"]
    latents, teacher = tmp_path / "latents", tmp_path / "teacher"
    into = ["--data", str(sizes[512]), "--autoencoder", second, "--out", str(latents)]
    assert main(["encode", *into, *features]) == 0
    denoiser = train("denoiser_paper", tmp_path / "denoiser", f"data.root={latents}", *features)
    preferred = train("preference_paper", tmp_path / "preference", f"data.root={latents}", f"start={denoiser}")
    made = ["--data", str(latents), "--denoiser", preferred, "--guidance-user", "2", "--out", str(teacher)]
    assert main(["teacher", *made]) == 0
    train(
        "distill_paper", tmp_path / "student", f"data.root={latents}", f"data.teacher={teacher}", f"start={preferred}"
    )
