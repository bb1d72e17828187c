"""A two-rank training killed again and again ends with exactly the weights of the undisturbed one. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from safetensors.torch import load_file

from af.files import write_json, write_text
from af.synth.build import SynthSettings, build

TITLE = "A training on two ranks, killed at random moments"
SMALL = [
    "experiment=vae_demo",
    "model.image_size=32",
    "model.latent_dim=16",
    "model.directions=14",
    "model.channel_base=128",
    "model.max_channels=16",
    "data.batch_size=8",
    "data.workers=1",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "callbacks.heartbeat.every_s=0",
]
PATIENCE = 42  # steps to wait for a checkpoint that is just being written


def main() -> int:
    """Train undisturbed, train with kills, compare; 0 when the weights are equal to the last bit."""
    folder = Path(__file__).parent
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--work", type=Path, default=Path("runs/chaos"), help="data and runs")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=7, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("--out", type=Path, default=folder, help="where the results go")
    args = parser.parse_args()
    data, rng = args.work / "data", random.Random(args.seed)
    build(data, SynthSettings(train=4, val=1, test=1, size=32))
    words = [*SMALL, f"data.root={data}", f"trainer.max_steps={args.steps}", f"trainer.val_check_interval={args.steps}"]
    words += [f"checkpoints.every_n_steps={args.every}"]
    whole, killed = args.work / "whole", args.work / "killed"
    if not (whole / "done.json").is_file():
        start(words, whole).wait()
    kills = []
    for n in range(args.kills):
        left = args.kills - n
        kills.append(kill_once(words, killed, n, rng, target=args.steps * (n + 1) // (args.kills + 1)))
        print(f"kill {n + 1}: {kills[-1]}", flush=True)
        if kills[-1]["ended"]:
            print(f"the run ended {left} kills too early; give it more --steps", file=sys.stderr)
            return 1
    began = time.monotonic()
    code = start(words, killed).wait()
    equal = code == 0 and same(whole, killed)
    report(args.out, kills, equal, args, time.monotonic() - began)
    print("the weights are equal to the last bit" if equal else "THE WEIGHTS DIFFER")
    return 0 if equal else 1


def start(words: Sequence[str], run: Path) -> subprocess.Popen:
    """The command as a user gives it, in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "af.cli.main", "train", *words, f"run={run}"]
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)


def kill_once(words: Sequence[str], run: Path, number: int, rng: random.Random, target: int) -> dict:
    """Start, wait for a random step around `target` (every third time: for a checkpoint being written), and kill.

    All processes get the signal, or one rank alone: its launcher then ends the other.
    """
    how = (signal.SIGKILL, signal.SIGTERM)[number % 2]
    victim = ("all", "one rank", "all")[number % 3]
    writing = number % 3 == 2
    began, resumed = time.monotonic(), None
    process = start(words, run)
    wanted = target + rng.randrange(1, 8)
    before, caught = newest(run), False
    while process.poll() is None:
        step = now(run) if resumed is not None else None
        if resumed is None and (first := now(run, since=time.time() - (time.monotonic() - began))) is not None:
            resumed = (first, time.monotonic() - began)
        caught = writing and any((run / "checkpoints").glob(".*.tmp"))
        if step is not None and step >= wanted and (caught or not writing or step >= wanted + PATIENCE):
            break
        time.sleep(0 if writing else 0.01)
    tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    at = now(run)
    if tree:
        ranks = [
            p
            for p in tree
            if "--resolved" in " ".join(p.cmdline()) and "torch.distributed" not in " ".join(p.cmdline())
        ]
        for p in [rng.choice(ranks)] if victim == "one rank" and ranks else [*tree, psutil.Process(process.pid)]:
            try:
                p.send_signal(how)
            except psutil.NoSuchProcess:
                continue
    process.wait()
    for p in tree:  # a killed launcher leaves ranks behind that have no one to talk to
        try:
            p.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(tree, timeout=30)
    kept = newest(run)
    return {
        "signal": how.name,
        "victim": victim,
        "while_writing": caught,
        "from_step": before,
        "step": at,
        "kept": kept,
        "lost_steps": None if at is None else max(0, at - kept),
        "recovery_s": None if resumed is None else round(resumed[1], 1),
        "ended": (run / "done.json").is_file(),
    }


def now(run: Path, since: float = 0.0) -> int | None:
    """The optimiser step of rank 0 by its heartbeat, if that is younger than `since`."""
    try:
        beat = json.loads((run / "heartbeat" / "rank0.json").read_text())
    except (OSError, ValueError):
        return None
    return beat["step"] if beat["since"] >= since and beat["phase"] != "data" else None


def newest(run: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return max((int(p.stem) for p in (run / "checkpoints").glob("[0-9]*.ckpt")), default=0)


def same(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same weights, to the last bit."""
    a, b = (load_file(run / "export" / "model.safetensors") for run in (first, second))
    return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


def report(out: Path, kills: Sequence[dict], equal: bool, args: argparse.Namespace, last_s: float) -> None:
    """Table and numbers."""
    head = "| kill | signal | whom | checkpoint being written | at step | newest checkpoint | steps lost | back at work after |"
    lines = [head, "| ---: | --- | --- | --- | ---: | ---: | ---: | ---: |"]
    for n, k in enumerate(kills, 1):
        writing = "yes" if k["while_writing"] else ""
        lines.append(
            f"| {n} | {k['signal']} | {k['victim']} | {writing} | {k['step']} | {k['kept']} | {k['lost_steps']} | "
            f"{k['recovery_s']} s |"
        )
    end = "equal to the last bit" if equal else "DIFFERENT"
    text = f"{args.steps} steps, a checkpoint every {args.every}; weights at the end: **{end}**.\n"
    write_text(out / "results.md", f"# {TITLE}\n\n" + "\n".join(lines) + f"\n\n{text}")
    write_json(out / "results.json", {"equal": equal, "kills": list(kills), "last_start_s": round(last_s, 1)})


if __name__ == "__main__":
    sys.exit(main())
