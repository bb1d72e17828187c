"""Attention masks: named rules on absolute (query, key) frame positions. True = may attend.

The same rules serve training, the offline roll-out, the live stream and the causal condition encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from jaxtyping import Bool, Int
from torch import Tensor

from af.errors import require_choice

MaskRule = Callable[[Tensor, Tensor, int, int], Tensor]
"""(query positions, key positions, block_frames, look_ahead), broadcast together -> boolean."""


def frame_causal(q: Tensor, k: Tensor, block_frames: int, look_ahead: int) -> Tensor:
    """k <= q: a frame sees itself and the past."""
    return k <= q


def block_causal(q: Tensor, k: Tensor, block_frames: int, look_ahead: int) -> Tensor:
    """blk(k) <= blk(q): a frame sees its whole block and the past."""
    return k // block_frames <= q // block_frames


def block_lookahead(q: Tensor, k: Tensor, block_frames: int, look_ahead: int) -> Tensor:
    """k < (blk(q) + 1)·B + l: a frame sees its whole block and l frames of the next one (paper, Fig. 3b)."""
    return k < (q // block_frames + 1) * block_frames + look_ahead


def frame_lookahead(q: Tensor, k: Tensor, block_frames: int, look_ahead: int) -> Tensor:
    """k <= q + l: what the released model computes, whatever the block size."""
    return k <= q + look_ahead


def bidirectional(q: Tensor, k: Tensor, block_frames: int, look_ahead: int) -> Tensor:
    """Every frame sees every frame (the non-causal baseline)."""
    return (k == k) & (q == q)


RULES: Final[dict[str, MaskRule]] = {
    rule.__name__: rule for rule in (frame_causal, block_causal, block_lookahead, frame_lookahead, bidirectional)
}


def mask_rule(name: str) -> MaskRule:
    """The rule called `name`. Raises UserError, naming the allowed rules, for any other name."""
    require_choice("mask", "rule", name, RULES)
    return RULES[name]


BLOCK_RULES: Final = ("block_causal", "block_lookahead")
"""The rules that depend on which block a frame is in."""


def attention_mask(
    name: str, q: Int[Tensor, " Q"], k: Int[Tensor, " K"], *, block_frames: int, look_ahead: int
) -> Bool[Tensor, "Q K"]:
    """Mask of rule `name` for query frames `q` and key frames `k` (absolute positions).

    Block rules count blocks from position 0. Raises UserError for an unknown name. Method §3.
    """
    return mask_rule(name)(q[:, None], k[None, :], block_frames, look_ahead)


def cross_window(q: Int[Tensor, " Q"], k: Int[Tensor, " K"], reach: int) -> Bool[Tensor, "Q K"]:
    """|k - q| <= reach: the sliding window of the cross-attention to the condition."""
    return (k[None, :] - q[:, None]).abs() <= reach
