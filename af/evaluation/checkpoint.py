"""The checkpoint form of `af evaluate`: a model on the conversations of a split."""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from af.cli.devices import device_of
from af.cli.sampling import anchor_of, guidance_of
from af.console import doing, show
from af.files import read_json

if TYPE_CHECKING:
    from af.data.index import Index
    from af.data.provenance import HeldOut
    from af.evaluation.faces import FaceSource
    from af.evaluation.manifest import ManifestClip
    from af.metrics.records import EvaluationClip, MetricRow, Protocol
    from af.models.denoiser import MotionDenoiser
    from af.pipeline.avatar import Avatar
    from af.pipeline.rolling import RolloutSettings

#: In the results' folder: the videos that were made, as `af evaluate --manifest` reads them.
MANIFEST: Final = "manifest.csv"


def evaluate_checkpoint(args: argparse.Namespace) -> int:
    """Generate, read the faces, compare; print and write the table, the videos and TensorBoard's copy of the numbers."""
    from rich.console import Console

    from af.evaluation.faces import LatentReadout
    from af.evaluation.report import attempt, failed, write_report
    from af.forcing.dropout import SIGNALS, named_subset
    from af.metrics import evaluate_clips, families
    from af.pipeline.rolling import RolloutSettings

    every = args.conditions == "all"
    signals = SIGNALS if every or args.conditions is None else named_subset(args.conditions)
    guidance = guidance_of(args)
    settings = RolloutSettings(args.steps, guidance, args.seed, signals=signals, anchor=anchor_of(args))
    subject = _load(args)
    console, read = Console(), subject.faces.spec is not None
    if subject.people.known != "held out":
        console.print(subject.people.text, style="yellow", markup=False, highlight=False)
    if args.overwrite and args.out.exists():
        shutil.rmtree(args.out)
    if every:
        return _every_subset(subject, settings, args)
    lpips = None
    if subject.avatar is not None and args.lpips:
        from af.models.perceptual import LpipsPerceptual

        lpips = LpipsPerceptual("alex")  # what it lacks is told before the roll-outs
    _claim(subject, settings, args.out, args)
    start = time.monotonic()
    count = _count(subject.index, args)
    filmed = 0 if subject.avatar is None else count if args.videos is None and not read else _films(args)
    clips = _roll_out(subject, settings, args.out, args, videos=filmed)
    missing: dict[str, str] = {}
    protocol = _protocol(subject)
    with doing("computing the numbers"):
        report = evaluate_clips(clips, protocol, attempt=lambda family: attempt(family, missing))
    notes = {"people": [subject.people.text], **report.remarks}
    missing |= report.absent
    rows = report.rows
    extra: dict[str, Any] = {"seconds_per_clip": (time.monotonic() - start) / max(1, count), "clips": count}
    extra["people"] = subject.people.known
    if subject.avatar is not None:
        with attempt("psnr, ssim, l1", missing):
            rows = [*_reconstruction(subject, lpips, args.seed), *rows]
    rows += _running(subject, settings, args, missing)
    if subject.avatar is not None and not args.lpips:
        missing["lpips"] = "needs a network: pip install 'avatar-forcing[lpips]' and --lpips"
    if isinstance(subject.faces, LatentReadout):
        extra |= {f"readout_r2/{name}": r2 for name, r2 in subject.faces.r2.items()}
        notes["readout"] = [
            "faces are a linear function of the latents; the decoded video may show less: see var_ratio there"
        ]
    listed = _manifest(subject.index, filmed, args.out)
    if not read:
        remedy = f"af evaluate --manifest {args.out / MANIFEST} --mediapipe face_landmarker.task"
        why = (
            "nobody here reads these faces: the tracker that comes with this program knows drawn ones alone. "
            f"Go on with: {remedy} --block {protocol.block} --out FOLDER"
        )
        missing |= {tag: why for metric in families(protocol) if metric.of_faces for tag in metric.needs}
    videos = None
    if listed and not args.no_gallery:
        videos = {c.clip: {"user": c.user, "generated": c.generated, "true": c.true} for c in listed}
    write_report(
        args.out,
        rows,
        report,
        clips,
        protocol,
        title=f"{args.denoiser} on {args.data}",
        not_computed=missing,
        notes=notes,
        videos=videos,
        audio={clip.name: clip.avatar_audio for clip in clips},
        extra=extra,
        console=console,
    )
    with attempt("settings in tensorboard", missing):
        _settings_to_tensorboard(args.out, rows, args)
    if listed:
        print(f"{args.out / MANIFEST}: the videos for af evaluate --manifest")
    return failed(missing)


def _films(args: argparse.Namespace) -> int:
    return 4 if args.videos is None else args.videos


