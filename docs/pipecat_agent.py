"""A voice agent with a face, by Pipecat: a scripted one, which needs no network and records what its user would see.

  python docs/pipecat_agent.py --out agent.mp4                                                # the avatar of the package
  python docs/pipecat_agent.py --autoencoder runs/demo/vae/export --denoiser runs/demo/denoiser/export --out agent.mp4

The agent speaks, its user smiles and then interrupts. In a real agent a transport, speech recognition, a language model
and text-to-speech stand around the avatar in the same order, and the user is their camera's ("camera"):

  Pipeline([transport.input(), stt, user_turns, llm, tts, AvatarVideoService(service), transport.output(), agent_turns])
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import numpy as np
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    OutputImageRawFrame,
    OutputTransportReadyFrame,
    SpeechOutputAudioRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

from af import Avatar
from af.clock import SAMPLE_RATE, SAMPLES_PER_FRAME, seconds_to_frames
from af.data.video_writer import require_video_name, write_video
from af.pipeline.side_by_side import side_by_side
from af.serve.pipecat import AvatarVideoService
from af.serve.protocol import from_pcm, pcm
from af.serve.puppet import portrait
from af.serve.service import Service
from af.serve.settings import Settings
from af.serve.ship import AUTOENCODER, DENOISER, shipped
from af.synth.turns import plan_phrase
from af.synth.voice import VoiceType, speech


class Recorder(FrameProcessor):
    """In a transport's place: keeps the avatar's frames with their voice, and the user as the avatar saw them."""

    def __init__(self, avatar: AvatarVideoService) -> None:
        super().__init__()
        self._avatar = avatar
        self.images: list[np.ndarray] = []
        self.voices: list[np.ndarray] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Say that there is somebody to show frames to, and keep them."""
        await super().process_frame(frame, direction)
        if isinstance(frame, StartFrame):
            await self.push_frame(OutputTransportReadyFrame(), FrameDirection.UPSTREAM)
        elif isinstance(frame, OutputImageRawFrame):
            image = np.frombuffer(frame.image, np.uint8).reshape(frame.size[1], frame.size[0], 3)
            assert self._avatar.conversation is not None
            self.images.append(side_by_side({"user": self._avatar.conversation.view, "avatar": image}, 4 * len(image)))
        elif isinstance(frame, SpeechOutputAudioRawFrame):
            self.voices.append(from_pcm(frame.audio))
        await self.push_frame(frame, direction)


def phrase(seed: int, seconds: float) -> np.ndarray:
    """Somebody's made-up words."""
    rng = np.random.default_rng(seed)
    return speech([plan_phrase(rng, 0.1, seconds)], VoiceType.sample(rng), seconds_to_frames(seconds), rng)


async def act(worker: PipelineWorker, avatar: AvatarVideoService) -> None:
    """The script: what a text-to-speech service and a microphone would send."""

    async def say(seconds: float) -> None:
        pieces = np.array_split(phrase(1, seconds), 20)  # faster than they are spoken
        words = [TTSAudioRawFrame(pcm(piece), SAMPLE_RATE, 1) for piece in pieces]
        await worker.queue_frames([TTSStartedFrame(), *words, TTSStoppedFrame()])

    await asyncio.sleep(1)
    await say(3)
    await asyncio.sleep(4)
    assert avatar.conversation is not None
    avatar.conversation.act("smile")
    await asyncio.sleep(2)
    await say(6)
    await asyncio.sleep(2)
    for n, piece in enumerate(np.split(words := phrase(2, 2), len(words) // SAMPLES_PER_FRAME)):
        await worker.queue_frame(InputAudioRawFrame(pcm(piece), SAMPLE_RATE, 1))
        if n == 10:  # as voice activity detection does
            await worker.queue_frame(InterruptionFrame())
        await asyncio.sleep(0.04)
    await asyncio.sleep(1)
    await say(1.5)
    await worker.queue_frame(EndFrame())  # after what was said


async def main(autoencoder: str | Path, denoiser: str | Path, out: Path) -> None:
    """Record the script."""
    models = Avatar.load(autoencoder, denoiser, precision="auto")
    service = Service(
        models,
        portrait(0, models.autoencoder.image_size),
        Settings(models.sampling, cushion_ms=60),
    )
    avatar = AvatarVideoService(service, user="puppet")
    recorder = Recorder(avatar)
    worker = PipelineWorker(Pipeline([avatar, recorder]), enable_rtvi=False, cancel_on_idle_timeout=False)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    try:
        await asyncio.gather(runner.run(), act(worker, avatar))
    finally:
        service.stop()
    write_video(out, recorder.images, np.concatenate(recorder.voices))
    print(f"{out}: {len(recorder.images)} frames; corrections: {avatar.conversation.report()['faults']}")  # type: ignore[union-attr]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, name in (("--autoencoder", AUTOENCODER), ("--denoiser", DENOISER)):
        parser.add_argument(option, default=shipped() / name, help="model folder (default: of the package)")
    parser.add_argument("--out", required=True, type=require_video_name, help="the video: .mp4")
    given = parser.parse_args()
    asyncio.run(main(given.autoencoder, given.denoiser, given.out))
