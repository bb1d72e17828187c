"""Latency from a change in the user's signal to the first frame that can show it, and speed relative to real time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from af.clock import FRAME_MS, frames_to_seconds


@dataclass(frozen=True)
class Latency:
    """Milliseconds from a change in the user's signal to the first frame that shows it."""

    mean_ms: float
    worst_ms: float
    waiting_mean_ms: float
    waiting_worst_ms: float
    computing_mean_ms: float
    computing_worst_ms: float


def waiting_frames(block: int, look_ahead: int = 0, audio_right_context: int = 0) -> tuple[float, int]:
    """Frames of input that a system awaits before the first frame that can show a change: (mean, worst).

    A block is computed when its last frame has arrived, plus `audio_right_context` frames of audio and `look_ahead`
    frames that the system holds back (this project's roll-out holds back none). A change at frame j of a block, j = 0 …
    block − 1, waits block − j more frames.
    """
    fixed = look_ahead + audio_right_context
    return (block + 1) / 2 + fixed, block + fixed


def latency(
    block: int,
    computing_ms: Sequence[float],
    look_ahead: int = 0,
    audio_right_context: int = 0,
) -> Latency:
    """Latency of a running system: waiting time (see `waiting_frames`) plus measured computing time per block.

    `computing_ms`: time in ms from the arrival of a block's last input to its first frame, per block; with audio
    features for `latency`, without them for `latency/motion_only` (the paper's figure).
    """
    times = np.asarray(computing_ms, np.float64)
    if times.size == 0:
        raise ValueError("latency needs at least one measured block")
    mean, worst = (f * FRAME_MS for f in waiting_frames(block, look_ahead, audio_right_context))
    return Latency(
        mean + float(times.mean()), worst + float(times.max()), mean, worst, float(times.mean()), float(times.max())
    )


def real_time_factor(compute_s: Mapping[str, float], frames: int) -> dict[str, float]:
    """`speed/rtf` per stage and in total: computing time over media time; below 1 is faster than real time."""
    media_s = frames_to_seconds(frames)
    if media_s <= 0:
        raise ValueError("real_time_factor needs at least one frame")
    factors = {f"speed/rtf/{stage}": seconds / media_s for stage, seconds in compute_s.items()}
    return factors | {"speed/rtf": sum(compute_s.values()) / media_s}
