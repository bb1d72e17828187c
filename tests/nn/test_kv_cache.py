from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from af.errors import UserError
from af.nn.kv_cache import KeysValues, RollingCache, WindowLayout
from af.nn.rope import rotary_table, rotate


def test_paper_sizes() -> None:
    layout = WindowLayout(block_frames=10, look_ahead=2, window_frames=50, condition_reach=2)
    assert (layout.current_frames, layout.cached_frames, layout.block_position) == (12, 38, 40)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((0, 0, 50, 2), "block_frames"), ((10, 11, 50, 2), "look_ahead"),
     ((10, 2, 10, 2), "hold a block"), ((10, 2, 50, -1), "condition_reach")],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_named(sizes: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WindowLayout(*sizes)


def layers(start: int, frames: int) -> list[KeysValues]:
    values = torch.arange(start, start + frames, dtype=torch.float32)[None, None, :, None].expand(2, 3, -1, 4)
    return [KeysValues(values + 1000 * i, -values - 1000 * i) for i in range(2)]


@given(st.integers(0, 9), st.integers(0, 3), st.integers(1, 6))
def test_keeps_the_newest_frames_and_drops_the_unfinished_ones(capacity: int, drop: int, rounds: int) -> None:
    cache, written = RollingCache(capacity), []
    for i in range(rounds):
        cache.append(layers(5 * i, 5), drop_last=drop)
        written += range(5 * i, 5 * i + 5 - drop)
    kept = written[len(written) - min(capacity, len(written)) :]
    assert cache.frames == len(kept)
    held = cache.rotated(rotary_table(torch.zeros(len(kept), dtype=torch.long), 4))
    if not kept:
        assert held is None
        return
    for i, layer in enumerate(held):
        assert layer.keys[0, 0, :, 0].tolist() == [k + 1000 * i for k in kept]
        assert layer.values[1, 2, :, 3].tolist() == [-k - 1000 * i for k in kept]
    assert cache.held.untyped_storage().nbytes() == 2 * 2 * 2 * 3 * len(kept) * 4 * 4


def test_pinned_frames_are_never_forgotten() -> None:
    cache = RollingCache(6, pinned=2)
    for start in (0, 5, 10):
        cache.append(layers(start, 5), drop_last=1)
    (held, _) = cache.rotated(rotary_table(torch.zeros(6, dtype=torch.long), 4))
    assert held.keys[0, 0, :, 0].tolist() == [0, 1, 10, 11, 12, 13]
    with pytest.raises(UserError, match=r"sink_frames\): 7; the cache holds 6"):
        RollingCache(6, pinned=7)


def test_room_for_the_frames_of_a_pass() -> None:
    cache = RollingCache(5)
    cache.append(layers(0, 5))
    table = rotary_table(torch.arange(5), 4)
    for plain, roomy in zip(cache.rotated(table), cache.rotated(table, room=3), strict=True):
        assert roomy.keys.shape[2] == 8
        assert torch.equal(roomy.keys[:, :, :5], plain.keys)
        assert torch.equal(roomy.values[:, :, :5], plain.values)


def test_keys_turn_values_do_not(generator: torch.Generator) -> None:
    keys, values = torch.randn(2, 1, 1, 5, 4, generator=generator)
    cache = RollingCache(5)
    cache.append([KeysValues(keys, values)])
    table = rotary_table(torch.arange(3, 8), 4)
    (held,) = cache.rotated(table)
    assert torch.equal(held.keys, rotate(keys, table))
    assert torch.equal(held.values, values)
