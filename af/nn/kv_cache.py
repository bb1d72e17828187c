"""Sizes of the rolling window and the explicit cache of self-attention keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from af.clock import FPS
from af.errors import UserError
from af.nn.rope import RotaryTable, rotate
from af.values import require_number

LONGEST_WINDOW: Final = 3600 * FPS


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of one attention layer. The last `room` frames are free, to be filled by a pass."""

    keys: Float[Tensor, "B H T C"]
    values: Float[Tensor, "B H T C"]
    room: int = 0


@dataclass(frozen=True)
class WindowLayout:
    """All sizes of a block roll-out, derived from four numbers (frames).

    The newest block is always at positions [block_position, window_frames); older frames have smaller positions. Only
    differences of positions and their place in a block matter, so positions never run out. Raises UserError when the
    numbers do not fit together.
    """

    block_frames: int
    look_ahead: int
    window_frames: int
    condition_reach: int

    def __post_init__(self) -> None:
        for name, frames in vars(self).items():
            least = 1 if name == "block_frames" else 0
            require_number(name, frames, least=least, most=LONGEST_WINDOW, whole=True)
        b, lookahead, n = self.block_frames, self.look_ahead, self.window_frames
        if lookahead > b:
            raise UserError(f"look_ahead: {lookahead} frames; it must lie between 0 and block_frames ({b})")
        if n < b + lookahead:
            raise UserError(f"window_frames: {n}; it must hold a block and its look-ahead ({b + lookahead})")

    @property
    def block_position(self) -> int:
        """Position of the first frame of the newest block."""
        return self.window_frames - self.block_frames

    @property
    def current_frames(self) -> int:
        """Frames evaluated per block: the clean offset and the block."""
        return self.look_ahead + self.block_frames

    @property
    def cached_frames(self) -> int:
        """Capacity of the self-attention cache."""
        return self.window_frames - self.current_frames


@dataclass(eq=False)
class RollingCache:
    """The newest `capacity` frames of keys (before rotation) and values of every self-attention layer.

    Keys are kept unrotated because positions are counted within the window, not from the start of the roll-out. The
    first `pinned` frames are never dropped (attention sinks, Xiao et al. 2023) and count towards the capacity.
    """

    capacity: int
    pinned: int = 0
    held: Float[Tensor, "R L 2 H T C"] | None = None  # keys and values

    def __post_init__(self) -> None:
        if not 0 <= self.pinned <= self.capacity:
            raise UserError(f"pinned frames (anchor.sink_frames): {self.pinned}; the cache holds {self.capacity}")

    @property
    def frames(self) -> int:
        """Number of frames held now."""
        return 0 if self.held is None else self.held.shape[-2]

    def append(self, layers: Sequence[KeysValues], *, drop_last: int = 0) -> None:
        """Add the frames of `layers` except the last `drop_last`, then drop the oldest beyond `capacity`."""
        added = stacked(layers)
        added = added[..., : added.shape[-2] - drop_last, :]
        whole = added if self.held is None else torch.cat((self.held, added), -2)
        forgotten = max(0, whole.shape[-2] - self.capacity)
        if forgotten and self.pinned:
            self.held = torch.cat((whole[..., : self.pinned, :], whole[..., self.pinned + forgotten :, :]), -2)
        else:  # a slice would keep the dropped frames alive (and, in a graph, their history)
            self.held = whole[..., forgotten:, :].contiguous()

    def pin(self, layers: Sequence[KeysValues]) -> None:
        """Replace the pinned frames by as many others."""
        assert self.held is not None
        self.held = torch.cat((stacked(layers), self.held[..., self.pinned :, :]), -2)

    def rotated(self, table: RotaryTable, room: int = 0) -> list[KeysValues] | None:
        """Values and rotated keys for attention; `table` has one row per held frame. None when the cache is empty.

        With `room` for the frames of a pass, later passes copy nothing but cannot be differentiated.
        """
        if self.held is None or self.frames == 0:
            return None
        keys, values = self.held.unbind(2)
        keys = rotate(keys, table)
        if room:
            keys, values = F.pad(keys, (0, 0, 0, room)), F.pad(values, (0, 0, 0, room))
        return [KeysValues(k, v, room) for k, v in zip(keys.unbind(1), values.unbind(1), strict=True)]


def stacked(layers: Sequence[KeysValues]) -> Float[Tensor, "R L 2 H T C"]:
    """Keys and values of all layers as one tensor."""
    return torch.stack([torch.stack((layer.keys, layer.values), 1) for layer in layers], 1)
