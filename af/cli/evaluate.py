"""Measure generated avatars against true ones: every number with its ground truth, its null and its protocol.

A checkpoint on the conversations of a split (whether their people are held out is known from the model folders):

    af evaluate --autoencoder runs/vae/export --denoiser runs/denoiser/export --data data/latents/test --out runs/evaluation

Latency and speed are measured on a live session, --drift adds roll-outs of 4 minutes. Drawn faces (af synth) are read by
a tracker that knows no others. Of filmed ones it measures the reconstruction, writes all videos, and manifest.csv to go on
with in the other form, with a tracker of your own.
With --conditions all: a table of what it makes of every subset of avatar_audio, user_audio and user_motion.

The same without decoding a frame, for many models on one autoencoder (synthetic shards know the faces that it is
fitted to; how well it reads them is in metrics.json as readout_r2/NAME):

    af evaluate --readout data/latents/train --denoiser runs/denoiser/export --data data/latents/test --out runs/evaluation

A folder of anybody's videos or parameter arrays, listed in a manifest (CSV or JSON, paths relative to it):

    clip,user,true,generated,audio
    talk1,user1.mp4,avatar1.mp4,ours/1.mp4,avatar1.wav

    af evaluate --manifest clips.csv --out runs/evaluation

A side is a video, or an array of face parameters at 25 fps (npy, npz or csv, frames x parameters). Further columns, all
optional: user_audio, user_face, true_face, generated_face (arrays beside the videos), source (portrait), identity,
session, phrase_ends. `audio` is the avatar's sound (default: the true video's).

What a metric needs and where it comes from:
    face parameters      arrays in the manifest, or --mediapipe face_landmarker.task, or --synthetic-tracker
    FID                  --inception weights-inception-2015-12-05-6726825d.pth (pip install 'avatar-forcing[fidelity]')
    FVD                  --i3d i3d_torchscript.pt --i3d-sha256 HASH
    any other network    --network NAME=FILE.pt (TorchScript): fd_img/NAME-<hash>; --video-network for windows of 16
    identity             --embedder NAME=FILE.pt (TorchScript)
    LSE-D, LSE-C         --syncnet syncnet_v2.model [--syncnet-sha256 HASH]
What is absent is listed as not computed, with the reason. Nothing is downloaded and nothing replaced.

The folder gets metrics.json, metrics.md, plots/, tensorboard/, clips.json and gallery.html (opens from disk). A clip that
cannot be read is reported with its file and does not lose the others. Stopped? The same command goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from af.cli.devices import add_device_argument, device_of
from af.cli.options import count, out_folder, seed, whole
from af.cli.sampling import add_sampling_arguments
from af.data.stores import location
from af.errors import UserError
from af.files import sha256_of

if TYPE_CHECKING:
    import torch

    from af.evaluation.extractors import Extractor
    from af.evaluation.manifest import ManifestClip
    from af.evaluation.read_videos import Measured, Tools

#: What is said after Ctrl-C.
WHEN_INTERRUPTED = "what is measured is kept, the same command goes on with the rest"
#: Options that a checkpoint's evaluation would ignore.
FILES_ONLY = (
    "mediapipe", "synthetic-tracker", "expression", "names", "block", "first-border", "inception", "i3d", "i3d-sha256",
    "network", "video-network", "embedder", "syncnet", "syncnet-sha256",
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of both forms."""
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the results")
    parser.add_argument("--seed", type=seed, default=0, help="of sampling, bootstrap and shifts (default 0)")
    add_device_argument(parser)
    model = parser.add_argument_group("a checkpoint on a split")
    model.add_argument(
        "--autoencoder", type=Path, metavar="FOLDER", help="model folder, run or checkpoint of the motion VAE"
    )
    model.add_argument(
        "--denoiser", type=Path, metavar="FOLDER", help="model folder, run or checkpoint of the denoiser"
    )
    model.add_argument("--data", type=location, metavar="FOLDER", help="encoded shards of a split, a folder or a URL")
    model.add_argument(
        "--readout",
        type=location,
        metavar="FOLDER",
        help="instead of --autoencoder: read faces from the latents by a linear fit on this split (train), in seconds",
    )
    model.add_argument("--overwrite", action="store_true", help="delete what --out holds first")
    model.add_argument("--limit", type=count, metavar="N", help="only the first N conversations")
    model.add_argument(
        "--lpips", action="store_true", help="LPIPS (AlexNet) of the reconstruction, by the extra `lpips`"
    )
    model.add_argument("--drift", action="store_true", help="also roll-outs of 4 minutes: drift/…")
    model.add_argument(
        "--videos",
        type=whole,
        metavar="N",
        help="conversations written as mp4 and listed in manifest.csv (default 4; all where no tracker knows the faces)",
    )
    add_sampling_arguments(model)
    model.add_argument(
        "--conditions",
        metavar="all|NAMES",
        help="signals the model gets, e.g. avatar_audio+user_motion; all: a table of"
        " every subset (default: all three signals)",
    )
    files = parser.add_argument_group("a folder of anybody's videos or arrays")
    files.add_argument("--manifest", type=Path, help="CSV or JSON list of clips")
    configure_files(files)


