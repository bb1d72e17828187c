"""All steps on synthetic conversations: data, training of the VAE, encoding, training of the denoiser, evaluation,
video.

af demo 15 to 20 minutes on two CPU cores af demo demo=tiny a minute, to test all steps

Results are in runs/demo (or run=FOLDER) and data/demo. A stopped demo continues where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.rule import Rule

from af.cli.child import started
from af.cli.config import add_config_arguments, compose, resolve, to_yaml
from af.console import show
from af.errors import Stopped, UserError
from af.files import read_json, write_json, write_text

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "finished stages are kept, and the same command continues with the interrupted one"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af demo`."""
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the stages that are not done and report."""
    config = compose("demo", args.overrides, args.config_dir)
    if args.print_config:
        print(to_yaml(config), end="")
        return 0
    plain = resolve(config)
    folder = Path(plain["run"])
    console = Console()
    report(plain, run_stages(stages(plain), folder / "stages.json", console), console)
    return 0


#: One step of the demo: a short name, what it is for in one line, and the arguments of `af`.
Stage = tuple[str, str, list[str]]


def run_stages(stages: Sequence[Stage], record: Path, console: Console) -> dict[str, Any]:
    """Run stages not yet in `record` (JSON, written after each stage); a changed stage and all later ones run again.

    Returns for each what it took: {arguments, done, seconds (of all its starts), peak_memory_gb (of all its processes)}.
    Raises UserError when a stage fails, naming it and its command, `Stopped` when SIGTERM ended it.
    """
    known = read_json(record) if record.is_file() else {}
    done: dict[str, Any] = {}
    for number, (name, purpose, arguments) in enumerate(stages, 1):
        console.print(Rule(f"[bold]{number}/{len(stages)} {name}[/bold]: {purpose}", align="left"))
        if name not in known or known[name]["arguments"] != arguments:
            known = {name: {"arguments": arguments, "done": False, "seconds": 0.0, "peak_memory_gb": 0.0}}
        entry = done[name] = known[name]
        if entry["done"]:
            console.print(f"done before, in {entry['seconds']:.0f} s")
            continue
        try:
            code = _run(arguments, entry)
            entry["done"] = not code
        except SystemExit as error:
            raise Stopped(signal.SIGTERM, f"stopped in stage {name}: the same command continues with it") from error
        finally:
            write_json(record, done)
        if code:
            raise UserError(f"stage {name} failed (exit {code}): af {' '.join(arguments)}")
    return done


def _run(arguments: Sequence[str], entry: dict[str, Any]) -> int:
    start, before = time.monotonic(), entry["seconds"]
    with started(arguments) as process:
        while True:
            entry["seconds"] = before + time.monotonic() - start
            try:
                return process.wait(0.5)
            except subprocess.TimeoutExpired:
                entry["peak_memory_gb"] = max(entry["peak_memory_gb"], resident_gb(process.pid))


def resident_gb(pid: int) -> float:
    """Resident memory of a process and all its descendants, in GiB (pages shared between them count in each)."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total / 2**30


def stages(config: dict[str, Any]) -> list[Stage]:
    """The commands of the demo, in order."""
    folder, data, latents = config["run"], config["data_folder"], config["latents_folder"]
    vae, denoiser, example = f"{folder}/vae", f"{folder}/denoiser", f"{folder}/example"
    models = ["--autoencoder", f"{vae}/export", "--denoiser", f"{denoiser}/export"]

    def overrides(stage: str) -> list[str]:
        return [f"{key}={value}" for key, value in config[stage].items()]

    def flags(stage: str) -> list[str]:
        return [word for key, value in config[stage].items() for word in (f"--{key}", str(value))]

    return [
        ("synth", "conversations whose causes are known", ["synth", "--out", data, *flags("synth")]),
        (
            "vae",
            "learn to take faces apart into identity and motion",
            ["train", "experiment=vae_demo", f"run={vae}", f"data.root={data}", *overrides("vae")],
        ),
        (
            "encode",
            "every frame becomes a motion latent, every sound a feature",
            ["encode", "--data", data, "--autoencoder", f"{vae}/export", "--out", latents, *flags("encode")],
        ),
        (
            "denoiser",
            "learn to move from voices and the user's face, block by block",
            [
                "train", "experiment=denoiser_demo", f"run={denoiser}", f"data.root={latents}",
                f"callbacks.previews.autoencoder={vae}/export", *overrides("denoiser"),
            ],
        ),
        (
            "evaluate",
            "generate the held-out conversations and measure them",
            [
                "evaluate", *models, "--data", f"{latents}/test", "--out", f"{folder}/evaluation",
                *(f"evaluation.{word}" for word in overrides("evaluate")),
            ],
        ),
        (
            "extract",
            "one held-out conversation as files: portrait, voices, user video",
            ["shards", "extract", f"{latents}/test", "--sample", "0", "--out", example],
        ),
        (
            "generate",
            "film the avatar in that conversation from those files",
            [
                "generate", *models, "--portrait", f"{example}/avatar.png", "--avatar-audio", f"{example}/avatar.wav",
                "--user-video", f"{example}/user.mp4", "--no-crop", "--out", f"{folder}/videos/avatar.mp4",
                "--side-by-side", f"{folder}/videos/conversation.mp4", *flags("generate"),
            ],
        ),
    ]  # fmt: skip


