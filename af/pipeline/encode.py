"""Encoding shards: motion latents and audio features in new shards, one for one, in resumable parts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from af.data.index import Index
from af.data.parts import WHOLE, Share
from af.data.schema import MUTE, ClipMeta
from af.data.shards import ShardReader, write_shard
from af.data.stores import Location, absolute
from af.errors import UserError
from af.files import atomic_path
from af.images import image_tensor
from af.ingest.landmarks import FaceLandmarker, filled
from af.models.artifact import Artifact, load_as
from af.models.autoencoder import MotionAutoencoder
from af.models.motion_space import MotionStatistics, motion_statistics
from af.models.registry import build
from af.models.speech import SpeechFeatures
from af.nn.precision import choose
from af.pipeline.derived import derive, splits_of
from af.specs import require_spec
from af.types import FeatureSpec, MotionSpec

STATISTICS_NAME = "motion_statistics.safetensors"
SETTINGS_NAME = "encoding.json"
#: Stored precision: latents are targets, kept as exact as computed; features are inputs.
STORED: Final[Mapping[str, type[np.floating]]] = {"motion": np.float32, "audio": np.float16}
_BATCH = 64
_BATCH_PIXELS = _BATCH * 128**2  # encoded at once: 4 frames of 512 px, with half a GB of activations


def encode(
    source: Location,
    out: Path,
    autoencoder: Path,
    features: Mapping[str, Any],
    *,
    keep_video: bool = True,
    faces: bool = False,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    workers: int = 1,
    share: Share = WHOLE,
) -> list[Index]:
    """Encode every split of `source` into `out`. Returns the new indexes (none while other shares are not done).

    `autoencoder` is a model folder, `features` the description of an extractor (`{"_target_": "af.models.speech…"}`).
    `keep_video` copies the face videos, which previews and evaluation need, `faces` measures with
    `FaceLandmarker` the faces of shards without face parameters. Existing shards from unchanged inputs are
    skipped, so a stopped job continues. `precision` "bf16" runs the autoencoder in half precision (latents within about
    1 %), "auto" does so where it is fast (`af.nn.precision`). Both networks run on `device`. Statistics of the training
    motions are written beside the splits. Raises UserError when `out` was made with other settings or holds other
    shards, and before writing when the shards have no video of the autoencoder's size.
    """
    chosen = choose(precision, device)
    if precision != "fp32":
        print(f"precision: {chosen}")
    model, artifact = load_as(autoencoder, MotionAutoencoder)
    indices = splits_of(source)
    for index in indices:
        require_videos(index, model)
    settings = {
        "source": absolute(source),
        "autoencoder": artifact.latents,
        "features": dict(features),
        "keep_video": keep_video,
        "bf16": chosen.name == "bf16",
    }
    if faces:
        settings["faces"] = FaceLandmarker().face_spec.tracker
    given = (str(artifact.folder), json.dumps(features), keep_video, faces, chosen.name, str(device))

    def statistics(made: list[Index]) -> None:
        training_statistics(made, out, model.directions().detach())

    job: dict[str, Any] = {"workers": workers, "share": share, "description": "encoding"}
    return derive(indices, out / SETTINGS_NAME, settings, encode_shard, given, finish=statistics, **job)


def training_statistics(indices: Sequence[Index], out: Path, directions: Float[torch.Tensor, "D K"]) -> None:
    """Write the statistics of the training motions to `out` (of the first split if there is no training split)."""
    training = next((i for i in indices if i.split == "train"), indices[0])
    write_statistics(out / STATISTICS_NAME, motion_statistics(_motions(training), directions))


def encode_shard(
    path: Path,
    folder: str,
    shard: int,
    autoencoder: str,
    features: str,
    keep_video: bool,
    faces: bool,
    precision: str,
    device: str,
) -> int:
    """Write one encoded shard and return its number of samples. Runs in worker processes, which cache the models.

    Mute samples get no audio features: silence would teach a denoiser to move the mouth without a voice.
    """
    model, motion_spec, extractor = _models(autoencoder, features, device)
    reader = ShardReader(folder)
    copied = ("flac", "mp4") if keep_video else ("flac",)
    tracker = FaceLandmarker() if faces and reader.index.specs.get("face") is None else None

    def samples() -> Iterator[tuple[str, ClipMeta, dict[str, Any]]]:
        for i, entry in enumerate(reader.index.samples):
            if entry.shard != shard:
                continue
            clip = reader.read(i, {"video", "audio"})
            members: dict[str, Any] = {
                f"{role}.{part}": reader.read_bytes(i, f"{role}.{part}")
                for role in entry.roles
                for part in copied
                if reader.has(i, f"{role}.{part}")
            }
            meta = reader.read_meta(i)
            audio = [voice for role in entry.roles if (voice := clip.person(role).audio) is not None]
            if meta.separation != MUTE:
                for role, voice in zip(entry.roles, features_of(extractor, audio), strict=True):
                    members[f"{role}.audio.npy"] = voice.astype(STORED["audio"], copy=False)
            for role in entry.roles:
                person = clip.person(role)
                assert person.video is not None
                if reader.has(i, f"{role}.face.npy"):
                    members[f"{role}.face.npy"] = reader.read_rows(i, f"{role}.face.npy", 0, entry.frames)
                elif tracker is not None:
                    members[f"{role}.face.npy"] = filled(tracker.track(person.video))
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
                    members[f"{role}.motion.npy"] = video_motion(model, person.video).astype(
                        STORED["motion"], copy=False
                    )
            spec = meta.face_spec if tracker is None else tracker.face_spec
            yield entry.key, replace(meta, motion_spec=motion_spec, audio_spec=extractor.spec, face_spec=spec), members

    return write_shard(path, samples())[0]


def features_of(extractor: SpeechFeatures, voices: Sequence[Float[np.ndarray, " S"]]) -> list[Float[np.ndarray, "T F"]]:
    """Speech features of the voices of a conversation; computed together on accelerators, where many windows cost
    little more than a few.
    """
    sounds = [torch.from_numpy(voice) for voice in voices]
    together = extractor.device.type != "cpu" and len({len(sound) for sound in sounds}) == 1
    groups = [sounds] if together else [[sound] for sound in sounds]
    return [torch.cat(voice).cpu().numpy() for group in groups for voice in zip(*extractor.voices(group), strict=True)]


def video_motion(
    model: MotionAutoencoder, frames: Iterable[UInt8[np.ndarray, "Y X 3"]], batch: int | None = None
) -> Float[np.ndarray, "T D"]:
    """Motion latents of face frames of the model's size. `batch` as in `video_motion_pieces`."""
    pieces = list(video_motion_pieces(model, frames, batch))
    return np.concatenate(pieces) if pieces else np.zeros((0, model.latent_dim), np.float32)


