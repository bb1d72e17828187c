from __future__ import annotations

import pytest
import torch

from af.forcing.guidance import Guidance
from af.forcing.sampler import BlockSampler
from af.models.artifact import build
from af.models.released.denoiser import ReleasedSizes
from benchmarks import rollout
from benchmarks.released_scheme import ReleasedScheme


@pytest.fixture
def tiny(monkeypatch) -> None:
    sizes = ReleasedSizes(dim=6, hidden=32, depth=2, heads=2, condition_dim=8, condition_heads=2, audio_feature_dim=4)
    monkeypatch.setitem(rollout.SIZES, "tiny", sizes)


def test_what_is_compared_computes_the_same_motion(tiny) -> None:
    """The baseline is a slower way to the same result, past a full cache; and the table is complete."""
    result = rollout.measure("tiny", steps=2, repeats=6, users=3)
    single, half = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.bfloat16))
    bounds = {"eager": 256 * single, "fp32": 1024 * single, "bf16": 4 * half}  # roundings of a few dozen products
    for name, difference in result["relative_difference_from_released_scheme"].items():
        assert difference < bounds[name], name
    assert result["users"]["users"] == 3
    assert all(result["users"][precision]["share_of_matmul_peak"] > 0 for precision in ("fp32", "bf16"))
    for rows in result["latency"].values():
        for name, block in (("block_5", 5), ("block_10", 10), ("block_25", 25), ("bidirectional_75", 75)):
            assert rows[name]["waiting_worst_ms"] == 40 * block
            assert rows[name]["worst_ms"] > rows[name]["waiting_worst_ms"]
        times = rows["bidirectional_75"]["worst_ms"] / rows["block_10"]["worst_ms"]
        assert rows["block_10"]["times_better_worst"] == pytest.approx(times, rel=0.01)


def test_baseline_starts_the_same_with_single_blocks(tiny) -> None:
    generator = torch.Generator().manual_seed(0)
    denoiser = build(rollout.SIZES["tiny"].config()).eval()
    with torch.inference_mode():
        rollout.randomise(denoiser, generator)
        inputs = rollout.Inputs(denoiser, generator)
        reference = inputs.reference()
        ours = BlockSampler(denoiser, reference, steps=2)
        theirs = ReleasedScheme(denoiser, reference, 2, Guidance())
        for _ in range(8):
            block = inputs.block(10)
            torch.testing.assert_close(ours.step(*block), theirs.step(*block), atol=1e-5, rtol=1e-4)