def _manifest(index: Index, count: int, out: Path) -> list[ManifestClip]:
    """The first `count` clips as `evaluate_split` filmed them, written for the form of files; none is no manifest."""
    from af.data.shards import ShardReader
    from af.evaluation.manifest import ManifestClip, write_manifest
    from af.evaluation.split import film_path

    reader, listed = ShardReader(index), []
    for i, entry in enumerate(index.samples[:count]):
        meta = reader.read_meta(i)
        user, true, generated = (film_path(out, entry.key, side) for side in ("user", "true", "generated"))
        ends = meta.extra.get("phrase_ends")
        known: dict[str, Any] = {"identity": meta.participants[1], "session": meta.session}
        known["phrase_ends"] = None if ends is None else tuple(ends["a"])
        listed.append(ManifestClip(entry.key, user, true, generated, **known))
    if listed:
        write_manifest(out / MANIFEST, listed)
    return listed


@dataclass(frozen=True)
class _Subject:
    """What is evaluated on what, and where faces come from; `avatar` where frames are decoded."""

    denoiser: MotionDenoiser
    faces: FaceSource
    index: Index
    avatar: Avatar | None
    digests: dict[str, str]
    people: HeldOut


def _load(args: argparse.Namespace) -> _Subject:
    from af.data.index import Index
    from af.data.provenance import HeldOut, drawn
    from af.errors import UserError
    from af.evaluation.faces import DecodedFaces, LatentReadout, RememberingTracker, TrackedFaces
    from af.models.artifact import load_as, load_model
    from af.models.autoencoder import MotionAutoencoder
    from af.models.denoiser import MotionDenoiser
    from af.models.tracker import load_tracker
    from af.pipeline.avatar import Avatar
    from af.pipeline.encode import require_specs, spec_of
    from af.specs import require_spec

    device = device_of(args)
    index = Index.load(args.data)
    denoiser, artifact = load_as(args.denoiser, MotionDenoiser)
    require_specs(index, artifact)
    motion_spec = spec_of(index)[1]
    digests = {"denoiser": artifact.digest, "autoencoder": motion_spec.autoencoder}
    models = {str(args.denoiser): artifact.info}
    if args.autoencoder is not None:
        images = load_model(args.autoencoder, MotionAutoencoder)
        avatar = Avatar.of(images, artifact, device)
        people = HeldOut.of(index, models | {str(args.autoencoder): images.info}, args.limit)
        if not drawn(index, args.limit):
            if args.conditions == "all":
                raise UserError(
                    f"{args.data}: --conditions all compares what is read from faces, and the tracker that comes with this "
                    "program knows drawn ones alone; give a subset at a time (--conditions avatar_audio+user_motion) and go "
                    f"on with the {MANIFEST} of each"
                )
            return _Subject(avatar.denoiser, DecodedFaces(avatar), index, avatar, digests, people)
        tracker = load_tracker(device=device)
        read = RememberingTracker(tracker.track) if args.conditions == "all" else tracker.track
        return _Subject(avatar.denoiser, TrackedFaces(avatar, read, tracker.face_spec), index, avatar, digests, people)
    faces = LatentReadout.fit(Index.load(args.readout))
    remedy = "Give a split of the same latents to --readout."
    require_spec(faces.motion_spec, motion_spec, where=str(args.readout), remedy=remedy)
    return _Subject(denoiser.to(device), faces, index, None, digests, HeldOut.of(index, models, args.limit))


def _every_subset(subject: _Subject, settings: RolloutSettings, args: argparse.Namespace) -> int:
    """The 2³ table: what the model makes of every subset of its signals."""
    from rich.console import Console

    from af.evaluation.comparison import Comparison, Setting, write_comparison
    from af.evaluation.table import write_metrics
    from af.forcing.dropout import SIGNALS, signal_subsets, subset_name
    from af.metrics import evaluate_clips

    found = []
    for signals in signal_subsets():
        name, console = subset_name(signals), Console(stderr=True)
        out = args.out / "conditions" / name
        chosen, file = replace(settings, signals=signals), out / "metrics.json"
        _claim(subject, chosen, out, args)
        extra = {"signals": list(signals), "clips": _count(subject.index, args), "people": subject.people.known}
        if not file.is_file() or read_json(file).get("clips") != extra["clips"]:
            console.print(f"signals: {name}", highlight=False)
            videos = _films(args) if len(signals) == len(SIGNALS) else 0
            report = evaluate_clips(_roll_out(subject, chosen, out, args, videos=videos), _protocol(subject))
            write_metrics(out, report.rows, extra, title=f"{args.denoiser} with {name}")
        found.append(Setting(name, (read_json(file),)))
    comparison = Comparison.of(found)
    title = f"{args.denoiser} on {args.data}: every subset of the signals"
    write_comparison(args.out / "conditions", comparison, title)
    show(comparison.console(title))
    print(f"written to {args.out / 'conditions'}: table.md, table.csv, table.json, plots/")
    return 0


