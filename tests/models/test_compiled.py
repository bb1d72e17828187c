"""The denoiser as `torch.compile` sees it: one graph, compiled once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from af.forcing.dropout import ConditionDropout
from af.forcing.histories import GuessedHistories
from af.forcing.noise import FlowTimes
from af.losses.velocity import VelocityLoss
from af.models.artifact import build
from af.training.denoiser import DenoiserModule, draw_drops
from af.training.randomness import Draws, step_generator
from af.types import Condition, DyadBatch
from tests.conftest import DENOISER

B, T = 3, 20


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def denoiser(**changed):
    made = build({**DENOISER, **changed})
    made.motion_space.fitted = True
    return made


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_denoiser_is_one_graph(precision):
    model = denoiser()
    width = model.condition_encoder.out.in_features
    condition = Condition(torch.randn(B, T, width), torch.randn(B, T, width), torch.randn(B, T, model.dim))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        found = torch._dynamo.explain(model)(
            torch.randn(B, T, model.dim), torch.rand(B, T), condition, torch.randn(B, model.dim)
        )
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


@pytest.mark.parametrize("levels", ["independent", "each", "last"])
def test_drops_and_windows_of_any_length_compile_nothing_again(levels):
    model = denoiser(look_ahead=0) if levels == "each" else denoiser()
    compiled: list[int] = []

    def backend(graph, inputs):
        compiled.append(len(compiled))
        return graph.forward

    flow_times = FlowTimes(5, levels=levels, start_share=0.5)
    dropout = ConditionDropout(0.5, 0.5, 0.5, 0.5, user=0.2, everything=0.2)
    histories = GuessedHistories(5) if levels == "each" else None
    module = DenoiserModule(model, flow_times=flow_times, loss=VelocityLoss("l2"), dropout=dropout, histories=histories)
    module.compile_networks(backend=backend)
    latent, audio = model.latent_dim, model.audio_feature_dim
    whole = DyadBatch(
        *(torch.randn(B, T, width) for width in (latent, audio, latent, audio)),
        torch.randn(B, latent),
        torch.ones(B, T, dtype=torch.bool),
    )
    lengths, graphs = set(), []
    for step in range(12):
        draws = Draws(step_generator(0, step), B)
        batch = module.cut(replace(whole, avatar_motion=torch.randn(B, T, latent)), draws)
        module.velocity_losses(batch, draws, draw_drops(module.dropout, batch, draws))[0].mean().backward()
        lengths.add(batch.valid.shape[1])
        graphs.append(len(compiled))
    assert len(lengths) == (4 if levels == "last" else 1)
    assert graphs[0] > 0
    assert graphs[-1] == graphs[0], graphs
