"""The checkpoint form of `af evaluate`: a model on the held-out conversations of a split."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from af.data.index import Index
    from af.metrics.rows import MetricRow
    from af.pipeline.avatar import Avatar
    from af.pipeline.evaluate import RolloutSettings, Tracker
    from af.types import FaceSpec


def evaluate_checkpoint(args: argparse.Namespace) -> int:
    """Generate, decode, track, compare; print and write the table, the videos and TensorBoard's copy of the numbers."""
    import torch

    from af.data.index import Index
    from af.forcing.dropout import SIGNALS, named_subset, signal_subsets
    from af.forcing.rollout import Guidance
    from af.models.tracker import load_tracker
    from af.pipeline.avatar import Avatar
    from af.pipeline.encode import spec_of
    from af.pipeline.evaluate import RememberingTracker, RolloutSettings

    every = args.conditions == "all"
    signals = SIGNALS if every or args.conditions is None else named_subset(args.conditions)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    avatar = Avatar.load(args.autoencoder, args.denoiser, device)
    index = Index.load(args.data)
    spec_of(index)
    guidance = Guidance(audio=args.guidance_audio, user=args.guidance_user)
    settings = RolloutSettings(steps=args.steps, guidance=guidance, seed=args.seed, signals=signals)
    tracker = load_tracker()
    read = RememberingTracker(tracker.track) if every else tracker.track
    if every:
        return _every_subset(avatar, index, read, tracker.face_spec, settings, signal_subsets(), args)
    from rich.console import Console

    from af.metrics.rows import console_table, write_metrics

    start = time.monotonic()
    rows = _rows(avatar, index, read, tracker.face_spec, settings, args.out, args, videos=args.videos)
    count = _count(index, args)
    extra = {"seconds_per_clip": (time.monotonic() - start) / max(1, count), "clips": count}
    rows = [_reconstruction(avatar, index, args), *rows]
    write_metrics(args.out, rows, extra, title=f"{args.denoiser} on {args.data}")
    _to_tensorboard(args.out, rows, args)
    Console().print(console_table(rows))
    print(f"written to {args.out}: metrics.json, metrics.md, videos/")
    return 0


def _every_subset(
    avatar: Avatar,
    index: Index,
    tracker: Tracker,
    face: FaceSpec,
    settings: RolloutSettings,
    subsets: list[tuple[str, ...]],
    args: argparse.Namespace,
) -> int:
    """The 2³ table: what the model makes of every subset of its signals."""
    from rich.console import Console

    from af.cli.comparison_files import write_comparison
    from af.forcing.dropout import subset_name
    from af.metrics.comparison import Comparison, Setting
    from af.metrics.rows import write_metrics

    found = []
    for signals in subsets:
        name, console = subset_name(signals), Console(stderr=True)
        out = args.out / "conditions" / name
        if not (out / "metrics.json").is_file():
            console.print(f"signals: {name}", highlight=False)
            videos = args.videos if len(signals) == len(subsets[0]) else 0
            rows = _rows(avatar, index, tracker, face, replace(settings, signals=signals), out, args, videos=videos)
            write_metrics(out, rows, {"signals": list(signals)}, title=f"{args.denoiser} with {name}")
        found.append(Setting(name, (json.loads((out / "metrics.json").read_text()),)))
    comparison = Comparison.of(found)
    title = f"{args.denoiser} on {args.data}: every subset of the signals"
    write_comparison(args.out / "conditions", comparison, title)
    Console().print(comparison.console(title))
    print(f"written to {args.out / 'conditions'}: table.md, table.csv, table.json, plots/")
    return 0


def _rows(
    avatar: Avatar,
    index: Index,
    tracker: Tracker,
    face: FaceSpec,
    settings: RolloutSettings,
    out: Path,
    args: argparse.Namespace,
    *,
    videos: int,
) -> list[MetricRow]:
    from rich.console import Console

    from af.data.parts import progress_bar
    from af.files import claim_folder
    from af.metrics.table import Protocol, evaluate_parameters
    from af.pipeline.evaluate import evaluate_split

    made_with: dict[str, Any] = {
        **asdict(settings),
        "signals": list(settings.signals),
        "data": str(args.data.resolve()),
    }
    for name in ("autoencoder", "denoiser"):
        made_with[name] = json.loads((getattr(args, name) / "model.json").read_text())["sha256"]
    claim_folder(out / "evaluation.json", made_with)  # clips kept there belong to these settings
    with progress_bar() as progress:
        task = progress.add_task("rolling out and decoding", total=_count(index, args))
        clips = evaluate_split(
            avatar,
            index,
            tracker,
            face,
            out,
            settings=settings,
            limit=args.limit,
            videos=videos,
            advance=lambda: progress.advance(task),
        )
    with Console(stderr=True).status("computing the numbers"):
        return evaluate_parameters(clips, Protocol(block=avatar.denoiser.layout.block_frames))


def _reconstruction(avatar: Avatar, index: Index, args: argparse.Namespace) -> MetricRow:
    from af.metrics.rows import MetricRow
    from af.pipeline.evaluate import evaluate_reconstruction

    pictures = evaluate_reconstruction(avatar.autoencoder, index, seed=args.seed)
    return MetricRow(
        "psnr",
        pictures.psnr,
        n=pictures.pairs,
        null=pictures.psnr_copy,
        protocol="dB, cross-frame, held-out identities; null: the source frame shown unchanged",
        better="higher",
    )


def _count(index: Index, args: argparse.Namespace) -> int:
    return len(index.samples) if args.limit is None else min(args.limit, len(index.samples))


def _to_tensorboard(out: Path, rows: list, args: argparse.Namespace) -> None:
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
