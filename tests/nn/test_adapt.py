"""An adapted network starts as the trained one, changes in the chosen layers alone, and becomes an ordinary one again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from af.errors import UserError
from af.nn.adapt import Adaptation, changes, merge
from af.types import Condition
from tests.conftest import AUTOENCODER, DENOISER


def autoencoder() -> tuple[nn.Module, Tensor]:
    from af.models.registry import build

    model = build({**AUTOENCODER, "image_size": 16, "normalised": True, "paint": True})
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        for parameter in model.parameters():  # flows start at zero
            if not parameter.any():
                nn.init.normal_(parameter, std=0.3)
        model(images, images.flip(0))  # statistics of the encoder's norms
    return model, lambda network: network(images, images.flip(0)).image


def denoiser():
    from af.models.registry import build

    model = build(DENOISER)
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    noisy, times, vectors = torch.randn(2, 20, 6), torch.rand(2, 20), torch.randn(2, 20, 16)
    condition = Condition(vectors, vectors.flip(0), noisy.flip(1))
    return model, lambda network: network(noisy, times, condition, noisy[:, 0])


CASES = {
    "decoder": (autoencoder, ["decoder.*"], 2),
    "encoder and decoder": (autoencoder, ["encoder.*", "decoder.*"], 2),
    "last level": (autoencoder, ["decoder.levels.16.*"], None),
    "blocks": (denoiser, ["blocks.*"], 2),
    "head": (denoiser, ["head.*"], None),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    make, layers, rank = CASES[request.param]
    model, run = make()
    return model.eval(), run, Adaptation(layers, rank)


def trained(model: nn.Module, run, steps: int = 3) -> None:
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        run(model).square().mean().backward()
        optimiser.step()


def test_it_starts_bit_for_bit_as_the_trained_network(case):
    model, run, adaptation = case
    before = run(model)
    assert torch.equal(run(adaptation(copy.deepcopy(model))), before)


def test_only_the_chosen_layers_learn_and_all_of_them_do(case):
    model, run, adaptation = case
    start = {name: value.clone() for name, value in model.state_dict().items()}
    before, adapted = run(model), adaptation(copy.deepcopy(model))
    trained(adapted, run)
    assert all((p.grad is not None) == p.requires_grad for p in adapted.parameters())
    assert not torch.equal(run(adapted), before)
    found = merge(adapted).state_dict()
    assert found.keys() == start.keys()
    chosen = tuple(pattern.removesuffix("*") for pattern in adaptation.layers)
    moved = {name for name in start if not torch.equal(found[name], start[name])}
    assert moved == {name for name, _ in model.named_parameters() if name.startswith(chosen)}


def test_what_is_learnt_is_in_the_changes_and_merging_changes_nothing(case):
    model, run, adaptation = case
    one, other = adaptation(copy.deepcopy(model)), adaptation(copy.deepcopy(model))
    trained(one, run)
    learnt = changes(one)
    assert sum(v.numel() for v in learnt.values()) < sum(p.numel() for p in model.parameters())
    other.load_state_dict(learnt, strict=False)
    assert torch.equal(run(other), run(one))
    assert torch.equal(run(merge(other)), run(one))
    assert all(p.requires_grad for p in other.parameters())


def test_a_step_is_a_share_of_the_weights_whatever_their_size():
    moved = []
    for size in (0.01, 100.0):
        torch.manual_seed(0)
        layer = nn.Linear(32, 32, bias=False)
        nn.init.normal_(layer.weight, std=size)
        start = layer.weight.detach().clone()
        adapted = Adaptation(["weight"], 4)(layer)
        adapted(torch.ones(1, 32)).sum().backward()
        torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.01).step()
        moved.append(((merge(adapted).weight - start).square().mean().sqrt() / start.square().mean().sqrt()).item())
    assert moved[0] == pytest.approx(moved[1], rel=1e-3)
    assert 0.002 < moved[0] < 0.05  # the learning rate, about


def test_a_rank_that_saves_nothing_trains_the_weight_itself():
    layer = Adaptation(["*"], 4)(nn.Linear(8, 8))
    assert {n for n, p in layer.named_parameters() if p.requires_grad} == {"weight", "bias"}


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match=r"'decodr\.\*'; it has .*decoder\.constant"):
        Adaptation(["decodr.*"])(autoencoder()[0])
    for layers, rank in (([], 1), ("decoder.*", 1), ([1], 1), (["*"], 0), (["*"], 1.5)):
        with pytest.raises(ValueError, match=r"layers|rank"):
            Adaptation(layers, rank)
