from __future__ import annotations

import pytest
import torch

from af.forcing.anchor import Anchor
from af.forcing.batching import commit_batch, step_batch
from af.forcing.guidance import Guidance
from af.forcing.sampler import BlockSampler

BLOCKS = 9


@pytest.mark.parametrize("causal_condition", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"guidance": Guidance.conditional()}, {"anchor": Anchor(sink_frames=1, pull=0.3)}, {"dead_band": 0.3}],
)
def test_roll_outs_that_started_at_different_times_are_what_they_are_alone(
    small_denoiser, random_inputs, causal_condition: bool, options: dict
) -> None:
    denoiser = small_denoiser(causal_condition=causal_condition, look_ahead=2)
    starts, batches = (0, 0, 1, 5), (1, 2, 1, 1)
    inputs = [random_inputs(3 * BLOCKS, 3 * BLOCKS, batch=b, seed=i) for i, b in enumerate(batches)]
    alone, together = (
        [BlockSampler(denoiser, reference, steps=2, **options) for _, reference, _ in inputs] for _ in range(2)
    )
    with torch.no_grad():
        for turn in range(BLOCKS):
            active = [i for i, start in enumerate(starts) if start <= turn]
            blocks = []
            for i in active:
                condition, _, noise = inputs[i]
                n = 3 * (turn - starts[i])
                blocks.append((condition.window(n, n + 3), noise[:, n : n + 3]))
            got = step_batch([together[i] for i in active], [c for c, _ in blocks], [n for _, n in blocks])
            if turn % 2:  # otherwise the next step commits
                commit_batch([together[i] for i in active])
            for i, motion, (condition, noise) in zip(active, got, blocks, strict=True):
                torch.testing.assert_close(motion, alone[i].step(condition, noise))
    assert [s.frames for s in together] == [s.frames for s in alone]


def test_states_that_fit_take_one_pass(small_denoiser, random_inputs, monkeypatch) -> None:
    """Samplers with full caches go together whatever their age; others, and other settings, by themselves."""
    denoiser = small_denoiser()
    condition, reference, noise = random_inputs(3, 3, batch=1)
    samplers = [BlockSampler(denoiser, reference, steps=s) for s in (2, 2, 2, 3)]
    with torch.no_grad():
        for sampler, age in zip(samplers, (6, 9, 1, 6), strict=True):
            for _ in range(age):
                sampler.step(condition, noise)
                sampler.commit()
        rows = []
        velocity = denoiser.velocity
        monkeypatch.setattr(denoiser, "velocity", lambda x, *rest: rows.append(x.shape[0]) or velocity(x, *rest))
        step_batch(samplers, [condition] * 4, [noise] * 4)
    assert rows == [2, 2, 1, 1, 1, 1, 1]
