"""All steps on synthetic conversations: data, motion VAE, encoding, denoiser, evaluation, video.

  af demo                some 20 minutes on two CPU cores
  af demo demo=tiny      a minute, to test all steps

Results are in runs/demo (or run=FOLDER) and data/demo. A stopped demo continues where it was.
"""

from __future__ import annotations

import contextlib
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
from af.cli.config import Configured
from af.errors import Stopped, UserError
from af.files import read_json, write_json, write_text

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "finished stages are kept, and the same command continues with the interrupted one"
#: One step of the demo: a short name, what it is for in one line, and the arguments of `af`.
Stage = tuple[str, str, list[str]]


def run(config: Configured) -> None:
    """Run the stages that are not done and report."""
    if (plain := config.resolved("demo")) is not None:
        console = Console()
        report(plain, run_stages(stages(plain), Path(plain["run"]) / "stages.json", console), console)


def stages(config: dict[str, Any]) -> list[Stage]:
    """The commands of the demo, in order."""
    folder, data, latents = config["run"], config["data_folder"], config["latents_folder"]
    first, vae, denoiser, example = (f"{folder}/{part}" for part in ("vae_first", "vae", "denoiser", "example"))
    models = ["--autoencoder", f"{vae}/export", "--denoiser", f"{denoiser}/export"]
    previews = f"callbacks.previews.autoencoder={vae}/export"
    files = {"portrait": "avatar.png", "avatar-audio": "avatar.wav", "user-video": "user.mp4"}
    inputs = [word for name, file in files.items() for word in (f"--{name}", f"{example}/{file}")]
    videos = ["--out", f"{folder}/videos/avatar.mp4", "--side-by-side", f"{folder}/videos/conversation.mp4"]

    def overrides(stage: str, group: str = "") -> list[str]:
        return [f"{group}{key}={value}" for key, value in config[stage].items()]

    def flags(stage: str) -> list[str]:
        return [word for key, value in config[stage].items() for word in (f"--{key}", str(value))]

    return [
        ("synth", "conversations whose causes are known", ["synth", "--out", data, *flags("synth")]),
        ("vae_first", "learn to take faces apart into identity and motion",
         ["train", "experiment=vae_demo", f"run={first}", f"data.root={data}", *overrides("vae_first")]),
        ("vae", "learn what expressions look like, by the eyes of the encoder that now knows them",
         ["train", "experiment=vae_demo_features", f"run={vae}", f"start={first}/export", f"data.root={data}",
          *overrides("vae")]),
        ("encode", "every frame becomes a motion latent, every sound a feature",
         ["encode", "--data", data, "--autoencoder", f"{vae}/export", "--out", latents, *flags("encode")]),
        ("denoiser", "learn to move from voices and the user's face, block by block",
         ["train", "experiment=denoiser_demo", f"run={denoiser}", f"data.root={latents}", previews, *overrides("denoiser")]),
        ("evaluate", "generate the held-out conversations and measure them",
         ["evaluate", *models, "--data", f"{latents}/test", "--out", f"{folder}/evaluation",
          *overrides("evaluate", "evaluation.")]),
        ("extract", "one held-out conversation as files: portrait, voices, user video",
         ["shards", "extract", f"{latents}/test", "--sample", "0", "--out", example]),
        ("generate", "make a video of the avatar in that conversation from those files",
         ["generate", *models, *inputs, "--no-crop", *videos, *flags("generate")]),
    ]  # fmt: skip


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


def report(config: dict[str, Any], took: dict[str, Any], console: Console) -> None:
    """Write report.md and metrics.json of the run and print both as a table. `took` is what `run_stages` returns."""
    from rich.table import Table

    from af.console import show
    from af.devices import machine
    from af.evaluation.table import markdown, worse_than_null

    folder, evaluation = Path(config["run"]), Path(config["run"]) / "evaluation"
    seconds, memory = ([result[part] for result in took.values()] for part in ("seconds", "peak_memory_gb"))
    metrics = read_json(evaluation / "metrics.json")
    metrics |= {f"seconds/{name}": round(result["seconds"], 1) for name, result in took.items()}
    metrics["seconds/vae"] += metrics.pop("seconds/vae_first", 0.0)
    metrics |= {"seconds/total": round(sum(seconds), 1), "peak_memory_gb": round(max(memory), 2), "machine": machine()}
    write_json(folder / "metrics.json", metrics)
    paths = {
        "videos": f"{folder}/videos, {evaluation}/videos",
        "TensorBoard": f"tensorboard --logdir {folder}",
        "motion VAE": f"{folder}/vae/export",
        "denoiser": f"{folder}/denoiser/export",
        "checkpoints": f"{folder}/{{vae_first,vae,denoiser}}/checkpoints",
        "numbers": f"{folder}/metrics.json",
    }
    table = (evaluation / "metrics.md").read_text().partition("\n")[2].partition("\n## ")[0].strip()
    rows = [*zip([*took, "total"], [*seconds, sum(seconds)], [*memory, max(memory)], strict=True)]
    times = markdown(
        ["stage", "seconds", "peak memory of all processes, GiB"], ([n, f"{s:.0f}", f"{m:.2f}"] for n, s, m in rows)
    )
    worse, people = worse_than_null(metrics), metrics.get("people", "unknown whether held out")
    remark = f"Worse than the null: {', '.join(f'`{tag}`' for tag in worse)}.\n\n" if worse else ""
    write_text(
        folder / "report.md",
        f"# Demo: {config['name']}\n\nPeople: {people}. Null: the user of another conversation "
        f"(for `psnr`: the source frame shown unchanged).\n\n{table}\n\n{remark}## Time and memory\n\n{times}\n"
        f"## Where things are\n\n{''.join(f'- {name}: `{path}`' + chr(10) for name, path in paths.items())}",
    )
    summary = Table("result", "generated", "ground truth", "null", title=f"Demo; people: {people}")
    for tag in config["summary"]:
        name = f"[yellow]{tag} ![/yellow]" if tag in worse else tag
        summary.add_row(name, *(_cell(metrics, f"{tag}{side}") for side in ("", "/true", "/null")))
    show(summary, console)
    if worse:
        console.print(f"! worse than the null: {', '.join(worse)}", style="yellow", highlight=False)
    console.print(f"{sum(seconds) / 60:.1f} minutes, at most {max(memory):.2f} GiB in all processes")
    for name, path in {**paths, "report": f"{folder}/report.md"}.items():
        console.print(f"{name:>12}: {path}", highlight=False, soft_wrap=True)


def _cell(metrics: dict[str, Any], tag: str) -> str:
    value, error = metrics.get(tag), metrics.get(f"{tag}/se")
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else "")
