"""Evaluating a model on the conversations of a split: roll out, decode and measure one sample per clip, then report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from af.console import doing
from af.data.generated import STATEMENT
from af.data.index import Index
from af.data.provenance import HeldOut, drawn
from af.data.schema import other_role
from af.data.shards import ShardReader
from af.data.stores import absolute, location
from af.data.video_writer import write_video
from af.devices import machine
from af.errors import UserError
from af.evaluation.extractors import tracked
from af.evaluation.linear_probe import LinearProbe
from af.evaluation.manifest import ManifestClip, write_manifest
from af.evaluation.measured import SIDES, Measured, Table, fill_gaps, hints, look, paired_features, remarks
from af.evaluation.reconstruction import reconstruction_rows
from af.evaluation.report import attempt, write_report
from af.evaluation.running import drift_rows, long_drift, measure_running, running_rows, waiting_rows
from af.evaluation.settings import ONLY_DRAWN, CheckpointSettings
from af.files import claim_folder, write_json
from af.forcing.solvers import OLDER
from af.metrics.records import EvaluationClip, MetricResult, MetricRow, Protocol
from af.models.artifact import load_as, load_model, model_info
from af.models.autoencoder import MotionAutoencoder
from af.models.denoiser import MotionDenoiser
from af.models.perceptual import LpipsPerceptual
from af.models.tracker import FaceTracker, load_tracker
from af.pipeline.avatar import Avatar
from af.pipeline.encode import require_specs, spec_of
from af.pipeline.rolling import RolloutSettings, roll_out, turn_of
from af.pipeline.sampling import usual_sampling
from af.pipeline.side_by_side import enlarged, side_by_side
from af.specs import require_spec
from af.types import Clip, FaceSpec

#: File in the results' folder that lists the videos for `af compare`.
MANIFEST: Final = "manifest.csv"
_FIELDS: Final = frozenset({"audio", "motion", "audio_features"})
_ROLE: Final = "b"


@dataclass(frozen=True)
class Subject:
    """Models and data of an evaluation; faces come from decoded frames (`avatar`) or from the latents (`probe`).

    `sampling` is how the model is usually sampled. `digests` are the models' hashes; `people` tells whether the split is held
    out. With `remember`, measurements of true frames are kept for later evaluations of the same clips.
    """

    name: str
    denoiser: MotionDenoiser
    index: Index
    settings: CheckpointSettings
    sampling: Mapping[str, Any]
    avatar: Avatar | None = None
    probe: LinearProbe | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    people: HeldOut = HeldOut("unknown", "unknown whether held out")  # noqa: RUF009 (frozen)
    remember: dict[str, Any] | None = None

    @classmethod
    def load(cls, denoiser: str | Path, settings: CheckpointSettings, device: torch.device) -> Subject:
        """Read the models (a model folder, run or checkpoint each) and the split. UserError when they do not fit."""
        index = Index.load(location(settings.split(denoiser=True))).conversations()
        model, artifact = load_as(denoiser, MotionDenoiser)
        require_specs(index, artifact)
        motion_spec, sampling = spec_of(index)[1], usual_sampling(artifact.info)
        digests = {"denoiser": artifact.digest, "autoencoder": motion_spec.autoencoder}
        models = {str(denoiser): artifact.info}
        avatar = probe = None
        if settings.autoencoder is not None:
            images = load_model(settings.autoencoder, MotionAutoencoder)
            digests["autoencoder"] = images.digest
            avatar, models = Avatar.of(images, artifact, device), models | {settings.autoencoder: images.info}
            settings = with_tracker(settings, index)
        else:
            probe = LinearProbe.fit(Index.load(location(str(settings.linear_probe))))
            remedy = "Give a split of the same latents as linear_probe."
            require_spec(probe.motion_spec, motion_spec, where=str(settings.linear_probe), remedy=remedy)
        if settings.lpips:
            LpipsPerceptual("alex")  # report missing parts before the roll-outs
        settings.on(device)
        remember: dict[str, Any] | None = {} if settings.conditions == "all" else None
        people = HeldOut.of(index, models, settings.limit)
        subject = cls(
            str(denoiser), model.to(device), index, settings, sampling, avatar, probe, digests, people, remember
        )
        if settings.conditions == "all" and subject.face_spec is None:
            raise UserError(
                f"{settings.data}: conditions=all compares what is read from faces, and the tracker that comes with this "
                "program knows drawn ones alone: choose one with evaluation/tracker=…"
            )
        return subject

    @property
    def face_spec(self) -> FaceSpec | None:
        """The layout of the tracked faces; None without a tracker."""
        if self.probe is not None:
            return self.probe.face_spec
        return None if self.settings.tracker is None else self.settings.tracker.face_spec

    @property
    def rollout(self) -> RolloutSettings:
        """How its conversations are generated."""
        return self.settings.rollout(self.sampling)

    @property
    def count(self) -> int:
        """Number of clips to evaluate."""
        return len(self.index.samples[: self.settings.limit])

    @property
    def videos(self) -> int:
        """Number of clips to write as videos: all of them without a tracker, so that faces can be tracked later."""
        asked = self.settings.videos
        if self.avatar is None:
            return 0
        return (self.count if self.face_spec is None else 4) if asked is None else asked

    @property
    def protocol(self) -> Protocol:
        """The settings' protocol, with the model's block size."""
        return replace(self.settings.named_protocol, block=self.denoiser.layout.block_frames)

    def table(self, device: torch.device) -> Table:
        """An empty table for the clips."""
        return Table(self.protocol, self.settings.metrics, device)

    def groups(self) -> list[list[int]]:
        """Indices of clips to roll out together: equally long, at most `batch`. They do not depend on the number of
        ranks, so neither do the results.
        """
        seen = self.face_spec is not None or self.settings.reads_images
        lengths: dict[int, list[int]] = {}
        for i, entry in enumerate(self.index.samples[: self.count if seen else min(self.count, self.videos)]):
            lengths.setdefault(entry.frames, []).append(i)
        size = self.settings.batch
        return [same[s : s + size] for same in lengths.values() for s in range(0, len(same), size)]

    def claim(self, out: Path) -> None:
        """Raise UserError if results kept in `out` belong to other settings."""
        rollout = self.rollout
        made_with = {
            **asdict(rollout),
            "signals": list(rollout.signals),
            "data": absolute(location(str(self.settings.data))),
        }
        if self.settings.linear_probe is not None:
            made_with["linear_probe"] = absolute(location(self.settings.linear_probe))
        faces = None if self.face_spec is None else self.face_spec.tracker
        claim_folder(out / "evaluation.json", {**made_with, "faces": faces, **self.digests}, unnamed=OLDER)

    def measure(self, group: Sequence[int], out: Path | None) -> dict[int, Measured | str]:
        """Generate and measure the clips of one group: {index: result, or the error of a clip that failed}.

        Results are kept in `out`/clips, so a stopped evaluation continues there. The first `videos` clips are written
        as mp4: each side alone, and user | generated | true with both voices.
        """
        reader, results = ShardReader(self.index), dict[int, Measured | str]()
        waiting: list[tuple[int, Clip, Measured]] = []
        for i in group:
            try:
                clip = reader.read(i, _FIELDS | ({"video"} if self.avatar is not None else set()))
            except UserError as error:
                results[i] = str(error)
                continue
            videos = {side: video_path(out, clip.key, side) for side in SIDES} if out and i < self.videos else {}
            measured = Measured(_described(clip), videos=videos)
            kept = measured.load(_kept(out, clip.key), self.settings.signature()) if out else None
            if kept is not None and all(path.is_file() for path in videos.values()):
                results[i] = kept
            else:
                waiting.append((i, clip, measured))
        turns = [turn_of(clip, _ROLE) for _, clip, _ in waiting]
        motions = roll_out(self.denoiser, turns, self.rollout) if turns else ()
        for (i, clip, measured), motion in zip(waiting, motions, strict=True):
            try:
                results[i] = self._read(clip, motion, measured, out)
            except UserError as error:
                results[i] = str(error)
        return results

    def _read(self, clip: Clip, motion: Float[Tensor, "T D"], measured: Measured, out: Path | None) -> Measured:
        user, true = clip.person(other_role(_ROLE)), clip.person(_ROLE)
        notes: list[str] = []
        if self.probe is not None:
            latents = {"user": user.motion, "true": true.motion, "generated": motion.cpu().numpy()}
            known: dict[str, Any] = {side: self.probe(m) for side, m in latents.items() if m is not None}
        else:
            assert self.avatar is not None
            assert user.video is not None
            assert true.video is not None
            identity, _ = self.avatar.identity(true.video[0])
            blocks = (motion[None, s : s + 50] for s in range(0, len(motion), 50))
            videos = {"user": user.video, "true": true.video}
            videos["generated"] = np.stack(list(self.avatar.frames(identity, blocks)))
            known = self._look(videos, measured.clip, notes)
            if measured.videos:
                assert out is not None
                _write_videos(out, measured.clip, videos)
        found = replace(measured, clip=replace(measured.clip, face=self.face_spec, **known), notes=tuple(notes))
        if out is not None:
            found.save(_kept(out, clip.key), self.settings.signature(), voices=False)
        return found

    def _look(
        self, videos: Mapping[str, UInt8[np.ndarray, "T Y X 3"]], clip: EvaluationClip, notes: list[str]
    ) -> dict[str, Any]:
        """Face parameters, features and numbers of the three sides."""
        tools, known, features, values = self.settings, dict[str, Any](), dict[str, Any](), dict[str, float]()
        for side, frames in videos.items():
            key = f"{clip.name}/{side}"
            if self.remember is not None and key in self.remember:
                face, seen, numbers = self.remember[key]
            else:
                face, seen, numbers = None, [], {}
                if tools.tracker is not None:
                    face, note = fill_gaps(tracked(tools.tracker, frames), f"{clip.name}, {side}")
                    notes += [note] if note else []
                if side != "user":
                    seen, numbers = look(tools, side, frames, clip.avatar_audio, videos["true"][0])
                if self.remember is not None and side != "generated":
                    self.remember[key] = face, seen, numbers
            known |= {} if face is None else {side: face}
            features[side] = seen
            values |= numbers
        return {**known, "values": values, "features": paired_features(tools, features["true"], features["generated"])}


def _described(clip: Clip) -> EvaluationClip:
    ends = clip.meta.get("extra", {}).get("phrase_ends")
    return EvaluationClip(
        clip.key,
        clip.meta["participants"][1],
        avatar_audio=clip.person(_ROLE).audio,
        user_audio=clip.person(other_role(_ROLE)).audio,
        phrase_ends=None if ends is None else tuple(ends[other_role(_ROLE)]),
        session=clip.meta["session"],
    )


def _kept(out: Path, key: str) -> Path:
    return out / "clips" / f"{key}.npz"


def with_tracker(settings: CheckpointSettings, index: Index) -> CheckpointSettings:
    """The settings, with the tracker of synthetic faces as default if the whole split is synthetic."""
    if settings.tracker is None and drawn(index, settings.limit):
        return replace(settings, tracker=load_tracker())
    return settings


def video_path(out: Path, key: str, side: str) -> Path:
    """The video of one side ("user", "generated", "true") of a clip."""
    return out / "videos" / key / f"{side}.mp4"


def _write_videos(out: Path, clip: EvaluationClip, videos: Mapping[str, UInt8[np.ndarray, "T Y X 3"]]) -> None:
    sides = {side: videos[side] for side in ("user", "generated", "true")}
    voices = {"user": clip.user_audio, "generated": clip.avatar_audio, "true": clip.avatar_audio}
    present = [v for v in (clip.user_audio, clip.avatar_audio) if v is not None]
    mixed = np.clip(np.sum(present, axis=0), -1, 1).astype(np.float32) if present else None
    large = len(enlarged(videos["user"][:1])[0])
    rows = (side_by_side(dict(zip(sides, row, strict=True)), large) for row in zip(*sides.values(), strict=True))
    write_video(out / "videos" / f"{clip.name}.mp4", rows, mixed, crf=14, generated=STATEMENT)
    for side, frames in sides.items():
        said = STATEMENT if side == "generated" else None
        write_video(video_path(out, clip.name, side), enlarged(frames), voices[side], crf=14, generated=said)


def report_checkpoint(
    subject: Subject,
    result: MetricResult,
    measured: Sequence[Measured],
    problems: Mapping[str, str],
    out: Path,
    took_s: float,
) -> int:
    """Write the report, with reconstruction, latency, speed and drift; returns the exit code.

    `problems` {clip: why it was left out}; `took_s` is the time for the clips.
    """
    settings, failed = subject.settings, dict(result.absent)
    about = {"people": [subject.people.text]}
    if isinstance(settings.tracker, FaceTracker) and not drawn(subject.index, settings.limit):
        about["faces"] = [ONLY_DRAWN]
    extra: dict[str, Any] = {"seconds_per_clip": took_s / max(1, subject.count), "clips": subject.count}
    extra |= {"people": subject.people.known, "machine": machine()}
    if subject.probe is not None:
        extra |= {f"linear_probe_r2/{name}": r2 for name, r2 in subject.probe.r2.items()}
        shows = "faces are a linear function of the latents; the decoded video may show less: see var_ratio there"
        about["linear_probe"] = [shows]
    listed = _write_manifest(measured, out)
    block = f"evaluation.protocol.block={subject.protocol.block}"
    said = hints(
        measured,
        subject.protocol.block,
        "nobody here reads these faces: the tracker that comes with this program knows drawn ones alone. Choose one "
        "(evaluation/tracker=mediapipe), here or for the videos: "
        f"af compare {out / MANIFEST} evaluation/tracker=mediapipe {block} --out FOLDER",
        "faces are read from the latents, no frame is decoded" if subject.avatar is None else "",
    )
    result.absent |= {tag: why for tag, why in said.items() if failed.get(tag, "").startswith("needs ")}
    if subject.avatar is not None:
        with attempt("psnr, ssim, l1", result.absent):
            result.rows[:0] = _reconstruction(subject.avatar.autoencoder, subject.index, subject.people, settings)
        if not settings.lpips:
            result.absent["lpips"] = "needs a network: pip install 'avatar-forcing[lpips]' and evaluation.lpips=true"
    result.rows += _running(subject, out, result.absent)
    made_with: dict[str, Any] = {k: v for k, v in asdict(subject.rollout).items() if isinstance(v, int | float)}
    code = write_report(
        out,
        result,
        subject.protocol,
        title=f"{subject.name} on {settings.data}",
        measured=measured,
        problems=problems,
        notes={**about, **remarks(measured, result)},
        gallery=settings.gallery and listed,
        extra=extra,
        made_with={**made_with, "denoiser": subject.name, **asdict(subject.rollout.guidance)},
    )
    if listed:
        print(f"{out / MANIFEST}: the videos for af compare")
    return code


def report_autoencoder(autoencoder: str | Path, settings: CheckpointSettings, out: Path, device: torch.device) -> int:
    """Write the report of a motion VAE (reconstruction from another frame); returns the exit code."""
    index, result = Index.load(location(settings.split(denoiser=False))), MetricResult()
    model, artifact = load_as(autoencoder, MotionAutoencoder)
    people = HeldOut.of(index, {str(autoencoder): artifact.info})
    result.rows += _reconstruction(model.to(device), index, people, settings)
    about, extra = {"people": [people.text]}, {"people": people.known}
    return write_report(
        out, result, settings.protocol, title=f"{autoencoder} on {settings.data}", notes=about, extra=extra
    )


def is_autoencoder(folder: str | Path) -> bool:
    """Whether a model folder, run or checkpoint holds a motion VAE."""
    return str(model_info(folder)["model"].get("_target_", "")).endswith(MotionAutoencoder.__name__)


def _reconstruction(
    autoencoder: MotionAutoencoder, index: Index, people: HeldOut, settings: CheckpointSettings
) -> list[MetricRow]:
    lpips = LpipsPerceptual("alex") if settings.lpips else None
    with doing("reconstruction"):
        return reconstruction_rows(autoencoder, index, people=people.text, seed=settings.seed, lpips=lpips)


def _running(subject: Subject, out: Path, missing: dict[str, str]) -> list[MetricRow]:
    """Latency, speed and, if requested, drift; reasons for missing measurements are added to `missing`."""
    index, avatar, settings = subject.index, subject.avatar, subject.settings
    rows = waiting_rows(subject.denoiser, spec_of(index)[0])
    if avatar is not None:
        with doing("a live session"), attempt("latency, speed", missing):
            try:
                clip = ShardReader(index).read(0, {"video", "audio"})
                rows += running_rows(measure_running(avatar, clip, subject.rollout))
            except (UserError, ValueError) as error:
                missing["latency, speed"] = str(error)
    if not settings.drift:
        missing["drift"] = "needs long roll-outs: evaluation.drift=true"
        return rows
    beside = location(str(settings.data)).parent / "train"
    folder = settings.linear_probe or (beside if (beside / "index.json").is_file() else str(settings.data))
    with doing("roll-outs of 4 minutes"), attempt("drift", missing):
        training = Index.load(location(str(folder)))
        found, true = long_drift(subject.denoiser, index, training, subject.rollout, avatar=avatar)
        curves = {"start_s": found.seconds, "distance": found.distance, "true": true.distance}
        write_json(out / "drift.json", {name: values.tolist() for name, values in curves.items()})
        rows += drift_rows(found, true, f"those of {folder}")
    return rows


def _write_manifest(measured: Sequence[Measured], out: Path) -> bool:
    """List the clips written as videos, for `af compare`. Returns whether there are any."""
    listed = []
    for m in (m for m in measured if m.videos):
        clip, about = m.clip, dict[str, Any](m.videos)
        about |= {"identity": clip.identity, "session": clip.session, "phrase_ends": clip.phrase_ends}
        listed.append(ManifestClip(clip.name, **about))
    if listed:
        write_manifest(out / MANIFEST, listed)
    return bool(listed)