@torch.inference_mode()
def video_motion_pieces(
    model: MotionAutoencoder, frames: Iterable[UInt8[np.ndarray, "Y X 3"]], batch: int | None = None
) -> Iterator[Float[np.ndarray, "t D"]]:
    """`video_motion` in pieces of `batch` frames (default: `frames_at_once`), in bounded memory for any length."""
    device = next(model.parameters()).device
    batch = batch or frames_at_once(model)
    iterator = iter(frames)
    while group := list(islice(iterator, batch)):
        yield model.motion(image_tensor(np.stack(group), device), check=False).float().cpu().numpy()


def frames_at_once(model: MotionAutoencoder) -> int:
    """Number of frames to encode in one call: 64, fewer above 128 px."""
    return max(1, min(_BATCH, _BATCH_PIXELS // model.image_size**2))


def face_crop(name: str, frame: UInt8[np.ndarray, "Y X 3"], size: int) -> UInt8[np.ndarray, "Y X 3"]:
    """Return `frame`. Raises UserError unless it is a crop of `size` pixels."""
    if isinstance(frame, torch.Tensor):
        frame = frame.numpy(force=True)
    shape, kind = np.shape(frame), getattr(frame, "dtype", type(frame).__name__)
    if shape != (size, size, 3) or kind != np.uint8:
        raise UserError(f"{name}: expected face crops ({size}, {size}, 3) of uint8, got {tuple(shape)} of {kind}")
    return frame


def motion_spec_of(model: MotionAutoencoder, digest: str) -> MotionSpec:
    """The motion spec of shards encoded by this autoencoder."""
    return MotionSpec(
        dim=model.latent_dim, directions=model.directions_count, autoencoder=digest, image_size=model.image_size
    )


def carry_statistics(roots: Sequence[Location], out: Path, indices: Sequence[Index]) -> bool:
    """Write statistics for shards in `out` merged from encoded `roots`. Returns whether the roots were encoded."""
    if not all((root / STATISTICS_NAME).is_file() for root in roots):
        return False
    training_statistics(indices, out, read_statistics(roots[0]).basis)
    return True


def write_statistics(path: Path, statistics: MotionStatistics) -> None:
    """Save the mean, covariance and directions."""
    with atomic_path(path) as temporary:
        save_file({k: v.contiguous() for k, v in vars(statistics).items()}, temporary)


def read_statistics(root: Location) -> MotionStatistics:
    """Read the motion statistics beside encoded shards. Raises UserError unless `root` was written by `af encode`."""
    file = root / STATISTICS_NAME
    if not file.is_file():
        raise UserError(f"{file} is missing: {root} holds no encoded shards; make them with `af encode`")
    try:
        tensors = load(file.read_bytes())
        if "covariance" not in tensors:  # written by an earlier version
            tensors["covariance"] = tensors.pop("std").square().diag()
        found = MotionStatistics(**tensors)
    except (KeyError, SafetensorError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} does not hold motion statistics ({error}); delete it and run `af encode` again"
        ) from error
    directions = tuple(found.basis.shape[1:])
    fits = found.basis.ndim == 2 and found.mean.shape == directions and found.covariance.shape == 2 * directions
    finite = all(torch.isfinite(value).all() for value in vars(found).values())
    if not fits or not finite or (found.covariance.diagonal() < 0).any():
        raise UserError(
            f"{file}: the motion statistics are not finite, or do not fit together; look for the cause with "
            f"`af shards validate {root}`, then run `af encode` again"
        )
    return found


def spec_of(index: Index) -> tuple[FeatureSpec, MotionSpec]:
    """Feature and motion specs of encoded shards. Raises UserError when they are missing."""
    audio, motion = index.specs.get("audio"), index.specs.get("motion")
    if audio is None or motion is None:
        raise UserError(f"{index.folder} holds no motion latents and audio features; run `af encode` on it first")
    return FeatureSpec.from_json(audio), MotionSpec.from_json(motion)


def require_specs(index: Index, artifact: Artifact) -> None:
    """Raise UserError unless the shards hold the latents and features that the denoiser was trained on."""
    audio, motion = spec_of(index)
    remedy = "Use the shards that this denoiser was trained on, or shards encoded in the same way."
    where = str(index.folder)
    require_spec(audio, artifact.feature_spec, where=where, remedy=remedy)
    require_spec(motion, artifact.motion_spec, where=where, remedy=remedy)


@lru_cache(maxsize=1)
def _models(autoencoder: str, features: str, device: str) -> tuple[MotionAutoencoder, MotionSpec, SpeechFeatures]:
    model, artifact = load_as(autoencoder, MotionAutoencoder)
    return (
        model.to(device),
        motion_spec_of(model, artifact.latents),
        build(json.loads(features), "features", any_class=True).to(device),
    )


def require_videos(index: Index, model: MotionAutoencoder, shrunk_to: int | None = None) -> None:
    """Raise UserError unless the shards hold everybody's videos at the autoencoder's size, or are `shrunk_to` it."""
    if blind := next((s for s in index.samples if not {f"{role}.mp4" for role in s.roles} <= set(s.members)), None):
        raise UserError(
            f"{index.folder}: no video of {blind.key}, which the autoencoder needs; use the shards with videos"
        )
    if index.samples and (shrunk_to or index.image_size) != model.image_size:
        raise UserError(
            f"{index.folder} has frames of {index.image_size} px, the autoencoder is for {model.image_size}; "
            "give shards of that size (in training also data.image_size), or an autoencoder trained on these"
        )


def _motions(index: Index) -> Iterator[torch.Tensor]:
    reader = ShardReader(index)
    for i, entry in enumerate(index.samples):
        for role in entry.roles:
            yield torch.from_numpy(reader.read_rows(i, f"{role}.motion.npy", 0, entry.frames).copy())
