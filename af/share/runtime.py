"""Run an exported avatar with numpy and onnxruntime, without torch: motion, frames, videos and live sessions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Float32, UInt8

from af.clock import frames_to_samples, samples_to_frames
from af.errors import UserError
from af.files import sha256_of
from af.forcing.guidance import Guidance
from af.forcing.solvers import OLDER
from af.pipeline.inputs import NOTHING, held_rows
from af.share.noise import Noise
from af.share.runtime_sampler import SIGNALS, Array, Sampler

EXPORT: Final = "export.json"
FORMAT: Final = 1
Frame = UInt8[np.ndarray, "Y X 3"]


@dataclass(frozen=True)
class Face:
    """A portrait, encoded: its motion, and what the decoder needs of it, by the names of its inputs."""

    reference: Float32[np.ndarray, "1 L"]
    appearance: Mapping[str, Array]


class Runtime:
    """An exported avatar (`af export --to onnx`). Graphs are loaded when they are first used.

    `threads` are those of every graph (None: all cores). Raises UserError for a folder that is no export, is damaged or
    changed, or was made for another runtime.
    """

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UserError("exports need a package to run: pip install 'avatar-forcing[runtime]'") from None
        self.folder, self.about = Path(folder), _read(Path(folder))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads take no core
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # unpacks 8 bits as it loads
        self._open = lambda file: onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._sessions: dict[str, Any] = {}
        layout, speech = self.about["layout"], self.about["feature_spec"]
        self.image_size: int = self.about["image_size"]
        self.block_frames, self.look_ahead = layout["block_frames"], layout["look_ahead"]
        self.speech_frames, self._window_frames = speech["block_frames"], speech["window_frames"]
        self._right_frames = speech["right_context_frames"]

    def load(self, graph: str) -> None:
        """Load a graph, unless it is there."""
        if graph not in self._sessions:
            self._sessions[graph] = self._open(self.folder / self.about["graphs"][graph]["file"])

    def run(self, graph: str, *inputs: Array) -> list[Array]:
        """The outputs of a graph for all its inputs, in the order of export.json."""
        self.load(graph)
        names = (given["name"] for given in self.about["graphs"][graph]["inputs"])
        return self._sessions[graph].run(None, dict(zip(names, inputs, strict=True)))

    def shape(self, graph: str, name: str) -> list[int]:
        """The shape of an input or output."""
        about = self.about["graphs"][graph]
        return next(x["shape"] for x in (*about["inputs"], *about["outputs"]) if x["name"] == name)

    def face(self, portrait: Frame) -> Face:
        """Encode a portrait: a face crop at the avatar's size. Raises UserError for another size or type."""
        code, reference, *maps = self.run("portrait", self._image("portrait", portrait))
        names = [given["name"] for given in self.about["graphs"]["decoder"]["inputs"]][1:]
        return Face(reference, dict(zip(names, (code, *maps), strict=True)))

    def user_motion(self, frame: Frame) -> Float32[np.ndarray, " L"]:
        """The motion latent of a face crop of the user. Raises UserError for another size or type."""
        return self.run("face", self._image("user_frames", frame))[0][0]

    def speech(self, block: int, sound: Float32[np.ndarray, " S"], first: int = 0) -> Float32[np.ndarray, "T F"]:
        """Speech features of a feature block; `sound` is the audio from sample `first` on, silent after its end."""
        start, stop = self.speech_window(block)
        window, heard = np.zeros(stop - start, np.float32), sound[start - first : stop - first]
        window[: len(heard)] = heard
        return self.speech_of(window)

    def speech_of(self, window: Float32[np.ndarray, " S"]) -> Float32[np.ndarray, "T F"]:
        """Speech features of the newest block of a window."""
        whole = np.zeros(self.shape("speech", "samples"), np.float32)
        whole[0, whole.shape[1] - len(window) :] = window
        return self.run("speech", whole, np.array([len(window)]))[0][0]

    def speech_window(self, block: int) -> tuple[int, int]:
        """Samples [start, stop) of a feature block."""
        end = (block + 1) * self.speech_frames
        return frames_to_samples(max(0, end - self._window_frames)), frames_to_samples(end + self._right_frames)

    def latents(self, motion: Float32[np.ndarray, "1 T M"]) -> Float32[np.ndarray, "1 T L"]:
        """Motion latents of a block in the denoiser's space."""
        return self.run("latent", motion)[0]

    @cached_property
    def rest(self) -> Float32[np.ndarray, "1 L"]:
        """The motion latent of a dropped signal."""
        return self.latents(np.zeros(self.shape("latent", "motion"), np.float32))[:, 0]

    def has_branches(self, guidance: Guidance) -> bool:
        """Whether the export has all branches of a guidance."""
        exported = {(branch["avatar"], branch["user"]) for branch in self.about["branches"]}
        return {(branch.avatar, branch.user) for branch in guidance.branches()} <= exported

    def sampler(self, reference: Float32[np.ndarray, "1 L"], **sampling: Any) -> Sampler:
        """A roll-out from a portrait's motion. `sampling`: `steps`, `solver`, `schedule`, `guidance`, `dead_band` other than
        the avatar's.
        """
        return Sampler(self, reference, **{**self._sampling, **sampling})

    def motion(
        self,
        reference: Float32[np.ndarray, "1 L"],
        frames: int,
        *,
        avatar_audio: Float32[np.ndarray, " S"] | None = None,
        user_audio: Float32[np.ndarray, " S"] | None = None,
        user_motion: Iterable[Float[np.ndarray, " L"]] | None = None,
        seed: int = 0,
        **sampling: Any,
    ) -> Iterator[Float32[np.ndarray, "1 t L"]]:
        """Motion latents block by block, `frames` in total: those of `Avatar.motion` for this seed, up to rounding.

        A None signal is dropped; one that ends early is continued with silence or its last motion.
        """
        if avatar_audio is None and user_audio is None and user_motion is None:
            raise UserError(NOTHING)
        sampler, noise = self.sampler(reference, **sampling), Noise(seed)
        voices = [None if sound is None else self._voice(sound, frames) for sound in (avatar_audio, user_audio)]
        faces = None if user_motion is None else held_rows(user_motion)
        rows = [*voices, faces]
        for start in range(0, frames, self.block_frames):
            count = min(self.block_frames, frames - start)
            taken = [None if row is None else [next(row) for _ in range(count)] for row in rows]
            block = sampler.step(*taken, noise=noise(*self.shape("latent", "motion")))
            yield self.latents(block)[:, :count]

    def frames(self, face: Face, motion: Iterable[Float32[np.ndarray, "1 t L"]]) -> Iterator[Frame]:
        """Frames one by one."""
        _, size, _ = self.shape("decoder", "motion")
        for block in motion:
            for start in range(0, block.shape[1], size):
                part = block[:, start : start + size]
                whole = np.concatenate((part, np.repeat(part[:, -1:], size - part.shape[1], 1)), 1)
                yield from self.run("decoder", whole, *face.appearance.values())[0][: part.shape[1]]

    def generate(
        self,
        portrait: str | Path,
        out: str | Path,
        *,
        avatar_audio: str | Path | None = None,
        user_audio: str | Path | None = None,
        user_video: str | Path | None = None,
        find_face: bool = True,
        seconds: float | None = None,
        seed: int = 0,
        mark: bool = True,
        **sampling: Any,
    ) -> int:
        """Write a video of the avatar from files, as `Avatar.generate` does; returns its number of frames."""
        from af.data.container import Notes
        from af.ingest.crops import read_portrait
        from af.pipeline.video_files import read_inputs, write_videos

        faces: dict[str, Any] = {"size": self.image_size, "find_face": find_face, "notes": Notes()}
        places = (None if place is None else Path(place) for place in (avatar_audio, user_audio, user_video))
        heard = read_inputs(*places, seconds=seconds, **faces)
        face = self.face(read_portrait(portrait, **faces))
        seen = None if heard.user_frames is None else map(self.user_motion, heard.user_frames)
        given: dict[str, Any] = {"avatar_audio": heard.spoken, "user_audio": heard.user_voice, "user_motion": seen}
        motion = self.motion(face.reference, heard.frames, seed=seed, **given, **sampling)
        write_videos(self.frames(face, motion), heard, Path(out), None, None, mark)
        return heard.frames

    def live(self, portrait: Frame, signals: Sequence[str] = SIGNALS, seed: int = 0, **sampling: Any) -> Live:
        """A live session with these signals."""
        return Live(self, self.face(portrait), signals, seed, **sampling)

    @cached_property
    def _sampling(self) -> dict[str, Any]:
        given = self.about["sampling"]
        older = {**OLDER, "dead_band": 0.0}
        named = {name: given.get(name, usual) for name, usual in older.items()}
        return {"steps": given["steps"], "guidance": Guidance(**given["guidance"]), **named}

    def _image(self, name: str, image: Frame) -> UInt8[np.ndarray, "1 Y X 3"]:
        expected, image = (self.image_size, self.image_size, 3), np.asarray(image)
        if image.shape != expected or image.dtype != np.uint8:
            raise UserError(f"{name}: expected face crops {expected} of uint8, got {image.shape} of {image.dtype}")
        return np.ascontiguousarray(image[None])

    def _voice(self, sound: Float32[np.ndarray, " S"], frames: int) -> Iterator[Float32[np.ndarray, " F"]]:
        fitted = np.zeros(frames_to_samples(frames), np.float32)
        fitted[: len(sound)] = sound[: len(fitted)]
        for block in range(math.ceil(frames / self.speech_frames)):
            yield from self.speech(block, fitted)


