"""A browser's call by WebRTC (aiortc): its camera and microphone in, the avatar's and the user's video and a voice out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, AudioResampler, VideoFrame

from af.clock import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, frames_to_seconds
from af.errors import UserError
from af.pipeline.side_by_side import enlarged
from af.serve.camera import Camera
from af.serve.controls import Controls
from af.serve.conversation import Conversation, Image, Samples
from af.serve.protocol import from_pcm, pcm
from af.serve.service import Service

_VIDEO_HZ: Final = 90_000
_PACKETS: Final = 2  # of audio per frame: 20 ms each
#: Bytes on their way to a client from which reports are left out.
_MOST_BUFFERED: Final = 1 << 18
#: Frames that wait for a track's encoder.
_WAITING: Final = 4


class _Track(MediaStreamTrack):
    """A track that is fed; when its reader is slow, the oldest frames are lost."""

    def __init__(self, kind: str, capacity: int) -> None:
        super().__init__()
        self.kind = kind
        self.lost = 0
        self._queue: asyncio.Queue[Any] = asyncio.Queue(capacity)

    def give(self, frame: Any) -> None:
        if self._queue.full():
            self._queue.get_nowait()
            self.lost += 1
        self._queue.put_nowait(frame)

    async def recv(self) -> Any:
        return await self._queue.get()


class Call:
    """One browser's connection to its conversation, from its offer until either side ends it."""

    def __init__(
        self, service: Service, conversation: Conversation, controls: Controls, ice: Sequence[RTCIceServer] = ()
    ) -> None:
        self.conversation, self._service, self._controls = conversation, service, controls
        # aiortc's default policy leaves a second video line without a transport
        settings = RTCConfiguration(iceServers=list(ice), bundlePolicy=RTCBundlePolicy.MAX_COMPAT)
        self._connection = RTCPeerConnection(settings)
        self._avatar, self._user = _Track("video", _WAITING), _Track("video", _WAITING)
        self._voice = _Track("audio", _PACKETS * _WAITING)
        self._channel: RTCDataChannel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._camera = Camera(conversation)
        self._loop = asyncio.get_running_loop()
        self._ended = False

    async def answer(self, offer: str) -> str:
        """The SDP answer to a browser's SDP offer. Raises UserError for an offer that does not fit."""
        connection = self._connection
        connection.on("datachannel", self._open_channel)
        connection.on("track", self._follow)
        connection.on("connectionstatechange", self._changed)
        try:
            await connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            kinds = [transceiver.kind for transceiver in connection.getTransceivers()]
            if kinds[:3] != ["audio", "video", "video"] or kinds[3:] not in ([], ["audio"]):
                raise UserError(
                    "offer: an audio and two video lines are expected, and another audio line for the avatar's voice, "
                    f"if somebody says it; got {', '.join(kinds) or 'none'}"
                )
            for track in (self._voice, self._avatar, self._user):
                connection.addTrack(track)
            # browsers keep voice and video of one stream in step: the voice with the avatar, not with the user
            connection.getTransceivers()[2].sender._stream_id = "user"
            await connection.setLocalDescription(await connection.createAnswer())
        except UserError:
            raise
        except Exception as error:  # aiortc's parsers raise errors of many kinds
            raise UserError(f"offer: it is no SDP of a call that fits ({type(error).__name__}: {error})") from error
        self.conversation.listeners.append(self._report)
        self._start(self._play())
        return connection.localDescription.sdp

    async def end(self, why: str = "the call has ended") -> None:
        """Close the connection and the conversation."""
        if self._ended:
            return
        self._ended = True
        self._service.close(self.conversation, why)
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        self._camera.close()
        try:
            await self._connection.close()
        except AttributeError:  # aiortc, for a connection that an odd offer has left half made
            logging.getLogger(__name__).debug("a connection was closed before it was made", exc_info=True)

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logging.getLogger(__name__).error("a call has ended", exc_info=error)
            self._start(self.end(f"an error in the server: {type(error).__name__}"))

    async def _changed(self) -> None:
        if self._connection.connectionState in ("failed", "closed"):
            await self.end()

    # Out: one clock for the avatar's video and voice.

    async def _play(self) -> None:
        image = None
        async for slot, shown in self.conversation.played():
            # evenly: what comes in pairs takes a longer buffer in the browser
            for n, packet in enumerate(_packets(None if shown is None else shown.voice, slot)):
                self._loop.call_later(frames_to_seconds(n) / _PACKETS, self._voice.give, packet)
            image = image if shown is None else shown.image
            if image is not None:
                self._avatar.give(_picture(image, slot))
            self._user.give(_picture(self.conversation.view, slot))
        await asyncio.sleep(0.2)  # for the last report
        await self.end(self.conversation.closed or "")

    # In: the user's microphone and camera, and that of a person who speaks for the avatar.

    def _follow(self, track: MediaStreamTrack) -> None:
        self._start(self._listen(track) if track.kind == "audio" else self._watch(track))

    async def _listen(self, track: MediaStreamTrack) -> None:
        resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        try:
            while True:
                received = await track.recv()
                assert isinstance(received, AudioFrame)
                first = self._connection.getTransceivers()[0].receiver.track
                give = self.conversation.hear if track is first else self.conversation.dub
                for frame in resampler.resample(received):
                    give(from_pcm(frame.to_ndarray().tobytes()))
        except MediaStreamError:
            pass

    async def _watch(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()  # always: what is not read is kept in memory
                assert isinstance(frame, VideoFrame)
                self._start(self._look(frame))
        except MediaStreamError:
            pass

    async def _look(self, frame: VideoFrame) -> None:
        try:
            await self._camera.look(lambda: frame.to_ndarray(format="rgb24"))
        except UserError as error:  # what is needed to find faces is missing
            self._send({"error": str(error), "is": "puppet"})

    # The data channel.

    def _open_channel(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        channel.on("message", self._receive)
        channel.on("close", lambda: self._start(self.end()))
        self._send({"settings": self._controls.settings()})

    async def _receive(self, message: str | bytes) -> None:
        text = message if isinstance(message, str) else ""
        answer = await self._controls(text)
        if answer is not None:
            self._send(answer)

    def _report(self, report: dict[str, Any]) -> None:  # called by the service's thread
        with contextlib.suppress(RuntimeError):  # the server has stopped
            self._loop.call_soon_threadsafe(self._send, report)

    def _send(self, message: dict[str, Any]) -> None:
        channel = self._channel
        if channel is not None and channel.readyState == "open" and channel.bufferedAmount < _MOST_BUFFERED:
            channel.send(json.dumps({"time": time.time(), **message}))


def _picture(image: Image, slot: int) -> VideoFrame:
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(enlarged(image[None])[0]), format="rgb24")
    frame.pts, frame.time_base = slot * (_VIDEO_HZ // FPS), Fraction(1, _VIDEO_HZ)
    return frame


def _packets(voice: Samples | None, slot: int) -> list[AudioFrame]:
    samples = np.zeros(SAMPLES_PER_FRAME, np.float32) if voice is None else voice
    packets = []
    for n, part in enumerate(np.split(np.frombuffer(pcm(samples), np.int16), _PACKETS)):
        packet = AudioFrame.from_ndarray(part[None], format="s16", layout="mono")
        packet.sample_rate, packet.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
        packet.pts = slot * SAMPLES_PER_FRAME + n * len(part)
        packets.append(packet)
    return packets
