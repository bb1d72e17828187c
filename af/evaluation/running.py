"""Measurements on a running system: latency, speed, and drift over long roll-outs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from af.clock import FRAME_MS, SAMPLES_PER_FRAME, seconds_to_frames
from af.data.index import Index
from af.data.schema import other_role
from af.data.shards import ShardReader
from af.devices import synchronize
from af.forcing.dropout import SIGNALS
from af.forcing.stream import LiveSession
from af.metrics.latency import Latency, latency, real_time_factor, waiting_frames
from af.metrics.records import MetricRow
from af.metrics.smoothness import Drift, drift, sharpness
from af.models.denoiser import MotionDenoiser
from af.pipeline.avatar import Avatar
from af.pipeline.live import speech_stream, user_encoder
from af.pipeline.rolling import RolloutSettings, Turn, roll_out, turn_of
from af.specs import FeatureSpec
from af.types import Clip


@dataclass(frozen=True)
class Running:
    """Latency with and without audio features, and computing time over media time per stage."""

    latency: Latency
    motion_only: Latency
    rtf: Mapping[str, float]
    blocks: int


class _Stopwatch:
    """Seconds per stage, with synchronisation of the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Run `work` and count its time."""

        def run(*args: Any, **named: Any) -> Any:
            synchronize(self.device)  # earlier work belongs to its own stage
            start = time.perf_counter()
            try:
                return work(*args, **named)
            finally:
                synchronize(self.device)
                self.seconds[stage] += time.perf_counter() - start

        return run


def measure_running(
    avatar: Avatar, clip: Clip, settings: RolloutSettings, *, role: str = "b", warm_up: int = 2
) -> Running:
    """Measure a live session on a recorded clip that arrives frame by frame, decoding every block.

    The first `warm_up` blocks are not counted. Raises UserError for features of whole utterances, and ValueError for a
    clip too short for another block.
    """
    own, user = clip.person(role), clip.person(other_role(role))
    assert own.video is not None and own.audio is not None  # noqa: PT018
    assert user.video is not None and user.audio is not None  # noqa: PT018
    watch = _Stopwatch(avatar.device)
    speech = speech_stream(avatar.features)
    speech = replace(speech, extract=watch.timed("features", speech.extract))

    identity, reference = avatar.identity(own.video[0])
    session = LiveSession(
        avatar.denoiser,
        reference,
        speech,
        encode_user=watch.timed("user_motion", user_encoder(avatar)),
        **settings.sampling,
        generator=torch.Generator().manual_seed(settings.seed),
    )
    push = watch.timed("all", session.push)
    decode = watch.timed("decoding", lambda motion: list(avatar.frames(identity, [motion])))
    waits: dict[str, list[float]] = {"all": [], "motion": []}
    frames, counted = 0, {}
    for t in range(len(user.video)):
        sound = slice(t * SAMPLES_PER_FRAME, (t + 1) * SAMPLES_PER_FRAME)
        before = dict(watch.seconds)
        for block in push(
            avatar_audio=own.audio[sound], user_audio=user.audio[sound], user_frames=user.video[t : t + 1]
        ):
            decode(block.motion)
            spent = {stage: seconds - before.get(stage, 0.0) for stage, seconds in watch.seconds.items()}
            waits["all"].append(1000 * (spent["all"] + spent["decoding"]))
            waits["motion"].append(waits["all"][-1] - 1000 * spent["features"])
            if len(waits["all"]) == warm_up:
                frames, counted = 0, dict(watch.seconds)
            elif len(waits["all"]) > warm_up:
                frames += block.motion.shape[1]
    if len(waits["all"]) <= warm_up:
        raise ValueError(f"{clip.key}: {len(user.video)} frames are too short to measure latency")
    total = {stage: seconds - counted.get(stage, 0.0) for stage, seconds in watch.seconds.items()}
    total["motion"] = total.pop("all") - total["features"] - total["user_motion"]
    size, right = avatar.denoiser.layout.block_frames, speech.right_context_frames
    full, motion = (latency(size, waits[name][warm_up:], audio_right_context=right) for name in ("all", "motion"))
    return Running(full, motion, real_time_factor(total, frames), len(waits["all"]) - warm_up)


def long_drift(
    denoiser: MotionDenoiser,
    index: Index,
    training: Index,
    settings: RolloutSettings,
    *,
    avatar: Avatar | None = None,
    role: str = "b",
    seconds: float = 240.0,
    roll_outs: int = 4,
    every: int = 5,
) -> tuple[Drift, Drift]:
    """Drift of long roll-outs over the split's joined conversations, and of the true motion.

    Mean over `roll_outs` from different conversations on. Distances are to the motion coefficients of `training`. With
    an `avatar` the first roll-out is decoded, for the sharpness of every `every`-th frame.
    """
    frames = seconds_to_frames(seconds)
    space, reader = denoiser.motion_space, ShardReader(index)
    directions = np.eye(space.dim) if space.kind == "identity" else space.basis.cpu().double().numpy()

    def coefficients(motion: np.ndarray) -> np.ndarray:
        return motion.astype(np.float64) @ directions

    trained_on = ShardReader(training)
    clips = (trained_on.read(i, {"motion"}).person(s.roles[-1]) for i, s in enumerate(training.samples))
    rows = np.concatenate([coefficients(np.asarray(person.motion)) for person in clips])
    statistics = rows.mean(0), np.cov(rows, rowvar=False)
    starts = [round(n * len(index.samples) / roll_outs) for n in range(min(roll_outs, len(index.samples)))]
    long = [_joined(reader, start, frames, role) for start in starts]
    latents = roll_out(denoiser, [turn for turn, _ in long], settings).cpu()
    light = None
    if avatar is not None:
        portrait = reader.read(starts[0], {"video"}).person(role).video
        assert portrait is not None
        identity, _ = avatar.identity(portrait[0])
        pieces = (
            latents[:1, s : s + 50 * every : every].to(avatar.device, non_blocking=True)
            for s in range(0, frames, 50 * every)
        )
        light = np.repeat(sharpness(np.stack(list(avatar.frames(identity, pieces)))), every)[:frames]
    found = [drift(coefficients(m), *statistics, light) for m in latents.numpy()]
    true = [drift(coefficients(m), *statistics) for _, m in long]
    first, second = (replace(each[0], distance=np.mean([d.distance for d in each], 0)) for each in (found, true))
    return first, second


def _joined(reader: ShardReader, start: int, frames: int, role: str) -> tuple[Turn, Float[np.ndarray, "T D"]]:
    """The conversations from index `start` on, joined, and their true motion."""
    count = len(reader.index.samples)
    turns: list[Turn] = []
    true: list[np.ndarray] = []
    while sum(map(len, true)) < frames:
        clip = reader.read((start + len(turns)) % count, {"motion", "audio_features"})
        turns.append(turn_of(clip, role))
        true.append(np.asarray(clip.person(role).motion))
    parts: dict[str, Any] = {name: np.concatenate([getattr(turn, name) for turn in turns]) for name in SIGNALS}
    return replace(turns[0], **parts).first(frames), np.concatenate(true)[:frames]


def waiting_rows(denoiser: MotionDenoiser, features: FeatureSpec) -> list[MetricRow]:
    """Rows `latency/waiting/…`: the theoretical waiting time before the first frame that can show a change."""
    text = f"ms, blocks of {denoiser.layout.block_frames} frames, computing left out"
    found = waiting_frames(denoiser.layout.block_frames, audio_right_context=features.right_context_frames)
    return [
        MetricRow(f"latency/waiting/{name}_ms", value * FRAME_MS, protocol=text, better="lower")
        for name, value in zip(("mean", "worst"), found, strict=True)
    ]


def running_rows(running: Running) -> list[MetricRow]:
    """Rows `latency`, `latency/motion_only` and `speed/rtf`, which have neither truth nor null."""
    wait = "from a change in the user's signal to its first frame, live, frame by frame"
    rows = []
    for tag, found, more in (
        ("", running.latency, ""),
        ("/motion_only", running.motion_only, ", without audio features"),
    ):
        text = f"ms, {wait}, {running.blocks} blocks{more}"
        rows += [(f"latency{tag}/mean_ms", found.mean_ms, text), (f"latency{tag}/worst_ms", found.worst_ms, text)]
    rows += [(tag, value, "compute time / media time, live session") for tag, value in running.rtf.items()]
    return [MetricRow(tag, value, n=running.blocks, protocol=text, better="lower") for tag, value, text in rows]


def drift_rows(found: Drift, true: Drift, training: str) -> list[MetricRow]:
    """Rows `drift/…`: distances of the first and last windows, and relative sharpness of the last."""
    text = (
        f"roll-outs of {found.seconds[-1] + found.seconds[1]:.0f} s, windows of 20 s, K coefficients against {training}"
    )
    rows = [
        MetricRow(f"drift/distance/{name}", float(found.distance[i]), None, len(found.distance), float(true.distance[i]),
                  protocol=text)
        for name, i in (("first", 0), ("last", -1))
    ]  # fmt: skip
    if found.sharpness is not None:
        rows.append(
            MetricRow("drift/sharpness", float(found.sharpness[-1]), None, len(found.distance), 1.0, protocol=text,
                      better="true")
        )  # fmt: skip
    return rows
