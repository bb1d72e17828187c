"""The one clock: 25 video frames and 16,000 audio samples per second, exactly 640 samples per frame.

Every conversion between frames, samples and seconds goes through this module; no other file repeats these numbers.
"""

from __future__ import annotations

from typing import Final

FPS: Final = 25
SAMPLE_RATE: Final = 16_000
SAMPLES_PER_FRAME: Final = SAMPLE_RATE // FPS
FRAME_MS: Final = 1000 / FPS


def frames_to_samples(frames: int) -> int:
    """Number of audio samples in `frames` video frames."""
    return frames * SAMPLES_PER_FRAME


def samples_to_frames(samples: int) -> int:
    """Number of whole video frames in `samples` audio samples."""
    return samples // SAMPLES_PER_FRAME


def seconds_to_frames(seconds: float) -> int:
    """Nearest number of video frames to `seconds`."""
    return round(seconds * FPS)


def seconds_to_samples(seconds: float) -> int:
    """Nearest number of audio samples to `seconds`."""
    return round(seconds * SAMPLE_RATE)


def frames_to_seconds(frames: float) -> float:
    """Duration of `frames` video frames in seconds."""
    return frames / FPS


def samples_to_seconds(samples: float) -> float:
    """Duration of `samples` audio samples in seconds."""
    return samples / SAMPLE_RATE
