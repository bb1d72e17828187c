"""The page in headless Chromium, with a hand-made avatar whose reaction is known."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from aiohttp.test_utils import TestServer

from af.clock import FRAME_MS, SAMPLE_RATE, SAMPLES_PER_FRAME
from af.forcing.guidance import Guidance
from af.models.tracker import load_tracker
from af.serve.puppet import Puppet, portrait
from af.serve.replay import Frame
from af.serve.server import LiveServer
from af.serve.service import Service
from af.serve.settings import Settings
from af.synth.face import FACE_INDEX
from af.synth.render import render
from benchmarks.browser import Page, opened
from tests.browser import needs_browser
from tests.serve.echo import LAG, SIZE, echo
from tests.serve.leaving import all_have_left

pytestmark = [pytest.mark.slow, needs_browser]

#: Images of both videos with their times in ms, as long as asked, and what is clicked after half a second.
RECORD = """(async (size, button, seconds) => {
  const canvas = new OffscreenCanvas(size, size), context = canvas.getContext("2d", {willReadFrequently: true}), times = [], bytes = [];
  const start = performance.now();
  let clicked = false;
  while (performance.now() < start + 1000 * seconds) {
    if (!clicked && performance.now() > start + 500) { clicked = true; document.querySelector(button).click(); }
    times.push(performance.now() - start);
    for (const video of [document.getElementById("user"), document.getElementById("avatar")]) {
      context.drawImage(video, 0, 0, canvas.width, canvas.height);
      bytes.push(context.getImageData(0, 0, canvas.width, canvas.height).data);
    }
    await new Promise(resolve => setTimeout(resolve, 30));
  }
  const data = new Blob(bytes), reader = new FileReader();
  await new Promise(resolve => { reader.onload = resolve; reader.readAsDataURL(data); });
  return { times, data: reader.result.split(",")[1] };
})"""


async def smiles(page: Page, button: str, seconds: float = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times in ms, and the smiles of user and avatar, read from the images that the browser shows."""
    found = await page.run(f"{RECORD}({SIZE}, {button!r}, {seconds})")
    images = np.frombuffer(base64.b64decode(found["data"]), np.uint8).reshape(-1, 2, SIZE, SIZE, 4)
    tracker = load_tracker()
    user, avatar = (
        tracker.track(np.ascontiguousarray(images[:, n, ..., :3]))[:, FACE_INDEX["smile"]] for n in range(2)
    )
    return np.array(found["times"]), user, avatar


def rise(times: np.ndarray, curve: np.ndarray) -> float:
    """When a curve first passes the middle between its start and its greatest value."""
    start = np.median(curve[:8])
    return float(times[np.argmax(curve > (start + curve.max()) / 2)])


def run(work: Callable[[Page, LiveServer], Awaitable[None]], folder: Path) -> None:
    async def main() -> None:
        sampling = {"steps": 1, "guidance": Guidance(audio=0, user=1)}
        settings, listed = Settings(sampling, cushion_ms=60), [{"name": "smiling", "seconds": 3}]
        face = np.zeros((1, len(FACE_INDEX)), np.float32)
        face[0, FACE_INDEX["smile"]] = 0.9
        smiling = Frame(
            render(face, Puppet(1, SIZE).appearance, SIZE)[0], *np.zeros((2, SAMPLES_PER_FRAME), np.float32)
        )
        replays = SimpleNamespace(listed=listed, open=lambda _: itertools.repeat(smiling))
        service = Service(echo(), portrait(0, SIZE), settings, replays=replays)  # type: ignore[arg-type]
        voice = (0.3 * np.sin(np.arange(5 * SAMPLE_RATE) * 0.3)).astype(np.float32)
        server = LiveServer(service, voice=voice)
        service.start()
        try:
            async with (
                TestServer(server.app, skip_url_asserts=True) as listening,
                opened(str(listening.make_url("/")), folder) as page,
            ):
                await page.until("peer.connectionState === 'connected'", 60)
                await page.until("Math.min(user.currentTime, avatar.currentTime) > 2", 60)
                await work(page, server)
                assert not page.errors
        finally:
            service.stop()

    asyncio.run(asyncio.wait_for(main(), 240))


