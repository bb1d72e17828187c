"""Live conversations: from the user's button to the pixels in a browser, and what hours, bad lines and leavers do.

  python -m benchmarks.live                                                 user to pixel, 20 times: three minutes
  python -m benchmarks.live --sessions 2 --programs 2 --minutes 60          also memory, delay and faults by the minute
  python -m benchmarks.live --loss 5 --jitter 30                            over a line that loses and delays packets
  python -m benchmarks.live --sessions 2 --kill-tabs 1 --reconnects 20      after tabs that die and pages that return
  python -m benchmarks.live --sessions 2 --lose-inputs 20                   camera and microphone pulled out, and back

It starts `af live` in a process of its own, with the avatar of the package unless models are given, and opens its page in
headless Chromium; options after `--` are passed on (`-- --guidance-user 2 --steps 4`). `user_to_pixel_ms` ends when the
first frame whose user has changed is on the screen, `answer_ms` when the avatar smiles, which the model takes its time for.
`echo_ms` is the user's own picture, over the line both ways; without the 40 ms that two clocks of 25 Hz take on average it
is `transport_ms`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile

from af.cli.kinds import count, number
from af.clock import FRAME_MS, SAMPLE_RATE, seconds_to_frames
from af.errors import UserError
from af.serve.client import connect
from af.synth.turns import plan_phrase
from af.synth.voice import VoiceType, speech
from benchmarks.browser import Browser, Page, browser
from benchmarks.common import options, report
from benchmarks.line import Line, proxy
from benchmarks.probe import Probe, probe
from benchmarks.served import Server, serving
from benchmarks.soak import STATE, programs, soak

_VOICE_S: Final = 8


def phrase(seconds: float = _VOICE_S) -> np.ndarray:
    """What the avatar says."""
    rng = np.random.default_rng(0)
    return speech([plan_phrase(rng, 0.0, seconds)], VoiceType.sample(rng), seconds_to_frames(seconds), rng)


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """What the options ask for, one after the other, on one server."""
    voice = phrase()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        soundfile.write(folder / "voice.wav", voice, SAMPLE_RATE)
        words = [
            f"--voice={folder / 'voice.wav'}",
            f"--conversations={args.sessions + args.programs}",
            "--length=86400",
        ]
        models = {"--autoencoder": args.autoencoder, "--denoiser": args.denoiser}
        words += [f"{option}={folder}" for option, folder in models.items() if folder is not None]
        server = stack.enter_context(serving([*words, *args.live]))
        async with _visited(server, folder, args) as (windows, address, line):
            pages = [await _entered(windows, address) for _ in range(args.sessions)]
            about = json.loads(await pages[0].run("JSON.stringify(about)"))
            found: dict[str, Any] = {"size": about["size"], "block_frames": about["block_frames"]}
            found |= {"sessions": args.sessions, "memory": server.memory()}
            found |= summary([await probe(page, voice) for _, page in zip(range(args.tries), itertools.cycle(pages))])
            if args.minutes:
                talking = await programs(server.address, args.programs, voice)
                found["soak"] = await soak(server, pages, talking, voice, args.minutes, args.out)
                for program in talking:
                    await program.end()
            if args.lose_inputs:
                found["lost_inputs"] = await lose_inputs(server, pages, voice, args.lose_inputs)
            if args.kill_tabs:
                found["killed_tabs"] = await kill(server, windows, pages, voice, args.kill_tabs, address)
            if args.reconnects:
                found["reconnects"] = await reconnect(server, pages[0], args.reconnects)
            if line is not None:
                found["line"] = {"packets": line.sent, "lost": line.lost, "jitter_ms": line.jitter_ms}
            server.require_life()
            return found | {"errors_in_pages": [error for page in pages for error in page.errors]}


@contextlib.asynccontextmanager
async def _visited(
    server: Server, folder: Path, args: argparse.Namespace
) -> AsyncIterator[tuple[Browser, str, Line | None]]:
    async with contextlib.AsyncExitStack() as stack:
        address, line = server.address, None
        if args.loss or args.jitter:
            line = Line(args.loss / 100, args.jitter)
            address = await stack.enter_async_context(proxy(address, line))
        yield await stack.enter_async_context(browser(folder)), address, line


async def _entered(windows: Browser, address: str) -> Page:
    page = await windows.open(address)
    await _playing(page)
    return page


async def _playing(page: Page, seconds: float = 60) -> None:
    await page.until(
        "peer.connectionState === 'connected' && Math.min(user.currentTime, avatar.currentTime) > 2", seconds
    )


def summary(probes: Sequence[Probe]) -> dict[str, Any]:
    """Percentiles of what was measured, with the budget's means beside."""

    def of(values: Sequence[float | None]) -> dict[str, Any]:
        there = [value for value in values if value is not None]
        if not there:
            return {"of": 0}
        return {"p50": float(np.median(there)), "p95": float(np.percentile(there, 95)), "of": len(there)}

    echo = of([p.echo for p in probes])
    loads = [p.budget["load"] for p in probes if p.budget.get("load")]
    parts = sorted({name for p in probes for name in p.budget} - {"load"})
    return {
        "tries": len(probes),
        "user_to_pixel_ms": of([p.user_to_pixel for p in probes]),
        "answer_ms": of([p.answer for p in probes]),
        "echo_ms": echo,
        "transport_ms": echo["p50"] - FRAME_MS if "p50" in echo else None,
        "arrival_to_screen_ms": of([p.line for p in probes]),
        "voice_late_ms": of([p.voice_late for p in probes]),
        "budget_ms": {name: float(np.mean([p.budget[name] for p in probes if name in p.budget])) for name in parts},
        "times_real_time": float(1 / np.mean(loads)) if loads else None,
        "frames_per_second": float(np.mean([p.frames_per_second for p in probes])) if probes else None,
        "faults": probes[-1].faults if probes else {},
    }


