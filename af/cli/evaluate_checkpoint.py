"""The checkpoint form of `af evaluate`: a model on the held-out conversations of a split."""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def evaluate_checkpoint(args: argparse.Namespace) -> int:
    """Generate, decode, track, compare; print and write the table, the videos and TensorBoard's copy of the numbers."""
    import torch
    from rich.console import Console

    from af.data.parts import progress_bar
    from af.data.shards import Index
    from af.forcing.rollout import Guidance
    from af.metrics.rows import MetricRow, console_table, write_metrics
    from af.metrics.table import Protocol, evaluate_parameters
    from af.models.tracker import load_tracker
    from af.pipeline.avatar import Avatar
    from af.pipeline.encode import spec_of
    from af.pipeline.evaluate import RolloutSettings, evaluate_reconstruction, evaluate_split

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    avatar = Avatar.load(args.autoencoder, args.denoiser, device)
    index = Index.load(args.data)
    spec_of(index)
    tracker = load_tracker()
    settings = RolloutSettings(
        steps=args.steps, guidance=Guidance(audio=args.guidance_audio, user=args.guidance_user), seed=args.seed
    )
    count = len(index.samples) if args.limit is None else min(args.limit, len(index.samples))
    start = time.monotonic()
    with progress_bar() as progress:
        task = progress.add_task("rolling out and decoding", total=count)
        clips = evaluate_split(
            avatar,
            index,
            tracker.track,
            tracker.face_spec,
            args.out,
            settings=settings,
            limit=args.limit,
            videos=args.videos,
            advance=lambda: progress.advance(task),
        )
    seconds = time.monotonic() - start
    with Console(stderr=True).status("computing the numbers"):
        pictures = evaluate_reconstruction(avatar.autoencoder, index, seed=args.seed)
        rows = [
            MetricRow(
                "psnr",
                pictures.psnr,
                n=pictures.pairs,
                null=pictures.psnr_copy,
                protocol="dB, cross-frame, held-out identities; null: the source frame shown unchanged",
                better="higher",
            ),
            *evaluate_parameters(clips, Protocol(block=avatar.denoiser.layout.block_frames)),
        ]
    extra = {"seconds_per_clip": seconds / max(1, count), "clips": count}
    write_metrics(args.out, rows, extra, title=f"{args.denoiser} on {args.data}")
    _to_tensorboard(args.out, rows, args)
    Console().print(console_table(rows))
    print(f"written to {args.out}: metrics.json, metrics.md, videos/")
    return 0


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
