"""Many conversations that share one avatar: one clock of 25 frames per second, one batch per block."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from af.clock import FPS, frames_to_seconds
from af.errors import UserError, user_text
from af.forcing.stream import LiveBlock, LiveSession, push_batch
from af.images import image_array
from af.models.tracker import FaceTracker, load_tracker
from af.pipeline.avatar import Avatar
from af.pipeline.live import speech_stream, use_free_cores
from af.pipeline.sampling import ONE_PASS
from af.serve.conversation import Conversation, Image
from af.serve.limits import Limits
from af.serve.puppet import Puppet
from af.serve.queues import Seen, Shown
from af.serve.recordings import Recordings
from af.serve.replay import Replays
from af.serve.settings import Model, Settings
from af.synth.face import FACE_INDEX
from af.types import Identity

#: What the page draws of a face, and the face parameters that it is.
CURVES: Final[Mapping[str, str]] = {"smile": "smile", "tilt": "roll", "nod": "pitch", "mouth": "mouth_open"}
#: The service gives frames up when it is further behind its clock than this.
_BEHIND_S: Final = 1.0
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass
class _Finished:
    """A block of a conversation, with what is shown of it so far."""

    conversation: Conversation
    block: LiveBlock
    images: list[UInt8[np.ndarray, "t Y X 3"]] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)

    @property
    def start(self) -> int:
        return self.block.start

    @property
    def motion(self) -> Float[Tensor, "1 T L"]:
        return self.block.motion

    def play(self, images: UInt8[np.ndarray, "t Y X 3"]) -> None:
        """Show its next images."""
        shown = self.conversation.shown(self.start + len(self.shown), images)
        self.conversation.playout.put(shown)
        self.images.append(images)
        self.shown += shown


class Service:
    """Opens conversations and computes them, `tick` by `tick`; `start` does so 25 times a second in a thread.

    Conversations begin together at the start of a block, so that the model computes them in one batch: alone, one gives
    the bits of `Avatar.motion`. Faces are read by the tracker of drawn faces, for `CURVES`.

    `student`: an avatar of the same autoencoder, sampled by `student_sampling` with the same dead band; `replays`:
    conversations to choose as the user; `recordings`: where conversations are written.
    """

    def __init__(
        self,
        avatar: Avatar,
        portrait: Image,
        settings: Settings = Settings(),  # noqa: B008 (frozen)
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        *,
        student: Avatar | None = None,
        student_sampling: Mapping[str, Any] = ONE_PASS,
        replays: Replays | None = None,
        recordings: Recordings | None = None,
    ) -> None:
        self.avatar, self.portrait, self.settings, self.limits = avatar, portrait, settings, limits
        self.student, self.replays, self.recordings = student, replays, recordings
        self._features_s = 0.0
        self._models = [self._model(avatar, settings.sampling)]
        if student is not None:
            band = {name: value for name, value in settings.sampling.items() if name == "dead_band"}
            self._models.append(self._model(student, {**student_sampling, **band}))
        self._tracker: FaceTracker = load_tracker()
        self._all: list[Conversation] = []
        self._lock = threading.Lock()
        self._load = 0.0
        self._frame = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._made = self._opening = 0
        self.ended = 0  # conversations until now
        if avatar.device.type == "cpu":
            use_free_cores(spared=1)  # for the coding of video and sound, and the lines

    @property
    def conversations(self) -> list[Conversation]:
        """Those that are open."""
        return list(self._all)

    def open(self) -> Conversation:
        """A new conversation. Raises UserError when there are as many as there may be."""
        with self._lock:
            if len(self._all) + self._opening >= self.limits.conversations:
                raise UserError(f"all {self.limits.conversations} places are taken; try again later")
            self._opening += 1
            self._made += 1
            seed = self.settings.seed + self._made
        try:  # takes its time, in which the others go on
            puppet = Puppet(seed, self.avatar.autoencoder.image_size)
            recorder = None if self.recordings is None else self.recordings.begin()
            conversation = Conversation(self._models, self.portrait, puppet, self.settings, self.replays, recorder)
            with self._lock:
                self._all.append(conversation)
        finally:
            with self._lock:
                self._opening -= 1
        return conversation

    def close(self, conversation: Conversation, why: str = "closed") -> None:
        """End a conversation; its listeners get a last report with `why`."""
        with self._lock:
            if conversation not in self._all:
                return
            self._all.remove(conversation)
            self.ended += 1
        conversation.closed = why
        if conversation.recorder is not None:
            conversation.recorder.end()
        for listener in conversation.listeners:
            try:
                listener({"closed": why})
            except Exception:
                logging.getLogger(__name__).exception("a listener failed")

    def start(self) -> None:
        """Run in a thread of its own until `stop`, if it does not run yet."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="af live", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Close all conversations and end the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for conversation in self.conversations:
            self.close(conversation, "the server is stopping")
        if self.recordings is not None:
            self.recordings.wait()

    def _run(self) -> None:
        due, busy_s = time.monotonic(), 0.0
        while not self._stop.is_set():
            now = time.monotonic()
            if now < due:
                self._stop.wait(due - now)
                continue
            if now - due > _BEHIND_S:
                lost = int((now - due) * FPS)
                due += frames_to_seconds(lost)
                for conversation in self.conversations:
                    conversation.skipped_frames += lost
            self.tick()
            busy_s += time.monotonic() - now
            due += frames_to_seconds(1)
            if self._frame % FPS == 0:
                self._load, busy_s = busy_s, 0.0

    def tick(self) -> None:
        """The next frame of all conversations. One in which something fails is closed; the others go on."""
        together: list[Conversation] = []
        given: list[dict[str, Any]] = []
        for conversation in self.conversations:
            with self._guarded(conversation):
                if conversation.make_changes() or self._frame % conversation.model.block_frames == 0:
                    given.append(conversation.step())
                    together.append(conversation)
        self._frame += 1
        self._features_s, start = 0.0, time.perf_counter()
        streams = [(conversation.stream, new) for conversation, new in zip(together, given, strict=True)]
        blocks = self._batched(together, streams, _pushed)
        motion_ms, features_ms = (1000 * s for s in (time.perf_counter() - start - self._features_s, self._features_s))
        finished = [_Finished(c, block) for c, found in zip(together, blocks, strict=True) for block in found or ()]
        decoding_ms = self._play(finished)
        for block in finished:
            with self._guarded(block.conversation):
                budget = block.conversation.budget
                budget.waiting, budget.load = block.conversation.stream.waiting_ms, self._load
                budget.features, budget.motion, budget.decoding = features_ms, motion_ms, decoding_ms
                self._hand_on(block)
        self._end_the_old()

    def _batched(
        self,
        conversations: Sequence[Conversation],
        items: Sequence[Item],
        work: Callable[[Sequence[Item]], Sequence[Made]],
    ) -> list[Made | None]:
        """`work` of an item for each conversation, all at once; if it fails, one by one, with None for those that fail."""
        try:
            return list(work(items))
        except Exception:
            made: list[Made | None] = [None] * len(items)
            for n, (conversation, item) in enumerate(zip(conversations, items, strict=True)):
                with self._guarded(conversation):
                    (made[n],) = work([item])
            return made

    def _play(self, finished: Sequence[_Finished]) -> float:
        """Decode the blocks and play them. Returns the ms until the first images were there, which are on their way while
        the others are made.
        """
        start, first_ms = time.perf_counter(), 0.0
        for part in (slice(1), slice(1, None)):
            open_ones = (block for block in finished if block.conversation.closed is None)
            wanted = [block for block in open_ones if block.motion[:, part].shape[1]]
            conversations = [block.conversation for block in wanted]
            motion = [(block.conversation.identity, block.motion[:, part]) for block in wanted]
            for block, images in zip(wanted, self._batched(conversations, motion, self._decoded), strict=True):
                if images is not None:
                    with self._guarded(block.conversation):
                        block.play(images)
            first_ms = first_ms or 1000 * (time.perf_counter() - start)
        return first_ms

    def _hand_on(self, block: _Finished) -> None:
        """Give a block to the recorder and the listeners of its conversation, unless that is closed."""
        conversation = block.conversation
        if conversation.closed is not None:
            return
        users = conversation.user_of_block(len(block.shown))
        if conversation.recorder is not None:
            conversation.recorder.add(block.start, users, block.shown)
        self._tell(conversation, block.start, np.concatenate(block.images), users)

    def _decoded(self, wanted: Sequence[tuple[Identity, Float[Tensor, "1 T L"]]]) -> list[UInt8[np.ndarray, "T Y X 3"]]:
        """Images of motion; those of equal length are decoded together."""
        images: dict[int, UInt8[np.ndarray, "T Y X 3"]] = {}
        for length in {motion.shape[1] for _, motion in wanted}:
            places = [n for n, (_, motion) in enumerate(wanted) if motion.shape[1] == length]
            images |= zip(places, self._decoded_together([wanted[n] for n in places]), strict=True)
        return [images[n] for n in range(len(wanted))]

    @torch.inference_mode()
    def _decoded_together(
        self, wanted: Sequence[tuple[Identity, Float[Tensor, "1 T L"]]]
    ) -> list[UInt8[np.ndarray, "T Y X 3"]]:
        identities = [identity for identity, _ in wanted]
        if len(identities) > 1:
            features = zip(*(identity.features for identity in identities), strict=True)
            codes = torch.cat([identity.code for identity in identities])
            identities = [Identity(codes, tuple(torch.cat(maps) for maps in features))]
        motion = torch.cat([motion for _, motion in wanted])
        return [image_array(frames) for frames in self.avatar.autoencoder.decode(identities[0], motion)]

    def _tell(
        self,
        conversation: Conversation,
        start: int,
        images: UInt8[np.ndarray, "T Y X 3"],
        users: Sequence[Seen],
    ) -> None:
        if not conversation.listeners:
            return
        known = [seen.parameters for seen in users if seen.parameters is not None]
        every = len(known) == len(users)
        user = np.stack(known) if every else self._tracker.track(np.stack([seen.image for seen in users]))
        report = conversation.report() | {
            "start": start,
            "user": self._curves(user),
            "avatar": self._curves(self._tracker.track(images)),
        }
        for listener in conversation.listeners:
            listener(report)

    @staticmethod
    def _curves(faces: Float[np.ndarray, "T P"]) -> dict[str, list[float]]:
        return {name: np.round(faces[:, FACE_INDEX[p]].astype(float), 3).tolist() for name, p in CURVES.items()}

    def _end_the_old(self) -> None:
        now = time.monotonic()
        for conversation in self.conversations:
            if now - conversation.begun_s > self.limits.length_s:
                self.close(conversation, f"the longest conversation is {self.limits.length_s:g} s")
            elif now - conversation.touched_s > self.limits.idle_s:
                self.close(conversation, f"nothing happened for {self.limits.idle_s:g} s")

    @contextlib.contextmanager
    def _guarded(self, conversation: Conversation) -> Iterator[None]:
        """What fails within closes this conversation, and nothing else."""
        try:
            yield
        except Exception as error:
            self._fail(conversation, error)

    def _fail(self, conversation: Conversation, error: Exception) -> None:
        self.close(conversation, user_text(error) or f"an error in the server: {type(error).__name__}")
        if user_text(error) is None:
            logging.getLogger(__name__).exception("a conversation was closed", exc_info=error)

    def _model(self, avatar: Avatar, sampling: Mapping[str, Any]) -> Model:
        stream = speech_stream(avatar.features)
        return Model(avatar, replace(stream, extract=self._timed(stream.extract)), sampling)

    def _timed(self, extract: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def timed(sound: Tensor) -> Tensor:
            start = time.perf_counter()
            features = extract(sound)
            self._features_s += time.perf_counter() - start
            return features

        return timed


def _pushed(given: Sequence[tuple[LiveSession, Mapping[str, Any]]]) -> list[list[LiveBlock]]:
    """`push_batch` of sessions, each with its input."""
    return push_batch([session for session, _ in given], [signals for _, signals in given])
