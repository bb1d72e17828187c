"""A checkpoint on a split: roll out every conversation, decode, track, compare. One sample a clip, seeded by its key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from af.data.index import Index
from af.data.schema import other_role
from af.data.shards import ShardReader
from af.data.video_writer import write_video
from af.evaluation.faces import FaceSource
from af.files import atomic_path
from af.images import image_array, image_tensor
from af.metrics.likeness import l1, psnr, ssim
from af.metrics.records import EvaluationClip
from af.models.autoencoder import MotionAutoencoder
from af.models.denoiser import MotionDenoiser
from af.pipeline.encode import frames_at_once
from af.pipeline.rolling import RolloutSettings, roll_out, turn_of
from af.pipeline.side_by_side import enlarged, side_by_side
from af.types import Clip, FaceSpec

FIELDS = frozenset({"audio", "motion", "audio_features"})


@dataclass(frozen=True)
class Reconstruction:
    """Cross-frame reconstruction: {"psnr" (dB), "ssim", "l1" (range 0 … 1), "lpips" if asked for} of
    the autoencoder, and of copying the source.
    """

    model: Mapping[str, float]
    copy: Mapping[str, float]
    pairs: int


def evaluate_split(
    denoiser: MotionDenoiser,
    index: Index,
    faces: FaceSource,
    out: Path,
    *,
    settings: RolloutSettings = RolloutSettings(),  # noqa: B008 (frozen)
    avatar_role: str = "b",
    limit: int | None = None,
    videos: int = 4,
    advance: Callable[[], None] = lambda: None,
) -> list[EvaluationClip]:
    """Generate the avatar of every clip and read its face; returns what the metrics need. Faces that `faces` only decodes
    are filmed, no more: nothing is returned, and clips without a video are left out.

    Results of single clips are kept in `out`/clips, so a stopped evaluation goes on. Where `faces` decodes frames, the
    first `videos` clips are written as mp4: each side alone (`film_path`), and user | generated | true with both voices.
    `advance` is called once a clip.
    """
    reader = ShardReader(index)
    count = len(index.samples[:limit]) if faces.spec is not None else len(index.samples[:limit][:videos])
    results: dict[int, EvaluationClip | None] = {}
    waiting: dict[int, list[tuple[int, Clip]]] = {}

    def flush(group: Sequence[tuple[int, Clip]]) -> None:
        motions = roll_out(denoiser, [turn_of(clip, avatar_role) for _, clip in group], settings)
        for (i, clip), motion in zip(group, motions, strict=True):
            results[i] = _finish(clip, motion, faces, out, avatar_role, i < videos)
            advance()

    for i in range(count):
        clip = reader.read(i, FIELDS | faces.fields)
        found, known = _load(_result_path(out, clip.key), clip, avatar_role, faces.spec)
        if found and (i >= videos or "video" not in faces.fields or _video_path(out, clip.key).is_file()):
            results[i] = known
            advance()
            continue
        group = waiting.setdefault(int(clip.meta["frames"]), [])
        group.append((i, clip))
        if len(group) == settings.batch:
            flush(group)
            group.clear()
    for group in waiting.values():
        if group:
            flush(group)
    return [result for i in sorted(results) if (result := results[i]) is not None]


def _finish(
    clip: Clip,
    motion: Float[Tensor, "T D"],
    source: FaceSource,
    out: Path,
    role: str,
    video: bool,
) -> EvaluationClip | None:
    user, true = clip.person(other_role(role)), clip.person(role)
    faces = source.faces(user, true, motion)
    if video and faces.frames is not None:
        assert user.video is not None
        assert true.video is not None
        sides = {"user": user.video, "generated": faces.frames, "true": true.video}
        voices = {"user": user.audio, "generated": true.audio, "true": true.audio}
        for side, frames in sides.items():
            write_video(film_path(out, clip.key, side), enlarged(frames), voices[side], crf=14)
        large = len(enlarged(user.video[:1])[0])
        rows = (side_by_side(dict(zip(sides, row, strict=True)), large) for row in zip(*sides.values(), strict=True))
        write_video(_video_path(out, clip.key), rows, _mixed(user.audio, true.audio), crf=14)
    path = _result_path(out, clip.key)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **faces.tracks)  # type: ignore[arg-type]
    return _clip(clip, role, source.spec, faces.tracks)


def _clip(clip: Clip, role: str, face: FaceSpec | None, tracks: Mapping[str, np.ndarray]) -> EvaluationClip | None:
    if face is None:
        return None
    user = other_role(role)
    ends = clip.meta.get("extra", {}).get("phrase_ends")
    return EvaluationClip(
        name=clip.key,
        identity=clip.meta["participants"][0 if role == "a" else 1],
        user=tracks["user"],
        true=tracks["true"],
        generated=tracks["generated"],
        face=face,
        avatar_audio=clip.person(role).audio,
        user_audio=clip.person(user).audio,
        phrase_ends=None if ends is None else tuple(ends[user]),
        session=clip.meta["session"],
    )


def _load(path: Path, clip: Clip, role: str, face: FaceSpec | None) -> tuple[bool, EvaluationClip | None]:
    """Whether a clip is done, and its result."""
    if not path.is_file():
        return False, None
    with np.load(path, allow_pickle=False) as tracks:
        return True, _clip(clip, role, face, dict(tracks))


def _result_path(out: Path, key: str) -> Path:
    return out / "clips" / f"{key}.npz"


def _video_path(out: Path, key: str) -> Path:
    return out / "videos" / f"{key}.mp4"


def film_path(out: Path, key: str, side: str) -> Path:
    """The video of one side ("user", "generated", "true") of a clip that `evaluate_split` filmed."""
    return out / "videos" / key / f"{side}.mp4"


def _mixed(*voices: np.ndarray | None) -> np.ndarray | None:
    present = [v for v in voices if v is not None]
    return np.clip(np.sum(present, axis=0), -1, 1).astype(np.float32) if present else None


@torch.inference_mode()
def evaluate_reconstruction(
    autoencoder: MotionAutoencoder,
    index: Index,
    *,
    pairs_per_clip: int = 4,
    seed: int = 0,
    batch: int | None = None,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Reconstruction:
    """Likeness, mean over pairs, of driving frames made from another frame of the same clip, both people.

    `lpips` takes pictures in −1 … 1 and gives the mean of a batch. `batch` pairs at a time (default: `frames_at_once`).
    """
    reader = ShardReader(index)
    device = next(autoencoder.parameters()).device
    rng, batch = np.random.default_rng(seed), batch or frames_at_once(autoencoder)
    sources, drivings = [], []
    for i in range(len(index.samples)):
        clip = reader.read(i, {"video"})
        for person in (clip.a, clip.b):
            assert person.video is not None
            for _ in range(pairs_per_clip):
                first, second = rng.choice(len(person.video), 2, replace=False)
                sources.append(person.video[first])
                drivings.append(person.video[second])
    totals: dict[str, dict[str, float]] = {"model": defaultdict(float), "copy": defaultdict(float)}
    for start in range(0, len(sources), batch):
        source, driving = np.stack(sources[start : start + batch]), np.stack(drivings[start : start + batch])
        output = autoencoder(image_tensor(source, device), image_tensor(driving, device)).image
        for side, images in (("model", image_array(output)), ("copy", source)):
            for name, value in likeness(images, driving, lpips, device).items():
                totals[side][name] += value * len(images) / len(sources)
    return Reconstruction(totals["model"], totals["copy"], len(sources))


def likeness(
    images: UInt8[np.ndarray, "B Y X 3"],
    true: UInt8[np.ndarray, "B Y X 3"],
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """PSNR, SSIM, L1 and, with a network for it (which runs on `device`), LPIPS: means over the batch."""
    first, second = (image_tensor(side) for side in (images, true))
    values = {
        "psnr": psnr(first, second),
        "ssim": ssim(first, second),
        "l1": l1(first, second) / 2,  # of the range −1 … 1
    }
    return values if lpips is None else values | {"lpips": float(lpips(first.to(device), second.to(device)))}
