"""The checkpoint form of `af evaluate`: a model on the held-out conversations of a split."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from af.cli.sampling import anchor_of, guidance_of

if TYPE_CHECKING:
    from af.data.index import Index
    from af.metrics.evaluation import EvaluationClip, ParameterReport, Protocol
    from af.metrics.rows import MetricRow
    from af.models.denoiser import MotionDenoiser
    from af.pipeline.avatar import Avatar
    from af.pipeline.faces import FaceSource
    from af.pipeline.rolling import RolloutSettings


def evaluate_checkpoint(args: argparse.Namespace) -> int:
    """Generate, read the faces, compare; print and write the table, the videos and TensorBoard's copy of the numbers."""
    from rich.console import Console

    from af.cli.evaluation_report import write_report
    from af.forcing.dropout import SIGNALS, named_subset
    from af.pipeline.evaluate import film_path
    from af.pipeline.faces import SIDES, LatentReadout
    from af.pipeline.rolling import RolloutSettings

    every = args.conditions == "all"
    signals = SIGNALS if every or args.conditions is None else named_subset(args.conditions)
    guidance = guidance_of(args)
    settings = RolloutSettings(args.steps, guidance, args.seed, signals=signals, anchor=anchor_of(args))
    subject = _load(args)
    if args.overwrite and args.out.exists():
        shutil.rmtree(args.out)
    if every:
        return _every_subset(subject, settings, args)
    _claim(subject, settings, args.out, args)
    start = time.monotonic()
    report, clips, protocol = _report(subject, settings, args.out, args, videos=args.videos)
    rows = report.rows
    count = _count(subject.index, args)
    extra: dict[str, float] = {"seconds_per_clip": (time.monotonic() - start) / max(1, count), "clips": count}
    if subject.avatar is not None:
        rows = [*_reconstruction(subject.avatar, subject.index, args), *rows]
    running, missing = _running(subject, settings, args)
    rows += running
    if subject.avatar is not None and not args.lpips:
        missing["lpips"] = "needs a network: pip install 'avatar-forcing[lpips]' and --lpips"
    if isinstance(subject.faces, LatentReadout):
        extra |= {f"readout_r2/{name}": r2 for name, r2 in subject.faces.r2.items()}
    videos = None
    if subject.avatar is not None and not args.no_gallery:
        filmed = [clip.name for clip in clips[: args.videos]]
        videos = {name: {side: film_path(args.out, name, side) for side in SIDES} for name in filmed}
    write_report(
        args.out,
        rows,
        report,
        clips,
        protocol,
        title=f"{args.denoiser} on {args.data}",
        not_computed=missing,
        videos=videos,
        audio={clip.name: clip.avatar_audio for clip in clips},
        extra=extra,
        console=Console(),
    )
    _settings_to_tensorboard(args.out, rows, args)
    return 0


@dataclass(frozen=True)
class _Subject:
    """What is evaluated on what, and where faces come from; `avatar` where frames are decoded."""

    denoiser: MotionDenoiser
    faces: FaceSource
    index: Index
    avatar: Avatar | None
    digests: dict[str, str]


def _load(args: argparse.Namespace) -> _Subject:
    import torch

    from af.data.index import Index
    from af.models.artifact import load_as, load_model
    from af.models.denoiser import MotionDenoiser
    from af.models.tracker import load_tracker
    from af.pipeline.avatar import Avatar
    from af.pipeline.encode import require_specs, spec_of
    from af.pipeline.faces import LatentReadout, RememberingTracker, TrackedFaces
    from af.specs import require_spec

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    index = Index.load(args.data)
    denoiser, artifact = load_as(args.denoiser, MotionDenoiser)
    require_specs(index, artifact)
    motion_spec = spec_of(index)[1]
    digests = {"denoiser": artifact.digest, "autoencoder": motion_spec.autoencoder}
    if args.autoencoder is not None:
        avatar = Avatar.of(load_model(args.autoencoder), artifact, device)
        tracker = load_tracker()
        read = RememberingTracker(tracker.track) if args.conditions == "all" else tracker.track
        return _Subject(avatar.denoiser, TrackedFaces(avatar, read, tracker.face_spec), index, avatar, digests)
    faces = LatentReadout.fit(Index.load(args.readout))
    remedy = "Give a split of the same latents to --readout."
    require_spec(faces.motion_spec, motion_spec, where=str(args.readout), remedy=remedy)
    return _Subject(denoiser.to(device), faces, index, None, digests)