class Live:
    """A conversation: `push` what was recorded at 16,000 samples and 25 frames a second, show the frames that come back.

    A block is computed when all its signals are there. The frames are those of `Avatar.live` up to rounding.
    """

    def __init__(self, runtime: Runtime, face: Face, signals: Sequence[str], seed: int, **sampling: Any) -> None:
        if unknown := [name for name in signals if name not in SIGNALS] or not signals:
            raise UserError(f"signals: {unknown if signals else 'none'}; allowed: {', '.join(SIGNALS)}")
        self.runtime, self.face, self._noise = runtime, face, Noise(seed)
        self._sampler = runtime.sampler(face.reference, **sampling)
        self._rows: dict[str, list[Array]] = {name: [] for name in signals}  # not used yet
        self._sound = {name: np.zeros(0, np.float32) for name in signals if name != "user_motion"}
        self._blocks = dict.fromkeys(self._sound, 0)
        self._first = dict.fromkeys(self._sound, 0)  # index of the first sample held
        # until a face is seen: the motion of a dropped signal
        self._last = runtime.rest[0]
        self._finished = False

    def push(
        self,
        *,
        avatar_audio: Float32[np.ndarray, " S"] | None = None,
        user_audio: Float32[np.ndarray, " S"] | None = None,
        user_frames: Sequence[Frame | None] = (),
    ) -> list[Frame]:
        """Take input of any length; returns the frames it completes. None is a user's frame without a face.

        Raises UserError for a signal the session was not made for, and after `finish`.
        """
        if self._finished:
            raise UserError("the session is finished; start a new one")
        for name, sound in (("avatar_audio", avatar_audio), ("user_audio", user_audio)):
            if sound is not None:
                self._require(name)
                self._sound[name] = np.concatenate((self._sound[name], np.asarray(sound, np.float32)))
                self._hear(name)
        if len(user_frames):
            self._require("user_motion")
        for frame in user_frames:
            self._last = self._last if frame is None else self.runtime.user_motion(frame)
            self._rows["user_motion"].append(self._last)
        size = self.runtime.block_frames
        made = []
        while min(map(len, self._rows.values())) >= size:
            made += self._block(size)
        return made

    def finish(self) -> list[Frame]:
        """End the conversation: the frames up to the end of the longest signal, the others filled up."""
        if self._finished:
            return []
        done = self._sampler.frames
        lengths = [samples_to_frames(self._first[name] + len(sound)) for name, sound in self._sound.items()]
        end = max([*lengths, done + len(self._rows.get("user_motion", ()))])
        for name in self._sound:
            last = math.ceil(end / self.runtime.speech_frames) - 1
            stop = self.runtime.speech_window(last)[1] - self._first[name]
            kept = self._sound[name][: frames_to_samples(end) - self._first[name]]
            self._sound[name] = np.concatenate((kept, np.zeros(max(0, stop - len(kept)), np.float32)))
            self._hear(name)
        if "user_motion" in self._rows:
            faces = self._rows["user_motion"]
            faces += [self._last] * (end - done - len(faces))
        made = []
        while (left := end - self._sampler.frames) > 0:
            made += self._block(min(left, self.runtime.block_frames))
        self._finished = True
        return made

    def _require(self, name: str) -> None:
        if name not in self._rows:
            raise UserError(f"{name}: this session was made without it")

    def _hear(self, name: str) -> None:
        while self.runtime.speech_window(self._blocks[name])[1] <= self._first[name] + len(self._sound[name]):
            self._rows[name] += list(self.runtime.speech(self._blocks[name], self._sound[name], self._first[name]))
            self._blocks[name] += 1
        start = self.runtime.speech_window(self._blocks[name])[0] - self._first[name]
        if start > 0:
            self._sound[name], self._first[name] = self._sound[name][start:], self._first[name] + start

    def _block(self, count: int) -> list[Frame]:
        taken = [self._rows[name][:count] if name in self._rows else None for name in SIGNALS]
        for rows in self._rows.values():
            del rows[:count]
        noise = self._noise(*self.runtime.shape("latent", "motion"))
        motion = self.runtime.latents(self._sampler.step(*taken, noise=noise))
        frames = list(self.runtime.frames(self.face, [motion[:, :count]]))
        self._sampler.commit()
        return frames


def _read(folder: Path) -> Mapping[str, Any]:
    """The content of export.json. Raises UserError for a folder that is no whole export for this runtime."""
    file = folder / EXPORT
    if not file.is_file():
        raise UserError(f"{folder} is no export: {EXPORT} is missing; `af export --to onnx` makes exports")
    try:
        about = json.loads(file.read_bytes())
        if about["format"] != FORMAT or about["to"] != "onnx":
            raise ValueError(f"it has format {about['format']!r} for {about.get('to')!r}")
        for name, graph in about["graphs"].items():
            path = folder / graph["file"]
            if Path(graph["file"]).name != graph["file"]:
                raise ValueError(f"graphs.{name}.file is no file of this folder")
            if not path.is_file() or path.stat().st_size != graph["bytes"] or sha256_of(path) != graph["sha256"]:
                raise UserError(f"{path} is missing, or not the file that {EXPORT} names: export the avatar again")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be used ({error}); `af export --to onnx` makes what this version runs"
        ) from error
    return about
