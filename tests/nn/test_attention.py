"""Attention: its precision."""

from __future__ import annotations

import torch

from af.nn.attention import attention


def test_attention_stays_single_under_autocast_on_a_cpu(generator):
    """Where torch's backward pass in bf16 takes five times as long."""
    q, k, v = (torch.randn(2, 2, 6, 4, generator=generator, requires_grad=True) for _ in range(3))
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    exact = attention(q, k, v, mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(q, k, v, mask)
        halved = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    assert found.equal(exact)
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, exact, atol=0.03, rtol=0)
    packed = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)  # without autocast weights are packed in bf16
    assert packed.dtype == torch.bfloat16
