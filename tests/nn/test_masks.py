from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from af.errors import UserError
from af.nn.masks import RULES, attention_mask, cross_window, mask_rule

sizes = st.tuples(st.integers(1, 12), st.integers(0, 6), st.integers(1, 60))


def square(name: str, block: int, look_ahead: int, frames: int) -> torch.Tensor:
    positions = torch.arange(frames)
    return attention_mask(name, positions, positions, block_frames=block, look_ahead=look_ahead)


@given(sizes)
def test_rules_say_what_the_method_says(size: tuple[int, int, int]) -> None:
    block, look_ahead, frames = size
    expected = {
        "frame_causal": lambda q, k: k <= q,
        "block_causal": lambda q, k: k // block <= q // block,
        "block_lookahead": lambda q, k: k < (q // block + 1) * block + look_ahead,
        "frame_lookahead": lambda q, k: k <= q + look_ahead,
        "bidirectional": lambda q, k: True,
    }
    assert set(expected) == set(RULES)
    for name, rule in expected.items():
        table = torch.tensor([[rule(q, k) for k in range(frames)] for q in range(frames)])
        assert torch.equal(square(name, block, look_ahead, frames), table), name


@given(sizes, st.integers(0, 5), st.sampled_from(sorted(RULES)))
def test_rules_do_not_change_when_everything_moves_by_whole_blocks(size, blocks: int, name: str) -> None:
    block, look_ahead, frames = size
    positions = torch.arange(frames) - blocks * block
    moved = attention_mask(name, positions, positions, block_frames=block, look_ahead=look_ahead)
    assert torch.equal(moved, square(name, block, look_ahead, frames))


@given(sizes, st.sampled_from(sorted(RULES)))
def test_every_frame_sees_itself(size, name: str) -> None:
    assert square(name, *size).diagonal().all()


def test_block_lookahead_is_block_causal_without_look_ahead() -> None:
    assert torch.equal(square("block_lookahead", 5, 0, 20), square("block_causal", 5, 0, 20))


@given(st.integers(0, 4), st.integers(1, 20))
def test_cross_window_is_a_band(reach: int, frames: int) -> None:
    positions = torch.arange(frames)
    mask = cross_window(positions, positions, reach)
    assert torch.equal(mask, torch.ones(frames, frames).tril(reach).triu(-reach).bool())


def test_unknown_rule_names_what_is_allowed() -> None:
    with pytest.raises(UserError, match=r"'causal'.*frame_causal.*bidirectional"):
        mask_rule("causal")