def _claim(subject: _Subject, settings: RolloutSettings, out: Path, args: argparse.Namespace) -> None:
    """What is kept in `out` belongs to these settings."""
    from af.data.stores import absolute
    from af.files import claim_folder

    made_with: dict[str, Any] = {
        **asdict(settings),
        "signals": list(settings.signals),
        "data": absolute(args.data),
        "faces": None if subject.faces.spec is None else subject.faces.spec.tracker,
        **subject.digests,
    }
    claim_folder(out / "evaluation.json", made_with)


def _roll_out(
    subject: _Subject, settings: RolloutSettings, out: Path, args: argparse.Namespace, *, videos: int
) -> list[EvaluationClip]:
    from af.console import progress_bar
    from af.evaluation.split import evaluate_split

    with progress_bar() as progress:
        task = progress.add_task("rolling out", total=_count(subject.index, args))
        return evaluate_split(
            subject.denoiser,
            subject.index,
            subject.faces,
            out,
            settings=settings,
            limit=args.limit,
            videos=videos,
            advance=lambda: progress.advance(task),
        )


def _protocol(subject: _Subject) -> Protocol:
    from af.metrics.records import Protocol

    return Protocol(block=subject.denoiser.layout.block_frames)


def _reconstruction(subject: _Subject, lpips: Callable[[Any, Any], Any] | None, seed: int) -> list[MetricRow]:
    from af.evaluation.split import evaluate_reconstruction
    from af.metrics.records import MetricRow

    assert subject.avatar is not None
    found = evaluate_reconstruction(subject.avatar.autoencoder, subject.index, seed=seed, lpips=lpips)
    text = f"cross-frame, {subject.people.text}; null: the source frame shown unchanged"
    kinds: dict[str, tuple[Literal["lower", "higher"], str]] = {
        "psnr": ("higher", "dB, "), "ssim": ("higher", ""), "l1": ("lower", "range 0–1, "), "lpips": ("lower", "AlexNet, ")
    }  # fmt: skip
    return [
        MetricRow(
            name, value, n=found.pairs, null=found.copy[name], protocol=kinds[name][1] + text, better=kinds[name][0]
        )
        for name, value in found.model.items()
    ]


def _running(
    subject: _Subject, settings: RolloutSettings, args: argparse.Namespace, missing: dict[str, str]
) -> list[MetricRow]:
    """Latency, speed and, where asked for, drift; what was not measured, and why, is added to `missing`."""

    from af.data.index import Index
    from af.data.shards import ShardReader
    from af.errors import UserError
    from af.evaluation.report import attempt
    from af.evaluation.running import drift_rows, long_drift, measure_running, running_rows, waiting_rows
    from af.files import write_json
    from af.pipeline.encode import spec_of

    index, avatar = subject.index, subject.avatar
    rows = waiting_rows(subject.denoiser, spec_of(index)[0])
    if avatar is not None:
        with doing("a live session"), attempt("latency, speed", missing):
            try:
                clip = ShardReader(index).read(0, {"video", "audio"})
                rows += running_rows(measure_running(avatar, clip, settings))
            except (UserError, ValueError) as error:
                missing["latency, speed"] = str(error)
    if not args.drift:
        missing["drift"] = "needs long roll-outs: --drift"
        return rows
    beside = args.data.parent / "train"
    folder = args.readout or (beside if (beside / "index.json").is_file() else args.data)
    with doing("roll-outs of 4 minutes"), attempt("drift", missing):
        found, true = long_drift(subject.denoiser, index, Index.load(folder), settings, avatar=avatar)
        write_json(
            args.out / "drift.json",
            {"start_s": found.seconds.tolist(), "distance": found.distance.tolist(), "true": true.distance.tolist()},
        )
        rows += drift_rows(found, true, f"those of {folder}")
    return rows


def _count(index: Index, args: argparse.Namespace) -> int:
    return len(index.samples) if args.limit is None else min(args.limit, len(index.samples))


def _settings_to_tensorboard(out: Path, rows: list, args: argparse.Namespace) -> None:
    """Final metrics with the settings they were made with (never the default `hp_metric`)."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    from af.evaluation.table import headline

    values = {f"final/{row.tag}": row.value for row in headline(rows) if math.isfinite(row.value)}
    settings = {
        "denoiser": str(args.denoiser),
        "steps": args.steps,
        "guidance_audio": args.guidance_audio,
        "guidance_user": args.guidance_user,
        "seed": args.seed,
    }
    with SummaryWriter(str(out / "tensorboard")) as writer:
        for summary in hparams(settings, dict.fromkeys(values, 0)):
            writer.file_writer.add_summary(summary)
        for tag, value in values.items():
            writer.add_scalar(tag, value)