def report(config: dict[str, Any], results: dict[str, Any], console: Console) -> None:
    """Write report.md and metrics.json of the run and print both as a table. `results` are those of `run_stages`."""
    from rich.table import Table

    folder = Path(config["run"])
    evaluation = folder / "evaluation"
    metrics = read_json(evaluation / "metrics.json")
    metrics |= {f"seconds/{name}": round(result["seconds"], 1) for name, result in results.items()}
    metrics["seconds/total"] = round(sum(result["seconds"] for result in results.values()), 1)
    metrics["peak_memory_gb"] = round(max(result["peak_memory_gb"] for result in results.values()), 2)
    metrics["machine"] = machine()
    write_json(folder / "metrics.json", metrics)
    paths = {
        "videos": f"{folder}/videos, {evaluation}/videos",
        "TensorBoard": f"tensorboard --logdir {folder}",
        "motion VAE": f"{folder}/vae/export",
        "denoiser": f"{folder}/denoiser/export",
        "checkpoints": f"{folder}/vae/checkpoints, {folder}/denoiser/checkpoints",
        "numbers": f"{folder}/metrics.json",
    }
    table = (evaluation / "metrics.md").read_text().partition("\n")[2].partition("\n## ")[0].strip()
    took = {**results, "total": {"seconds": metrics["seconds/total"], "peak_memory_gb": metrics["peak_memory_gb"]}}
    times = "".join(f"| {k} | {r['seconds']:.0f} | {r['peak_memory_gb']:.2f} |\n" for k, r in took.items())
    listing = "".join(f"- {name}: `{path}`\n" for name, path in paths.items())
    worse, people = worse_than_null(metrics), metrics.get("people", "unknown whether held out")
    remark = f"Worse than the null: {', '.join(f'`{tag}`' for tag in worse)}.\n\n" if worse else ""
    text = (
        f"# Demo: {config['name']}\n\nPeople: {people}. Null: the user of another conversation "
        f"(for `psnr`: the source frame shown unchanged).\n\n{table}\n\n{remark}## Time and memory\n\n"
        f"| stage | seconds | peak memory of all processes, GiB |\n| --- | ---: | ---: |\n{times}\n"
        f"## Where things are\n\n{listing}"
    )
    write_text(folder / "report.md", text)
    summary = Table("result", "generated", "ground truth", "null", title=f"Demo; people: {people}")
    for tag in config["summary"]:
        name = f"[yellow]{tag} ![/yellow]" if tag in worse else tag
        summary.add_row(name, *(_cell(metrics, f"{tag}{side}") for side in ("", "/true", "/null")))
    show(summary, console)
    if worse:
        console.print(f"! worse than the null: {', '.join(worse)}", style="yellow", highlight=False)
    minutes = metrics["seconds/total"] / 60
    console.print(f"{minutes:.1f} minutes, at most {metrics['peak_memory_gb']:.2f} GiB in all processes")
    for name, path in {**paths, "report": f"{folder}/report.md"}.items():
        console.print(f"{name:>12}: {path}", highlight=False, soft_wrap=True)


def worse_than_null(metrics: dict[str, Any]) -> list[str]:
    """Tags of numbers that are worse than their null by more than a standard error."""
    found = []
    for tag, better in metrics["better"].items():
        value, null = metrics.get(tag), metrics.get(f"{tag}/null")
        if value is None or null is None or abs(value - null) <= (metrics.get(f"{tag}/se") or 0):
            continue
        true = metrics.get(f"{tag}/true")
        worse = value > null if better == "lower" else value < null
        if better == "true":
            worse = true is not None and abs(value - true) > abs(null - true)
        if worse:
            found.append(tag)
    return found


def machine() -> dict[str, Any]:
    """Processor, cores and versions, on which rounding and so a training depend."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "torch": torch.__version__,
    }


def _cell(metrics: dict[str, Any], tag: str) -> str:
    value, error = metrics.get(tag), metrics.get(f"{tag}/se")
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else "")
