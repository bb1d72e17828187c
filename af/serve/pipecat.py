"""The avatar in a Pipecat pipeline: behind the text-to-speech service, it gives a voice agent a face that hears and sees
the user.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
from PIL import Image as Images

from af.clock import FRAME_MS, SAMPLE_RATE, frames_to_seconds, samples_to_seconds
from af.errors import UserError
from af.forcing.pieces import Resampler
from af.serve.camera import Camera
from af.serve.conversation import Conversation, Image, Samples, User
from af.serve.protocol import from_pcm, pcm
from af.serve.queues import AUDIBLE, Shown
from af.serve.service import Service

try:
    from pipecat.frames.frames import (
        AudioRawFrame,
        CancelFrame,
        EndFrame,
        Frame,
        ImageRawFrame,
        InputAudioRawFrame,
        InputImageRawFrame,
        InterruptionFrame,
        OutputImageRawFrame,
        OutputTransportReadyFrame,
        SpeechOutputAudioRawFrame,
        StartFrame,
        TTSAudioRawFrame,
        TTSStartedFrame,
        TTSStoppedFrame,
    )
    from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
    from pipecat.services.ai_service import AIService
    from pipecat.services.settings import ServiceSettings
except ImportError as missing:
    raise UserError(f"the Pipecat service needs {missing.name}: pip install 'avatar-forcing[pipecat]'") from None


class AvatarVideoService(AIService):
    """Takes the audio of the TTS and returns the avatar's images and voice in step, 25 times a second, from the moment
    the output transport is ready until the pipeline ends.

    The avatar hears the user's audio frames and sees the face in their images, as far as the frames before it pass them
    on; without images its user's face is a dropped signal. An interruption silences it within a block; its motion goes
    on. At the end of the pipeline it first says what it was given. What goes wrong is an `ErrorFrame`; without an
    avatar the TTS audio passes through. `user` as in `Conversation`; pipelines may share `service`, which is started
    with the first one.
    """

    def __init__(self, service: Service, *, user: User = "camera", name: str | None = None) -> None:
        super().__init__(settings=ServiceSettings(model=None), name=name)
        self._service, self._user = service, user
        #: What `act` and `change` reach, once the pipeline is set up.
        self.conversation: Conversation | None = None
        self._camera: Camera | None = None
        self._trouble: Exception | None = None
        self._playing: asyncio.Task[None] | None = None
        self._words, self._sounds = _Sound(), _Sound()
        self._ready, self._played = False, 0

    def can_generate_metrics(self) -> bool:
        """Yes: the time until the first voice."""
        return True

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override] # as in their own services
        """Open a conversation."""
        await super().setup(setup)
        try:
            conversation = await asyncio.to_thread(self._service.open)
            conversation.be(self._user)
            conversation.change(barge_in=False)  # the pipeline's turn-taking decides
            if self._user == "camera":
                self._see_the_user(conversation, False)
            self.conversation, self._camera = conversation, Camera(conversation)
            self._service.start()
        except Exception as error:  # said once the pipeline can take it
            self._trouble = error

    async def start(self, frame: StartFrame) -> None:
        """Begin to play."""
        await super().start(frame)
        if self.conversation is None:
            await self._fail(f"no avatar: {self._trouble}", self._trouble)
        else:
            self._playing = self.create_task(self._play(self.conversation))

    async def stop(self, frame: EndFrame) -> None:
        """Say what was given so far, then end."""
        await super().stop(frame)
        conversation = self.conversation
        if conversation is not None:
            self._say(conversation, self._words.rest())
            left = samples_to_seconds(len(conversation.unsaid)) + frames_to_seconds(4 * conversation.block_frames)
            for _ in range(round(1000 * left / FRAME_MS)):
                if conversation.closed or (not len(conversation.unsaid) and self._played >= conversation.voiced_frames):
                    break
                await asyncio.sleep(FRAME_MS / 1000)
        await self._end()

    async def cancel(self, frame: CancelFrame) -> None:
        """End at once."""
        await super().cancel(frame)
        await self._end()

    async def cleanup(self) -> None:
        """Close the conversation if it is still open."""
        await super().cleanup()
        await self._end()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Take what concerns the avatar; all frames but those of the TTS are passed on."""
        await super().process_frame(frame, direction)
        conversation = self.conversation
        if isinstance(frame, OutputTransportReadyFrame):
            self._ready = True
        if conversation is not None and conversation.closed is None:
            if isinstance(frame, TTSAudioRawFrame):
                self._say(conversation, self._words.take(frame))
                return
            if isinstance(frame, TTSStoppedFrame):  # what comes after this service knows from the voice
                self._say(conversation, self._words.rest())
                return
            if isinstance(frame, TTSStartedFrame):
                await self.start_ttfb_metrics()
            elif isinstance(frame, InterruptionFrame):
                self._words = _Sound()
                conversation.interrupt()
            elif isinstance(frame, InputAudioRawFrame):
                conversation.hear(self._sounds.take(frame))
            elif isinstance(frame, InputImageRawFrame):
                self.create_task(self._look(frame))
        await self.push_frame(frame, direction)

    async def _play(self, conversation: Conversation) -> None:
        try:
            async for _, shown in conversation.played():
                if shown is not None:
                    if self._ready:
                        await self._show(shown)
                    self._played = shown.index + 1
            await self._fail(f"the avatar has ended: {conversation.closed}", None)
        except Exception as error:
            await self._fail(f"the avatar has ended: {error}", error)

    async def _show(self, shown: Shown) -> None:
        image = OutputImageRawFrame(shown.image.tobytes(), (shown.image.shape[1], shown.image.shape[0]), "RGB")
        voice = SpeechOutputAudioRawFrame(pcm(shown.voice), SAMPLE_RATE, 1)
        image.pts = voice.pts = round(frames_to_seconds(shown.index) * 1e9)
        if np.abs(shown.voice).max() >= AUDIBLE:
            await self.stop_ttfb_metrics()
        await self.push_frame(image)
        await self.push_frame(voice)

    @staticmethod
    def _say(conversation: Conversation, words: Samples) -> None:
        conversation.say(words)
        conversation.touch()

    async def _look(self, frame: InputImageRawFrame) -> None:
        conversation, camera = self.conversation, self._camera
        assert conversation is not None
        assert camera is not None
        try:
            found = await camera.look(lambda: _rgb(frame))
            if found and self._user == "camera" and not conversation.settings.signals.user_motion:
                self._see_the_user(conversation, True)
        except UserError as error:
            self._see_the_user(conversation, False)
            await self.push_error(f"the avatar cannot see the user: {error}", exception=error)

    @staticmethod
    def _see_the_user(conversation: Conversation, seen: bool) -> None:
        conversation.change(signals=replace(conversation.settings.signals, user_motion=seen))

    async def _fail(self, text: str, error: Exception | None) -> None:
        await self.push_error(text, exception=error, force_treat_as_permanent=True)

    async def _end(self) -> None:
        playing, self._playing = self._playing, None
        if playing is not None:
            await self.cancel_task(playing)
        if self._camera is not None:
            self._camera.close()
        if self.conversation is not None:
            self._service.close(self.conversation, "the pipeline has ended")


class _Sound:
    """Audio frames of any rate and number of channels as 16 kHz mono."""

    def __init__(self) -> None:
        self._resampler = Resampler(SAMPLE_RATE)

    def take(self, frame: AudioRawFrame) -> Samples:
        """The part of the sound that is ready with this frame."""
        before = np.zeros(0, np.float32)
        if frame.sample_rate != self._resampler.rate:
            before = self.rest()
            self._resampler = Resampler(frame.sample_rate)
        samples = from_pcm(frame.audio).reshape(-1, frame.num_channels).mean(1)
        return np.concatenate((before, self._resampler.push(samples)))

    def rest(self) -> Samples:
        """The end of the sound; the next frame begins another one."""
        rest = self._resampler.push(np.zeros(0, np.float32), last=True)
        self._resampler = Resampler(self._resampler.rate)
        return rest


def _rgb(frame: ImageRawFrame) -> Image:
    try:
        return np.asarray(Images.frombytes(frame.format or "RGB", frame.size, frame.image).convert("RGB"))
    except ValueError as error:
        raise UserError(f"an image of the format {frame.format} and the size {frame.size}: {error}") from None