async def lose_inputs(server: Server, pages: Sequence[Page], voice: np.ndarray, seconds: float) -> dict[str, Any]:
    """Take camera and microphone from the first page and give them back; frames per second of every page meanwhile."""
    page = pages[0]
    user = "mirror" if await page.run("about.landmarks") else "camera"
    await page.run(f"become('{user}').then(() => listen($('microphone'), 'audio', true))")
    rates: dict[str, list[float]] = {}
    said: list[str] = []
    for name, script in (("before", ""), ("meanwhile", _PULL), ("after", _PLUG)):
        if script:
            await page.run(script)
            await asyncio.sleep(2)  # a report a second says what is gone
            said.append(await page.run("$('state').textContent"))
        counts = [await _frames(each) for each in pages]
        start = time.monotonic()
        await asyncio.sleep(seconds)
        counts = [await _frames(each) - count for each, count in zip(pages, counts, strict=True)]
        rates[name] = [count / (time.monotonic() - start) for count in counts]
        server.require_life()
    back = await page.run("[media.video?.readyState, media.audio?.readyState]")
    await page.run("become('puppet')")
    again = await probe(page, voice)
    return {"user": user, "frames_per_second": rates, "said": said, "tracks_at_the_end": back} | {
        "user_to_pixel_ms": again.user_to_pixel,
        "faults": again.faults,
    }


#: A device that is pulled out ends its track; one that comes back is a change of devices.
_PULL: Final = "for (const track of Object.values(media)) track?.stop()"
_PLUG: Final = "navigator.mediaDevices.dispatchEvent(new Event('devicechange'))"


async def _frames(page: Page) -> int:
    return json.loads(await page.run(STATE))["frames"][-1]


async def kill(
    server: Server, windows: Browser, pages: Sequence[Page], voice: np.ndarray, number: int, address: str
) -> dict[str, Any]:
    """Kill tabs; how the others fare, when their places are free again, and the memory."""
    before = server.memory()
    others, killed = pages[:-number], pages[-number:]
    undisturbed = await probe(others[0], voice)
    start = time.monotonic()
    for page in killed:
        await windows.kill(page)
    meanwhile = await probe(others[0], voice)
    while True:
        with contextlib.suppress(UserError):
            async with contextlib.AsyncExitStack() as stack:
                for _ in killed:
                    await stack.enter_async_context(connect(server.address))
                break
        if time.monotonic() - start > 180:
            raise UserError("the places of killed tabs are not free after 180 s")
        await asyncio.sleep(1)
    free_s = time.monotonic() - start
    return {
        "killed": number,
        "places_free_after_s": free_s,
        "frames_per_second_of_another": {
            "before": undisturbed.frames_per_second,
            "meanwhile": meanwhile.frames_per_second,
        },
        "memory": {"before": before, "after": server.memory()},
    }


async def reconnect(server: Server, page: Page, number: int) -> dict[str, Any]:
    """Load the page again and again; how long until it plays, how often there was no place, and the memory."""
    memory, took_s, refused = [server.memory()["pss_mb"]], [], 0
    for _ in range(number):
        start = time.monotonic()
        await page.ask("Page.reload")
        while True:
            try:
                await page.until("peer.connectionState === 'connected' || closed !== null", 60)
                if await page.run("closed") is None:
                    await _playing(page)
                    break
                refused += 1
                await asyncio.sleep(0.5)
                await page.run("begin()")
            except AssertionError as error:
                raise UserError(f"a page that was loaded again does not play: {str(error)[:200]}") from None
        took_s.append(time.monotonic() - start)
        server.require_life()
        memory.append(server.memory()["pss_mb"])
    return {
        "reconnects": number,
        "seconds_until_it_plays": {"p50": float(np.median(took_s)), "most": max(took_s)},
        "refused": refused,
        "pss_mb": memory,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = options("live", __doc__, accelerator=False)
    duration = number(float, least=0)
    parser.add_argument("--autoencoder", help="folder of the motion VAE (default: the avatar of the package)")
    parser.add_argument("--denoiser", help="model folder of the denoiser")
    parser.add_argument("--tries", type=count, default=20, help="presses of the button (default 20)")
    parser.add_argument("--sessions", type=count, default=1, help="pages at one time (default 1)")
    parser.add_argument(
        "--programs", type=count, default=0, help="and programs by WebSocket during --minutes (default 0)"
    )
    parser.add_argument("--minutes", type=duration, default=0, help="how long to hold them after that (default 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/live"), help="folder for --minutes (default runs/live)")
    parser.add_argument(
        "--loss", type=number(float, least=0, most=100), default=0, help="percent of packets lost each way"
    )
    parser.add_argument("--jitter", type=duration, default=0, help="packets are delayed by up to so many ms")
    parser.add_argument(
        "--lose-inputs", type=duration, default=0, help="seconds without the first page's camera and microphone"
    )
    parser.add_argument("--kill-tabs", type=count, default=0, help="kill so many pages (fewer than --sessions)")
    parser.add_argument("--reconnects", type=count, default=0, help="load a page again so many times")
    parser.add_argument("live", nargs="*", metavar="-- OPTIONS", help="further options of af live")

    def found(args: argparse.Namespace) -> dict[str, Any]:
        if args.kill_tabs >= args.sessions:
            raise UserError(f"--kill-tabs {args.kill_tabs}: one of the {args.sessions} pages (--sessions) must stay")
        return asyncio.run(measure(args))

    return report(parser, found, arguments)


if __name__ == "__main__":
    sys.exit(main())
