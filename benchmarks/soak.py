"""Conversations held for long: memory, delays and faults by the minute, of pages in a browser and of programs."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32

from af.clock import FRAME_MS, samples_to_seconds
from af.errors import UserError
from af.files import atomic_path
from af.serve.client import Client, connect
from benchmarks.browser import Page
from benchmarks.probe import probe
from benchmarks.served import Server

#: A session in a line.
STATE: Final = """(async () => { const stats = [...(await peer.getStats()).values()];
  return JSON.stringify({closed, faults: latest.faults ?? {}, waiting_frames: latest.waiting_frames ?? null, network,
    frames: stats.filter(s => s.type === "inbound-rtp" && s.kind === "video").map(s => s.framesDecoded)}); })()"""
#: Between a program's smiles, which also keep its conversation from being idle.
_SMILE_EVERY_S: Final = 10.0


class Program:
    """A conversation by WebSocket, as a program has it: it says its voice again and again, smiles, and takes every frame.

    `frames` received; `skipped` numbers between them; `late_ms`: how much later the newest blocks came than frame numbers
    at 25 per second say, since the first.
    """

    def __init__(self, address: str, voice: Float32[np.ndarray, " S"]) -> None:
        self.frames = self.skipped = 0
        self.faults: dict[str, int] = {}
        self.closed: str | None = None
        self._late: list[float] = []
        self._first: float | None = None
        self._tasks = [asyncio.create_task(self._talk(address, voice))]

    async def _talk(self, address: str, voice: Float32[np.ndarray, " S"]) -> None:
        async with connect(address) as client:
            self._tasks.append(asyncio.create_task(self._live(client, voice)))
            newest = -1
            async for frame in client.frames():
                begun = time.monotonic() - frame.index * FRAME_MS / 1000
                self._first = begun if self._first is None else self._first
                self._late.append(1000 * (begun - self._first))
                self.skipped += frame.index - newest - 1
                newest, self.frames = frame.index, self.frames + 1
                self.faults = client.reports[-1].get("faults", self.faults) if client.reports else {}
            self.closed = next((r["closed"] for r in reversed(client.reports) if "closed" in r), "the line has ended")

    async def _live(self, client: Client, voice: Float32[np.ndarray, " S"]) -> None:
        said_until = time.monotonic()
        while True:
            await client.do("act", what="smile")
            while said_until < time.monotonic() + _SMILE_EVERY_S:
                await client.say(voice)
                said_until += samples_to_seconds(len(voice))
            await asyncio.sleep(_SMILE_EVERY_S)

    def state(self) -> dict[str, Any]:
        """What has come until now; `late_ms` is the least since the last call, which bursts of frames do not change."""
        late, self._late = self._late, []
        return {
            "closed": self.closed,
            "faults": self.faults,
            "frames": self.frames,
            "skipped": self.skipped,
            "late_ms": min(late) if late else None,
        }

    async def end(self) -> None:
        """End the conversation. Raises what has ended it before."""
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


async def soak(
    server: Server, pages: Sequence[Page], programs: Sequence[Program], voice: np.ndarray, minutes: float, out: Path
) -> dict[str, Any]:
    """Hold the conversations for `minutes`; every minute (of short runs, quarter) a row is added to a file in `out`.

    `memory_change` is the last half's growth of the proportional set size by a straight line, relative to its mean;
    `delay_growth_ms` that of user to pixel over the whole time.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    begun = time.monotonic()
    with open(out / "minutes.jsonl", "w") as file:
        while not rows or time.monotonic() < begun + 60 * minutes:
            n = len(rows)
            await asyncio.sleep(max(0.0, begun + n * min(60.0, 60 * minutes / 4) - time.monotonic()))
            server.require_life()
            found = await probe(pages[n % len(pages)], voice)
            states = [json.loads(await page.run(STATE)) for page in pages]
            row = {"minute": (time.monotonic() - begun) / 60, "session": n % len(pages), **server.memory()}
            row |= asdict(found) | {"sessions": states, "programs": [program.state() for program in programs]}
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    plot(rows, out / "soak.png")
    half = rows[len(rows) // 2 :]
    last = rows[-1]
    return {
        "minutes": minutes,
        "rows": str(out / "minutes.jsonl"),
        "memory_change": growth(half, "pss_mb") / float(np.mean([row["pss_mb"] for row in half])),
        "delay_growth_ms": growth(rows, "user_to_pixel"),
        "user_to_pixel_ms": _spread(rows, "user_to_pixel"),
        "voice_late_ms": _spread(rows, "voice_late"),
        "frames_per_second": _spread([{"fps": fps} for fps in _rates(rows)], "fps"),
        "faults": [state["faults"] for state in last["sessions"]],
        "closed": [state["closed"] for state in last["sessions"]],
        "programs": last["programs"],
    }


def _rates(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Frames per second that a page decoded or a program got, of each session and minute."""
    rates = []
    for before, after in itertools.pairwise(rows):
        seconds = 60 * (after["minute"] - before["minute"])
        for kind in ("sessions", "programs"):
            for old, new in zip(before[kind], after[kind], strict=True):
                counts = [np.atleast_1d(state["frames"]) for state in (old, new)]
                rates += [(counts[1][-1] - counts[0][-1]) / seconds] if min(map(len, counts)) else []
    return [float(rate) for rate in rates]


def _spread(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float] | None:
    known = [row[name] for row in rows if row[name] is not None]
    if not known:
        return None
    least, p50, p95, most = (float(np.percentile(known, at)) for at in (0, 50, 95, 100))
    return {"least": least, "p50": p50, "p95": p95, "most": most, "of": len(known)}


def growth(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """By how much a straight line through a column rises from the first row to the last; 0 with too few values."""
    known = [(row["minute"], row[name]) for row in rows if row[name] is not None]
    if len(known) < 3:
        return 0.0
    minutes, values = np.array(known).T
    return float(np.polyfit(minutes, values, 1)[0] * (minutes[-1] - minutes[0]))


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Memory, delays and the voice's offset over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    minutes = [row["minute"] for row in rows]
    for axis, names, label in zip(
        axes,
        (("rss_mb", "pss_mb"), ("user_to_pixel", "echo"), ("voice_late",)),
        ("memory of the server [MB]", "delay [ms]", "voice after image [ms]"),
        strict=True,
    ):
        for name in names:
            values = [np.nan if row[name] is None else row[name] for row in rows]
            axis.plot(minutes, values, marker=".", label=name.replace("_", " "))
        axis.set_ylabel(label)
        axis.legend(loc="upper left")
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, 1.1 * max(row["rss_mb"] for row in rows))
    axes[-1].set_xlabel("minutes")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


async def programs(address: str, number: int, voice: Float32[np.ndarray, " S"]) -> list[Program]:
    """So many programs that talk with the server. Raises UserError for one that gets no frames within 30 s."""
    talking = [Program(address, voice) for _ in range(number)]
    for _ in range(300):
        if all(program.frames for program in talking):
            return talking
        await asyncio.sleep(0.1)
    for program in talking:
        await program.end()
    raise UserError("a program got no frame within 30 s")
