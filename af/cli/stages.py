"""Run a list of commands as stages: each its own process, timed, its memory watched, skipped when it is done."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from rich.rule import Rule

from af.errors import Stopped, UserError
from af.files import read_json, write_json

#: The exit code of what SIGTERM has ended.
TERMINATED: Final = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Stage:
    """One step of a job: a short name, what it is for in one line, and the arguments of `af`."""

    name: str
    purpose: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class StageResult:
    """What a stage took: wall seconds (over all its starts) and the peak resident memory of its processes together."""

    seconds: float
    peak_memory_gb: float


def run_stages(stages: Sequence[Stage], record: Path, console: Console) -> dict[str, StageResult]:
    """Run what is not yet in `record` (JSON, written after each stage); a changed stage and all after it run again.

    Raises UserError when a stage fails, naming it and its command, `Stopped` when SIGTERM ended it.
    """
    done = read_json(record) if record.is_file() else {}
    for number, stage in enumerate(stages, 1):
        known = done.get(stage.name)
        title = f"[bold]{number}/{len(stages)} {stage.name}[/bold]" + (f": {stage.purpose}" if stage.purpose else "")
        console.print(Rule(title, align="left"))
        if known and known["arguments"] == list(stage.arguments) and known["done"]:
            console.print(f"done before, in {known['seconds']:.0f} s")
            continue
        if known and known["arguments"] != list(stage.arguments):
            for later in stages[number - 1 :]:
                done.pop(later.name, None)
            known = None
        spent = known["seconds"] if known else 0.0
        start = time.monotonic()
        try:
            code, peak = _run([sys.executable, "-m", "af.cli.main", *stage.arguments])
        finally:
            entry = {"arguments": list(stage.arguments), "seconds": spent + time.monotonic() - start, "done": False}
            done[stage.name] = entry
            write_json(record, done)
        entry["peak_memory_gb"] = max(peak, known.get("peak_memory_gb", 0.0) if known else 0.0)
        if code == TERMINATED:
            raise Stopped(signal.SIGTERM, f"stopped in stage {stage.name}: the same command goes on with it")
        if code:
            raise UserError(f"stage {stage.name} failed (exit {code}): af {' '.join(stage.arguments)}")
        entry["done"] = True
        write_json(record, done)
    return {s.name: StageResult(done[s.name]["seconds"], done[s.name]["peak_memory_gb"]) for s in stages}


def _run(command: list[str]) -> tuple[int, float]:
    told: list[int] = []

    def tell(number: int, frame: object) -> None:
        told.append(number)
        if process is not None:
            process.send_signal(number)

    process: subprocess.Popen[bytes] | None = None
    before = signal.signal(signal.SIGTERM, tell)  # a terminal's Ctrl-C reaches the stage by itself, this does not
    # files that may be inherited are locks (af.files.exclusive): held as long as the stage runs
    process = subprocess.Popen(command, close_fds=False)
    if told:  # while it was being started
        process.terminate()
    peak = 0.0
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.5):
            peak = max(peak, resident_gb(process.pid))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        code = process.wait()
        return TERMINATED if told else code, peak
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        stop.set()
        watcher.join()


def resident_gb(pid: int) -> float:
    """Resident memory of a process and all its descendants, in GiB (pages shared between them count in each)."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return 0.0
    return total / 2**30