def _every_subset(subject: _Subject, settings: RolloutSettings, args: argparse.Namespace) -> int:
    """The 2³ table: what the model makes of every subset of its signals."""
    from rich.console import Console

    from af.cli.comparison_files import write_comparison
    from af.forcing.dropout import SIGNALS, signal_subsets, subset_name
    from af.metrics.comparison import Comparison, Setting
    from af.metrics.rows import write_metrics

    found = []
    for signals in signal_subsets():
        name, console = subset_name(signals), Console(stderr=True)
        out = args.out / "conditions" / name
        chosen, file = replace(settings, signals=signals), out / "metrics.json"
        _claim(subject, chosen, out, args)
        extra = {"signals": list(signals), "clips": _count(subject.index, args)}
        if not file.is_file() or json.loads(file.read_text()).get("clips") != extra["clips"]:
            console.print(f"signals: {name}", highlight=False)
            videos = args.videos if len(signals) == len(SIGNALS) else 0
            report, *_ = _report(subject, chosen, out, args, videos=videos)
            write_metrics(out, report.rows, extra, title=f"{args.denoiser} with {name}")
        found.append(Setting(name, (json.loads(file.read_text()),)))
    comparison = Comparison.of(found)
    title = f"{args.denoiser} on {args.data}: every subset of the signals"
    write_comparison(args.out / "conditions", comparison, title)
    Console().print(comparison.console(title))
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
        "faces": subject.faces.spec.tracker,
        **subject.digests,
    }
    claim_folder(out / "evaluation.json", made_with)


def _report(
    subject: _Subject, settings: RolloutSettings, out: Path, args: argparse.Namespace, *, videos: int
) -> tuple[ParameterReport, list[EvaluationClip], Protocol]:
    from rich.console import Console

    from af.data.parts import progress_bar
    from af.metrics.evaluation import Protocol
    from af.metrics.table import parameter_report
    from af.pipeline.evaluate import evaluate_split

    with progress_bar() as progress:
        task = progress.add_task("rolling out", total=_count(subject.index, args))
        clips = evaluate_split(
            subject.denoiser,
            subject.index,
            subject.faces,
            out,
            settings=settings,
            limit=args.limit,
            videos=videos,
            advance=lambda: progress.advance(task),
        )
    with Console(stderr=True).status("computing the numbers"):
        protocol = Protocol(block=subject.denoiser.layout.block_frames)
        return parameter_report(clips, protocol), clips, protocol


def _reconstruction(avatar: Avatar, index: Index, args: argparse.Namespace) -> list[MetricRow]:
    from af.metrics.rows import MetricRow
    from af.pipeline.evaluate import evaluate_reconstruction

    lpips = None
    if args.lpips:
        from af.models.perceptual import LpipsPerceptual

        lpips = LpipsPerceptual("alex")
    found = evaluate_reconstruction(avatar.autoencoder, index, seed=args.seed, lpips=lpips)
    text = "cross-frame, held-out identities; null: the source frame shown unchanged"
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
    subject: _Subject, settings: RolloutSettings, args: argparse.Namespace
) -> tuple[list[MetricRow], dict[str, str]]:
    """Latency, speed and, where asked for, drift; {metric: why it was not measured}."""
    from rich.console import Console

    from af.data.index import Index
    from af.data.shards import ShardReader
    from af.errors import UserError
    from af.files import write_json
    from af.pipeline.encode import spec_of
    from af.pipeline.running import drift_rows, long_drift, measure_running, running_rows, waiting_rows

    index, avatar = subject.index, subject.avatar
    rows, missing = waiting_rows(subject.denoiser, spec_of(index)[0]), {}
    if avatar is not None:
        with Console(stderr=True).status("a live session"):
            try:
                clip = ShardReader(index).read(0, {"video", "audio"})
                rows += running_rows(measure_running(avatar, clip, settings))
            except (UserError, ValueError) as error:
                missing["latency, speed"] = str(error)
    if not args.drift:
        return rows, missing | {"drift": "needs long roll-outs: --drift"}
    beside = args.data.parent / "train"
    folder = args.readout or (beside if (beside / "index.json").is_file() else args.data)
    with Console(stderr=True).status("roll-outs of 4 minutes"):
        found, true = long_drift(subject.denoiser, index, Index.load(folder), settings, avatar=avatar)
    write_json(
        args.out / "drift.json",
        {"start_s": found.seconds.tolist(), "distance": found.distance.tolist(), "true": true.distance.tolist()},
    )
    return [*rows, *drift_rows(found, true, f"those of {folder}")], missing


def _count(index: Index, args: argparse.Namespace) -> int:
    return len(index.samples) if args.limit is None else min(args.limit, len(index.samples))


def _settings_to_tensorboard(out: Path, rows: list, args: argparse.Namespace) -> None:
    """Final metrics with the settings they were made with (never the default `hp_metric`)."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    from af.metrics.rows import flat_metrics

    values = {f"final/{tag}": value for tag, value in flat_metrics(rows).items() if value is not None}
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
