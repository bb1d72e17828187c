from __future__ import annotations

import pytest
import torch

from af.forcing.guidance import Guidance, branch_conditions, combine
from af.forcing.rollout import rollout
from af.types import Condition


def names(guidance: Guidance) -> list[tuple[bool, bool]]:
    return [(b.avatar, b.user) for b in guidance.branches()]


@pytest.mark.parametrize(
    ("guidance", "branches"),
    [
        (Guidance(), [(False, False), (True, False), (False, True)]),
        (Guidance(audio=1, user=0), [(True, False)]),
        (Guidance(audio=0, user=0), [(False, False)]),
        (Guidance(audio=2, user=0), [(False, False), (True, False)]),
        (Guidance(audio=0.9, user=0.1), [(True, False), (False, True)]),
        (Guidance.conditional(), [(True, True)]),
        (Guidance(audio=0, user=0, joint=2), [(False, False), (True, True)]),
    ],
)
def test_only_branches_with_a_share_are_evaluated(guidance: Guidance, branches: list[tuple[bool, bool]]) -> None:
    assert names(guidance) == branches
    assert sum(b.weight for b in guidance.branches()) == pytest.approx(1)


def test_combination_is_the_methods(generator: torch.Generator) -> None:
    none, audio, user = torch.randn(3, 2, 5, 4, generator=generator)
    got = combine(torch.cat((none, audio, user)), Guidance(audio=2.0, user=0.7).branches())
    torch.testing.assert_close(got, none + 2.0 * (audio - none) + 0.7 * (user - none))


def test_dropped_signals_are_zeros_in_their_branch(random_inputs) -> None:
    condition, _, _ = random_inputs(4, 0)
    batch = branch_conditions(condition, Guidance().branches())
    for rows, avatar, user in ((slice(0, 2), 0, 0), (slice(2, 4), 1, 0), (slice(4, 6), 0, 1)):
        assert torch.equal(batch.avatar_audio[rows], condition.avatar_audio * avatar)
        assert torch.equal(batch.user_audio[rows], condition.user_audio * user)
        assert torch.equal(batch.user_motion[rows], condition.user_motion * user)


def test_a_branch_without_the_user_is_a_roll_out_with_a_silent_user(small_denoiser, random_inputs) -> None:
    denoiser = small_denoiser()
    condition, reference, noise = random_inputs(9, 9)
    silent = Condition(
        condition.avatar_audio, torch.zeros_like(condition.user_audio), torch.zeros_like(condition.user_motion)
    )
    talking = rollout(denoiser, condition, reference, steps=2, guidance=Guidance(audio=1, user=0), noise=noise)
    plain = rollout(denoiser, silent, reference, steps=2, guidance=Guidance.conditional(), noise=noise)
    torch.testing.assert_close(talking, plain)
    both = rollout(denoiser, condition, reference, steps=2, guidance=Guidance.conditional(), noise=noise)
    assert not torch.allclose(both, plain, atol=1e-3)
