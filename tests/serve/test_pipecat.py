"""The avatar in Pipecat's own test pipeline."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pipecat")
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InputImageRawFrame,
    InterruptionFrame,
    OutputImageRawFrame,
    OutputTransportReadyFrame,
    SpeechOutputAudioRawFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.tests.utils import SleepFrame, run_test

from af.clock import FRAME_MS, SAMPLES_PER_FRAME
from af.data.container import probe
from af.errors import UserError
from af.forcing.guidance import Guidance
from af.pipeline.avatar import Avatar
from af.serve import camera
from af.serve.limits import Limits
from af.serve.pipecat import AvatarVideoService
from af.serve.service import Service
from af.serve.settings import Settings
from tests.toy_avatar import SIZE, recording

BLOCK, RATE = 5, 24_000
READY = OutputTransportReadyFrame()


@pytest.fixture
def service(avatar: Avatar):
    settings = Settings({"steps": 1, "guidance": Guidance(audio=1, user=0)})
    service = Service(avatar, recording()["user_frames"][0], settings, Limits(conversations=1))
    yield service
    service.stop()


def said(seconds: float, piece_s: float = 0.02) -> list[Frame]:
    """A tone as a TTS sends it: in small pieces, all at once."""
    tone = (8000 * np.sin(np.arange(round(seconds * RATE)) * 0.3)).astype("<i2")
    pieces = np.split(tone, range(round(piece_s * RATE), len(tone), round(piece_s * RATE)))
    return [TTSStartedFrame(), *(TTSAudioRawFrame(p.tobytes(), RATE, 1) for p in pieces), TTSStoppedFrame()]


def until(condition: Callable[[], Any]) -> Iterator[Frame]:
    """Wait, however busy the machine is."""
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        yield SleepFrame(0.02)
    assert condition()


def played(video: AvatarVideoService, frames: Iterable[Frame]) -> tuple[list[Any], list[Any]]:
    down, up = asyncio.run(asyncio.wait_for(run_test(video, frames_to_send=frames, start_timeout=20), 60))
    return list(down), list(up)


def loud(frames: Sequence[Any]) -> np.ndarray:
    """Whether each output audio frame holds the tone."""
    voices = [np.frombuffer(f.audio, "<i2") for f in frames if isinstance(f, SpeechOutputAudioRawFrame)]
    return np.array([np.abs(voice.astype(int)).max() > 1000 for voice in voices])


def test_speech_becomes_images_and_voice_of_one_clock_and_is_said_to_its_end(service: Service) -> None:
    """In pairs of 40 ms, without a gap, and the face moves before and after, too."""
    video = AvatarVideoService(service, user="puppet")
    down, up = played(video, chain([READY], until(lambda: video.conversation.stream.frames >= 2 * BLOCK), said(0.6)))
    assert not [frame for frame in up if isinstance(frame, ErrorFrame)]
    assert not [frame for frame in down if isinstance(frame, (TTSAudioRawFrame, TTSStoppedFrame))]
    images = [frame for frame in down if isinstance(frame, OutputImageRawFrame)]
    voices = [frame for frame in down if isinstance(frame, SpeechOutputAudioRawFrame)]
    assert [frame.pts for frame in images] == [frame.pts for frame in voices]
    steps = np.diff([frame.pts for frame in images]) / (FRAME_MS * 1_000_000)
    np.testing.assert_array_equal(steps, np.maximum(1, np.round(steps)))  # a busy machine leaves silent ones out
    assert {(frame.size, frame.format, len(frame.image)) for frame in images} == {((SIZE, SIZE), "RGB", 3 * SIZE**2)}
    assert {(frame.sample_rate, frame.num_frames) for frame in voices} == {(16_000, SAMPLES_PER_FRAME)}
    heard = loud(voices)
    assert heard.sum() in (15, 16)
    assert np.diff(np.flatnonzero(heard)).max() == 1
    silent = [np.frombuffer(image.image, np.uint8) for image, voiced in zip(images, heard, strict=True) if not voiced]
    assert len(silent) >= BLOCK
    assert np.std(silent, axis=0).max() > 0
    assert not service.conversations


def test_an_interruption_is_honoured_within_a_block_and_the_motion_goes_on(service: Service) -> None:
    video = AvatarVideoService(service, user="puppet")
    first, last = (until(lambda frames=frames: video._played >= frames) for frames in (4 * BLOCK, 8 * BLOCK))
    down, _ = played(video, chain([READY], said(20), first, [InterruptionFrame()], last))
    at = next(n for n, frame in enumerate(down) if isinstance(frame, InterruptionFrame))
    before, after = loud(down[:at]), loud(down[at:])
    assert before.any()
    assert len(after) > BLOCK + 2
    assert not after[BLOCK + 2 :].any()  # two were on their way
    steps = np.diff([frame.pts for frame in down if isinstance(frame, OutputImageRawFrame)]) / (FRAME_MS * 1_000_000)
    np.testing.assert_array_equal(steps, np.maximum(1, np.round(steps)))  # a busy machine leaves silent ones out


def test_without_a_place_the_voice_passes_and_the_error_is_said(service: Service) -> None:
    service.open()
    video = AvatarVideoService(service)
    words = said(0.1)
    down, up = played(video, [READY, *words])
    assert [frame for frame in down if isinstance(frame, TTSAudioRawFrame)] == words[1:-1]
    (error,) = (frame for frame in up if isinstance(frame, ErrorFrame))
    assert "all 1 places are taken" in error.error
    assert not video.is_usable


def test_the_user_is_heard_and_once_a_face_is_found_seen(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []

    class Cropper:
        def __init__(self, size: int) -> None:
            assert size == SIZE

        def __call__(self, image: np.ndarray) -> np.ndarray | None:
            conversation = video.conversation
            seen.append((conversation.settings.signals.user_motion, bool((conversation.view == 200).all())))
            assert image.shape == (48, 64, 3)
            return image[:SIZE, :SIZE] if image.any() else None

    monkeypatch.setattr(camera, "FaceCropper", Cropper)
    video = AvatarVideoService(service)
    sound = np.full((4800, 2), 3000, "<i2").tobytes()
    dark, bright = (
        InputImageRawFrame(np.full((48, 64, 3), level, np.uint8).tobytes(), (64, 48), "RGB") for level in (0, 200)
    )
    looks = chain(
        [dark],
        until(lambda: len(seen) == 1),
        [SleepFrame(0.1), bright],
        until(lambda: len(seen) == 2 and (video.conversation.view == 200).all()),
        [SleepFrame(0.1), bright],
        until(lambda: len(seen) == 3),
        [SleepFrame(0.1), InputImageRawFrame(b"", (9, 9), "YUV420p")],
        until(lambda: video.conversation.user == "puppet"),
    )
    heard = InputAudioRawFrame(sound, 48_000, 2)
    down, up = played(video, chain([READY, heard], looks, [SleepFrame(0.1)]))
    assert seen == [(False, False), (False, False), (True, True)]
    assert [frame for frame in down if isinstance(frame, InputAudioRawFrame)] == [heard]
    (error,) = (frame for frame in up if isinstance(frame, ErrorFrame))
    assert "cannot see the user: an image of the format YUV420p" in error.error
    assert video.is_usable


def test_a_conversation_that_ends_is_an_error(service: Service) -> None:
    video = AvatarVideoService(service, user="puppet")

    async def main() -> list[Any]:
        async def end() -> None:
            while not service.conversations:
                await asyncio.sleep(0.01)
            service.conversations[0].later(lambda: (_ for _ in ()).throw(UserError("broken")))

        ending = asyncio.create_task(end())
        frames = chain([READY], until(lambda: video.conversation.closed), [SleepFrame(0.1)])
        _, up = await run_test(video, frames_to_send=frames, start_timeout=20)
        await ending
        return list(up)

    (error,) = (frame for frame in asyncio.run(main()) if isinstance(frame, ErrorFrame))
    assert error.error == "the avatar has ended: broken"


@pytest.mark.slow  # a script of 17 seconds
def test_the_example_films_its_script(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "docs" / "pipecat_agent.py"
    subprocess.run([sys.executable, script, "--out", str(tmp_path / "agent.mp4")], check=True, timeout=300)
    film = probe(tmp_path / "agent.mp4")
    assert film.video_s is not None
    assert film.video_s > 5
    assert film.has_audio
