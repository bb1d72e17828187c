"""compile compiles what a training step computes, in every recipe: not only what happens to be `__call__`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo

from af.cli.config import compose, instantiate, resolve
from af.models.perceptual import VGG19_LAYERS
from af.training.flops import FlopCounter
from tests.training.test_resume import DENOISER, VAE, train

ONE_STEP = [
    "data.batch_size=4",
    "data.workers=0",
    "trainer.max_steps=1",
    "trainer.val_check_interval=1",
    "trainer.precision=32-true",
]
#: Counting the products of a step runs it without what is compiled.
QUIET = ["~callbacks.throughput", "checkpoints.every_n_steps=1"]


class Forward(FlopCounter):
    """FlopCounter of forward passes alone."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch._C._current_graph_task_id() == -1:
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


COUNTED = Forward()


@torch._dynamo.register_backend(name="counted")
def _counted(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
    """Runs the graphs it is given as they are, and counts in them."""

    def run(*values):
        with COUNTED:
            return graph.forward(*values)

    return run


@pytest.fixture
def counted() -> Iterator[Forward]:
    """What the backend `counted` has counted."""
    torch._dynamo.reset()
    yield COUNTED
    torch._dynamo.reset()


@pytest.fixture
def vgg(tmp_path):
    """VGG19 of constants, as a file."""
    state = {}
    for index, inputs, outputs in filter(None, VGG19_LAYERS):
        state[f"features.{index}.weight"] = torch.full((1, 1, 1, 1), 0.01).expand(outputs, inputs, 3, 3)
        state[f"features.{index}.bias"] = torch.zeros(outputs)
    torch.save(state, tmp_path / "vgg19.pth")
    return tmp_path / "vgg19.pth"


SLOW = ("vae lia", "preference", "preference on line", "distill")


@pytest.fixture(params=["vae", "denoiser", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def arguments(request, dyads, latents, losers, teacher, denoiser_folder, vgg) -> list[str]:
    lia = [
        "loss/reconstruction@loss=lia",
        "+loss.guide=0.3",
        "+loss.face={_target_: af.losses.reconstruction.FaceGuide, parameters: 13}",
        "+loss.distance.scales=[1.0]",
        f"loss.distance.features.weights={vgg}",
        "module.adversarial={_target_: af.losses.adversarial.AdversarialLoss, r1: 0}",
        "module.discriminator={_target_: af.models.discriminator.Discriminator, image_size: 32, channel_base: 128, max_channels: 16}",
    ]
    preference = ["experiment=preference_demo", "scheme=forcing", f"start={denoiser_folder}"]
    shards = [f"data.losers={losers}", "module.online=null"]
    stages = {
        "vae": (VAE, dyads),
        "vae lia": ([*VAE, *lia], dyads),
        "denoiser": (DENOISER, latents),
        "preference": ([*preference, *shards], latents),
        "preference on line": (preference, latents),
        "distill": (
            ["experiment=distill_demo", "scheme=forcing", f"start={denoiser_folder}", f"data.teacher={teacher}"],
            latents,
        ),
    }
    stage, root = stages[request.param]
    return [*stage, *ONE_STEP, *QUIET, f"data.root={root}"]


def test_nearly_all_products_of_a_step_are_compiled(arguments, counted, tmp_path, monkeypatch):
    cls = type(instantiate(resolve(compose("train", [*arguments, f"run={tmp_path}"]))["module"]))
    original, everything, compiled = cls.training_step, Forward(), []

    def whole(self, batch, batch_idx):
        with everything:
            return original(self, batch, batch_idx)

    def alone(self, batch, batch_idx):
        counted.flops = 0
        result = original(self, batch, batch_idx)
        compiled.append(counted.flops)
        return result

    monkeypatch.setattr(cls, "training_step", whole)
    assert train(arguments, tmp_path / "plain") == 0
    monkeypatch.setattr(cls, "training_step", alone)
    assert train(arguments, tmp_path / "compiled", "compile=counted") == 0
    assert compiled[0] > 0.95 * everything.flops > 0