def configure_files(parser: argparse._ArgumentGroup) -> None:
    """Options of the folder-against-folder form."""
    parser.add_argument(
        "--mediapipe", type=Path, metavar="FILE", help="face_landmarker.task: track videos with MediaPipe"
    )
    parser.add_argument(
        "--synthetic-tracker", action="store_true", help="track videos with the synthetic faces' tracker"
    )
    parser.add_argument("--tracker", default="arrays/unnamed", metavar="NAME", help="who made the arrays, e.g. emoca/2")
    parser.add_argument("--expression", type=whole, metavar="N", help="the first N columns of arrays are expression")
    parser.add_argument("--names", metavar="A,B,…", help="names of the arrays' columns")
    parser.add_argument("--block", type=count, metavar="FRAMES", help="block size of the generator, for border_ratio")
    parser.add_argument("--first-border", type=whole, metavar="FRAME", help="first block border, default --block")
    parser.add_argument("--inception", type=Path, metavar="FILE", help="InceptionV3 weights: fid_inception")
    parser.add_argument("--i3d", type=Path, metavar="FILE", help="I3D TorchScript: fvd_i3d")
    parser.add_argument("--i3d-sha256", metavar="HASH", help="vouches that --i3d is the real network")
    parser.add_argument(
        "--network", action="append", default=[], metavar="NAME=FILE", help="picture network (TorchScript)"
    )
    parser.add_argument("--video-network", action="append", default=[], metavar="NAME=FILE", help="window network")
    parser.add_argument("--network-size", type=count, default=224, metavar="PX", help="input size of these networks")
    parser.add_argument("--stride", type=count, default=16, metavar="FRAMES", help="stride of 16-frame windows")
    parser.add_argument("--embedder", metavar="NAME=FILE", help="identity embedder (TorchScript, 112 px, -1 … 1)")
    parser.add_argument("--syncnet", type=Path, metavar="FILE", help="SyncNet weights: lse_d, lse_c")
    parser.add_argument("--syncnet-sha256", metavar="HASH")
    parser.add_argument("--no-gallery", action="store_true", help="leave out gallery.html")
    parser.add_argument(
        "--max-length-difference", type=whole, default=2, metavar="FRAMES", help="cut sides that differ less"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table and write the folder."""
    device_of(args)  # one that is not there is told before anything else
    faces = "--readout" if args.autoencoder is None and args.readout is not None else "--autoencoder"
    model = {faces: args.autoencoder or args.readout, "--denoiser": args.denoiser, "--data": args.data}
    given = [name for name, value in model.items() if value is not None]
    if args.autoencoder is not None and args.readout is not None:
        raise UserError("--autoencoder and --readout exclude each other: decode and track, or read the latents")
    if args.manifest is not None:
        if given:
            raise UserError(f"--manifest and {given[0]} exclude each other: evaluate files, or a checkpoint")
        return evaluate_manifest(args)
    if len(given) < len(model):
        raise UserError(
            "say what to evaluate: --manifest clips.csv, or --autoencoder (or --readout), --denoiser and --data together"
        )
    for option in FILES_ONLY:
        if getattr(args, option.replace("-", "_")) not in (None, False, []):
            raise UserError(
                f"--{option} belongs to --manifest: evaluate the checkpoint without it, then the manifest.csv it writes"
            )
    from af.evaluation.checkpoint import evaluate_checkpoint

    return evaluate_checkpoint(args)


def evaluate_manifest(args: argparse.Namespace) -> int:
    """The folder-against-folder form."""
    from rich.console import Console

    from af.console import progress_bar
    from af.evaluation.manifest import read_manifest
    from af.evaluation.read_videos import Measurer, evaluation_clip, picture_features
    from af.evaluation.report import attempt, failed, write_report
    from af.metrics import evaluate_clips
    from af.metrics.records import Protocol

    console = Console()
    clips = read_manifest(args.manifest)
    tools = build_tools(args)
    measurer = Measurer(tools, args.out / "cache")
    measured: list[tuple[ManifestClip, Measured]] = []
    problems: dict[str, str] = {}
    with progress_bar(console=console) as progress:
        task = progress.add_task("measuring clips", total=len(clips))
        for clip in clips:
            try:
                result = measurer.measure(clip)
                if measured and (first := measured[0][1].face) is not None and result.face not in (None, first):
                    raise UserError(f"clip {clip.clip}: tracker {result.face!r} beside {first!r}; never mix them")
                measured.append((clip, result))
            except UserError as error:
                problems[clip.clip] = str(error)
                console.print(f"left out: {error}", style="yellow", highlight=False, markup=False)
            progress.advance(task)
    if not measured:
        raise UserError(f"{args.manifest}: none of the {len(clips)} clips could be measured (see the lines above)")
    embedder = tools.embedder.tag if tools.embedder else None
    protocol = Protocol(block=args.block, first_border=args.first_border, seed=args.seed, embedder=embedder)
    missing: dict[str, str] = {"drift, latency, speed": "measured on a running system: the checkpoint form has them"}
    evaluated = [evaluation_clip(c, m, tools) for c, m in measured]
    report = evaluate_clips(evaluated, protocol, attempt=lambda family: attempt(family, missing))
    missing |= report.absent | {tag: why for tag, why in hints(measured, args).items() if tag in report.absent}
    videos = None
    if not args.no_gallery:
        videos = {c.clip: {s: p for s in ("user", "generated", "true") if (p := c.video_file(s))} for c, _ in measured}
    notes = {
        c.clip: [*m.notes, *_silent(m, [m for _, m in measured]), *report.remarks.get(c.clip, [])] for c, m in measured
    }
    notes = {clip: texts for clip, texts in notes.items() if texts}
    if args.synthetic_tracker:
        notes = {"faces": ["read by the tracker of drawn faces (af synth); of filmed people it says nothing"], **notes}
    write_report(
        args.out,
        report.rows,
        report,
        [clip for clip in evaluated if clip.face is not None],
        protocol,
        title=f"Evaluation of {args.manifest.name}",
        not_computed=missing,
        problems=problems,
        notes=notes,
        videos=videos,
        audio={c.clip: m.avatar_audio for c, m in measured},
        features=picture_features(evaluated),
        console=console,
    )
    return failed(missing)


def _silent(clip: Measured, clips: list[Measured]) -> list[str]:
    """A remark on a clip that lacks a voice which others have: it does not count in the rows that need it."""
    return [
        f"no {name.replace('_', ' ')}: does not count in {rows}"
        for name, rows in (("avatar_audio", "lip and reaction_gain"), ("user_audio", "reaction_gain"))
        if getattr(clip, name) is None and any(getattr(c, name) is not None for c in clips)
    ]


def hints(measured: list[tuple[ManifestClip, Measured]], args: argparse.Namespace) -> dict[str, str]:
    """{metric: which option or column makes up for what it needs}, where that is known."""
    from af.metrics import families
    from af.metrics.lipsync import mouth_column

    found: dict[str, str] = {}
    face = next((m.face for _, m in measured if m.face is not None), None)
    if face is None:
        why = "no face parameters: give arrays in the manifest, or --mediapipe face_landmarker.task"
        found = {tag: why for metric in families() if metric.of_faces for tag in metric.needs}
    elif all(m.avatar_audio is None for _, m in measured):
        found["lip"] = found["reaction_gain"] = "no clip has avatar audio (column audio)"
    elif all(m.user_audio is None or m.avatar_audio is None for _, m in measured):
        found["reaction_gain"] = "no clip has user audio (column user_audio, or sound in the user video)"
    if face is not None and mouth_column(face) is None:
        found["lip"] = found["mouth"] = "no parameter that opens the mouth (see --names)"
    if args.block is None:
        found["border_ratio"] = "the generator's block size is not given (--block)"
    videos = any(c.video_file("generated") for c, _ in measured)
    weights = {
        "fid_inception": "no weights: --inception weights-inception-2015-12-05-6726825d.pth",
        "fvd_i3d": "no weights vouched for: --i3d i3d_torchscript.pt --i3d-sha256 HASH",
        "csim": "no identity network: --embedder NAME=FILE.pt",
        "lse_d": "no weights: --syncnet syncnet_v2.model",
        "lse_c": "no weights: --syncnet syncnet_v2.model",
    }
    return found | {tag: why if videos else "the manifest has arrays, no videos" for tag, why in weights.items()}


def build_tools(args: argparse.Namespace) -> Tools:
    """The extractors that the options name, loaded; UserError says what is missing."""
    from af.evaluation.extractors import i3d, inception, mediapipe_face, thumbnail
    from af.evaluation.read_videos import Tools
    from af.evaluation.syncnet import load_syncnet

    if args.mediapipe and args.synthetic_tracker:
        raise UserError("--mediapipe and --synthetic-tracker exclude each other: never mix trackers in one table")
    device = device_of(args)
    face: Extractor | None = None
    if args.mediapipe:
        face = mediapipe_face(args.mediapipe)
    elif args.synthetic_tracker:
        face = synthetic_tracker(device)
    pictures = [thumbnail()]
    if args.inception:
        pictures.append(inception(args.inception, device=device))
    if args.i3d:
        pictures.append(i3d(args.i3d, args.i3d_sha256, stride=args.stride, device=device))
    pictures += [named_network(text, "picture", args.network_size, device=device) for text in args.network]
    pictures += [named_network(text, "video", args.network_size, args.stride, device) for text in args.video_network]
    return Tools(
        face=face,
        pictures=pictures,
        embedder=named_network(args.embedder, "identity", 112, device=device) if args.embedder else None,
        syncnet=load_syncnet(args.syncnet, args.syncnet_sha256).to(device) if args.syncnet else None,
        syncnet_version=sha256_of(args.syncnet)[:8] if args.syncnet else "",
        tracker_of_arrays=args.tracker,
        expression=args.expression,
        names=tuple(n.strip() for n in args.names.split(",")) if args.names else None,
        max_length_difference=args.max_length_difference,
    )


def named_network(text: str, kind, size: int, stride: int = 16, device: torch.device | str = "cpu") -> Extractor:
    """NAME=FILE as an extractor."""
    from af.evaluation.extractors import torch_module

    name, separator, file = text.partition("=")
    if not separator or not name or not file:
        raise UserError(f"{text!r}: write NAME=FILE, e.g. arcface=arcface.pt")
    return torch_module(Path(file), name, kind, size=size, stride=stride, device=device)


def synthetic_tracker(device: torch.device | str = "cpu") -> Extractor:
    """The tracker of the synthetic faces, which is shipped with the package."""
    from af.evaluation.extractors import callable_face
    from af.models.tracker import load_tracker

    tracker = load_tracker(device=device)
    return callable_face(tracker.face_spec, tracker.track)
