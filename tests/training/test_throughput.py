"""Where a step's time goes adds up, and its products are counted without a trace in the result."""

from __future__ import annotations

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from af.training.flops import flops_of
from af.training.throughput import PHASES
from tests.training.test_resume import DENOISER, SHORT, same, train


def test_the_parts_of_a_batch_add_up(latents, tmp_path):
    words = [*DENOISER, *SHORT, f"data.root={latents}", "trainer.val_check_interval=7", "trainer.log_every_n_steps=1"]
    watched = ["callbacks.throughput.every_n_steps=3", "callbacks.throughput.peak_tflops=0.5"]
    assert train(words, tmp_path / "watched", *watched) == 0
    lines = [json.loads(line) for line in (tmp_path / "watched" / "throughput.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 7]  # the first batch counts products
    for line in lines:
        times = [line[f"throughput/ms/{name}"] for name in PHASES]
        assert all(t >= 0 for t in times)
        assert min(times[:4]) > 0
        assert sum(times) == pytest.approx(1000 / line["throughput/batches_per_second"], rel=1e-6)
        speed = line["flops_per_batch"] * line["throughput/batches_per_second"] / 1e9
        assert line["throughput/gflops_per_second"] == pytest.approx(speed)
        assert line["throughput/utilization"] == pytest.approx(speed / 500)
    events = EventAccumulator(str(tmp_path / "watched" / "tensorboard")).Reload()
    assert {"throughput/ms/backward", "throughput/utilization", "grad_norm/blocks"} <= set(events.Tags()["scalars"])
    assert train(words, tmp_path / "alone", "~callbacks.throughput", "~callbacks.gradients") == 0
    assert same(tmp_path / "watched", tmp_path / "alone")


def test_a_step_of_a_linear_network_has_three_products():
    """Forward, and two in the backward pass but for the first layer's input."""
    from types import SimpleNamespace

    from torch import nn

    from af.training.throughput import Throughput

    module = SimpleNamespace(device=torch.device("cpu"), modules=lambda: iter([nn.Identity()]))
    watch, network = Throughput(), nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    watch.on_train_start(None, module)
    watch.on_train_batch_start(SimpleNamespace(world_size=1), module, None, 0)
    network(torch.ones(5, 8)).sum().backward()
    watch.on_train_batch_end(None, module, None, SimpleNamespace(x=torch.ones(5, 1)), 0)
    assert watch.flops == 2 * 5 * (2 * 8 * 16 + 3 * 16 * 4)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_operations_of_products_are_counted_in_every_mode(mode):
    layer, convolution = torch.nn.Linear(64, 32), torch.nn.Conv2d(3, 8, 3)

    def work():
        layer(torch.ones(5, 64))
        convolution(torch.ones(1, 3, 9, 9))

    with mode():
        assert flops_of(work) == 2 * 5 * 64 * 32 + 2 * 49 * 8 * 27
