from __future__ import annotations

import pytest

from af.cli import bench_rollout
from af.models.released import ReleasedSizes


@pytest.fixture
def tiny(monkeypatch) -> None:
    sizes = ReleasedSizes(dim=6, hidden=32, depth=2, heads=2, condition_dim=8, condition_heads=2, audio_feature_dim=4)
    monkeypatch.setitem(bench_rollout.SIZES, "tiny", sizes)


def test_baseline_computes_the_same_motion(tiny) -> None:
    """What is compared with is a slower way to the same result, past a full cache."""
    result = bench_rollout.bench("tiny", steps=2, repeats=6)
    assert result["relative_difference_from_released_scheme"] < 1e-5
    assert result["seconds_per_block"] > 0
    assert 0 < result["share_of_matmul_peak"] < 1


def test_baseline_starts_the_same_with_single_blocks(tiny) -> None:
    import torch

    from af.forcing.guidance import Guidance
    from af.forcing.rollout import BlockSampler
    from af.models.artifact import build

    generator = torch.Generator().manual_seed(0)
    denoiser = build(bench_rollout.SIZES["tiny"].config()).eval()
    with torch.inference_mode():
        bench_rollout._randomise(denoiser, generator)
        inputs = bench_rollout._Inputs(denoiser, generator)
        reference = inputs.reference()
        ours = BlockSampler(denoiser, reference, steps=2)
        theirs = bench_rollout.ReleasedScheme(denoiser, reference, 2, Guidance())
        for _ in range(8):
            block = inputs.block(10)
            torch.testing.assert_close(ours.step(*block), theirs.step(*block), atol=1e-5, rtol=1e-4)