def test_the_puppets_smile_is_answered_after_the_models_lag_and_only_if_it_is_seen(tmp_path: Path) -> None:
    async def work(page: Page, server: LiveServer) -> None:
        times, user, avatar = await smiles(page, "[data-act=smile]")
        assert user.max() - np.median(user[:8]) > 0.5
        assert avatar.max() - np.median(avatar[:8]) > 0.3
        answered = rise(times, avatar) - rise(times, user)
        block_ms = server.service.avatar.denoiser.layout.block_frames * FRAME_MS
        assert LAG * FRAME_MS < answered < LAG * FRAME_MS + block_ms + 1500  # computing and playing on a busy machine
        lags = await page.run("curves.lags.filter(found => found.name === 'smile').map(found => found.lag)")
        assert lags == [pytest.approx(LAG * FRAME_MS / 1000, abs=0.025)]
        assert "smile answered after 0.3" in await page.run("document.getElementById('answer').textContent")

        await page.run("document.querySelector('[data-signal=user_motion]').click()")
        await asyncio.sleep(1.5)
        _, user, avatar = await smiles(page, "[data-act=smile]")
        assert user.max() - np.median(user[:8]) > 0.5
        assert np.ptp(avatar) < 0.15
        await page.run("document.querySelector('[data-signal=user_motion]').click()")
        await page.until("curves.lags.some(found => found.name === 'smile' && found.lag === null)")
        _, _, avatar = await smiles(page, "[data-act=smile]")
        assert avatar.max() - np.median(avatar[:8]) > 0.3

    run(work, tmp_path)


def test_both_videos_and_the_voice_play_and_the_controls_arrive(tmp_path: Path) -> None:
    async def work(page: Page, server: LiveServer) -> None:
        before = await page.run("[user, avatar].map(video => video.currentTime)")
        await page.run("document.getElementById('sound').click()")
        await page.run("document.getElementById('play').click()")
        await asyncio.sleep(10)
        after = await page.run("[user, avatar].map(video => video.currentTime)")
        assert all(end - start > 8 for start, end in zip(before, after, strict=True))
        energy = await page.run(
            "peer.getStats().then(all => Math.max(...[...all.values()].map(s => s.totalAudioEnergy ?? 0)))"
        )
        assert energy > 0.01
        (conversation,) = server.service.conversations
        assert await page.run("document.getElementById('load').textContent") != "–"
        await page.run("document.querySelector('[data-change=steps]').value = 3")
        await page.run("document.querySelector('[data-change=steps]').dispatchEvent(new Event('change'))")
        await page.ask("Input.dispatchKeyEvent", type="keyDown", key="n")
        await page.until("latest.settings?.steps === 3")
        assert conversation.settings.sampling["steps"] == 3
        await page.until("latest.user?.nod.some(angle => angle > 0.1)")
        await page.run("document.getElementById('microphone').click()")  # Chromium's fake one beeps
        await page.run("document.querySelector('[value=camera]').click()")  # its fake camera shows no face
        for _ in range(100):
            if conversation.user == "camera" and conversation.heard.missing + len(conversation.heard):
                break
            await asyncio.sleep(0.1)
        assert conversation.user == "camera"
        await page.until("document.getElementById('state').textContent.includes('your face is lost')")
        await page.run("document.getElementById('dub').click()")
        for _ in range(100):
            if len(conversation.dubbed):
                break
            await asyncio.sleep(0.1)
        assert len(conversation.dubbed)
        assert "Fake Audio Input 2" in await page.run("document.getElementById('devices').textContent")
        await page.run("document.querySelector('[value=replay]').click()")
        await page.until("document.getElementById('who').textContent === 'recorded'")
        await page.until("document.getElementById('replays').textContent === 'smiling, 3 s'")
        await page.until("latest.user?.smile.every(smile => smile > 0.5)")
        assert conversation.user == "replay"
        assert await page.run("document.querySelector('[data-switch=student]').disabled")
        await page.run("document.getElementById('restart').click()")
        await page.until("curves.end < 100")
        assert server.service.conversations == [conversation]
        await page.run("peer.close()")
        await all_have_left(server, 30)

    run(work, tmp_path)
