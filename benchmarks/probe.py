"""When a browser shows which frame of a conversation, read from what it received: the user presses a button, and the
images and the voice are recorded with their times and laid over what the server reports frame by frame.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Float32

from af.clock import FRAME_MS, SAMPLE_RATE, samples_to_seconds
from af.models.tracker import load_tracker
from af.serve.service import CURVES
from af.synth.face import FACE_INDEX
from benchmarks.browser import Page

_SIZE: Final = 64  # pixels that the tracker looks at
#: A smile is above its noise from this on, in units of the face parameter.
_NOTICED: Final = 0.1
_HEARD_MS: Final = 10.0
#: Frames without which no recording can be read.
_FEWEST: Final = 40

#: Both videos' images, the voice's loudness and the server's reports, with their times in ms of the page.
_RECORD = """(async (size, before, after) => {
  const canvas = new OffscreenCanvas(size, size), context = canvas.getContext("2d", {willReadFrequently: true});
  const bytes = [], images = {user: [], avatar: []}, received = [], heard = [], reports = [];
  let running = true;
  const watch = name => {
    const video = document.getElementById(name);
    const take = (now, frame) => {
      if (!running) return;
      context.drawImage(video, 0, 0, size, size);
      images[name].push([frame.expectedDisplayTime, bytes.length]);
      if (name === "avatar" && frame.receiveTime) received.push(frame.expectedDisplayTime - frame.receiveTime);
      bytes.push(context.getImageData(0, 0, size, size).data);
      video.requestVideoFrameCallback(take);
    };
    video.requestVideoFrameCallback(take);
  };
  watch("user"); watch("avatar");
  const listen = event => reports.push(JSON.parse(event.data));
  channel.addEventListener("message", listen);
  // the sound as it leaves the decoder for the loudspeaker
  const track = peer.getReceivers()[0].track.clone(), ears = new MediaStreamTrackProcessor({track}).readable.getReader();
  (async () => {
    while (running) {
      const {value, done} = await ears.read();
      if (done) break;
      const samples = new Float32Array(value.numberOfFrames);
      value.copyTo(samples, {planeIndex: 0, format: "f32-planar"});
      heard.push([performance.now(), value.timestamp / 1000, Math.hypot(...samples) / Math.sqrt(samples.length)]);
      value.close();
    }
    ears.cancel(); track.stop();
  })();
  const wait = ms => new Promise(resolve => setTimeout(resolve, ms));
  document.getElementById("interrupt").click();
  document.getElementById("play").click();
  const start = performance.now();
  await wait(before);
  const pressed = performance.now();
  document.querySelector("[data-act=smile]").click();
  await wait(after);
  running = false; channel.removeEventListener("message", listen);
  const reader = new FileReader();
  await new Promise(resolve => { reader.onload = resolve; reader.readAsDataURL(new Blob(bytes)); });
  return {pressed, images, received, heard, reports, network, seconds: (performance.now() - start) / 1000,
    data: reader.result.split(",")[1]};
})"""


@dataclass(frozen=True)
class Probe:
    """Times in ms from the button on; None where the recording does not tell.

    `user_to_pixel`: until the browser shows the avatar in the first frame whose user has changed. `answer`: until the
    avatar's smile is above its noise, which the model takes its time for. `echo`: until the browser shows the user's own
    change, which passes the line both ways but no model. `voice_late`: by how much a frame's voice is heard after its
    image is seen. `line`: from a packet's arrival to the screen.
    """

    user_to_pixel: float | None
    answer: float | None
    echo: float | None
    voice_late: float | None
    line: float | None
    frames_per_second: float
    budget: dict[str, float]
    faults: dict[str, int]


async def probe(page: Page, voice: Float32[np.ndarray, " S"], before_ms: int = 1500, after_ms: int = 4000) -> Probe:
    """Press the page's smile button while the avatar says `voice`, the server's recording, and see what comes of it."""
    found = await page.run(f"{_RECORD}({_SIZE}, {before_ms}, {after_ms})")
    reports = [report for report in found["reports"] if "user" in report]
    pixels = np.frombuffer(base64.b64decode(found["data"]), np.uint8).reshape(-1, _SIZE, _SIZE, 4)[..., :3]
    shown = {}
    for name, frames in found["images"].items():
        times, places = (np.array(column) for column in zip(*frames, strict=True)) if frames else (np.zeros(0),) * 2
        faces = load_tracker().track(np.ascontiguousarray(pixels[places.astype(int)]))
        shown[name] = times, faces[:, [FACE_INDEX[parameter] for parameter in CURVES.values()]]
    first = reports[0]["start"] if reports else 0
    made = {side: _curves(reports, side) for side in ("user", "avatar")}
    zero = {side: offset(*shown[side], made[side]) for side in shown}  # when the browser shows frame `first`
    pressed, changed = found["pressed"], beginning(made["user"][:, 0])
    delays = {
        side: None if at is None or changed is None else at + changed * FRAME_MS - pressed for side, at in zero.items()
    }
    heard = heard_at(_stamped(found["heard"]), voice, reports, first)
    times, faces = shown["avatar"]
    return Probe(
        user_to_pixel=delays["avatar"],
        answer=answer(times - pressed, faces[:, 0]),
        echo=delays["user"],
        voice_late=None if heard is None or zero["avatar"] is None else heard - zero["avatar"],
        line=float(np.median(found["received"])) if found["received"] else None,
        frames_per_second=len(times) / found["seconds"],
        budget=_budget(reports) | ({} if found["network"] is None else {"network": found["network"]}),
        faults=reports[-1]["faults"] if reports else {},
    )


def offset(
    times: Float[np.ndarray, " N"], seen: Float[np.ndarray, "N C"], made: Float[np.ndarray, "T C"], step_ms: float = 2.0
) -> float | None:
    """The time at which frame 0 of `made` was seen, from readings of the frames seen at `times` (ms); None if the curves
    do not tell.
    """
    if len(times) < _FEWEST or len(made) < _FEWEST:
        return None
    spread = made.std(0) + 0.02
    candidates = np.arange(times[0] - len(made) * FRAME_MS, times[-1], step_ms)
    errors = np.full(len(candidates), np.inf)
    for n, start in enumerate(candidates):
        at = (times - start) / FRAME_MS
        inside = (at >= 0) & (at <= len(made) - 1)
        if inside.mean() > 0.5:
            lower = np.minimum(at[inside].astype(int), len(made) - 2)
            share = (at[inside] - lower)[:, None]
            expected = made[lower] * (1 - share) + made[lower + 1] * share
            differences = (seen[inside] - expected) / spread
            errors[n] = differences.var(0).mean()  # a mark or coding may shift a reading as a whole
    usual = np.median(errors[np.isfinite(errors)]) if np.isfinite(errors).any() else 0.0
    return float(candidates[errors.argmin()]) if errors.min() < 0.3 * usual else None


def _stamped(heard: list[list[float]]) -> Float[np.ndarray, "N 2"]:
    """When pieces of sound were there, and how loud: by their own times, which start anywhere, as the page has busy moments."""
    if not heard:
        return np.zeros((0, 2))
    now, times, levels = np.array(heard).T
    return np.stack((times + (now - times).min(), levels), 1)


def _curves(reports: list[Mapping[str, Any]], side: str) -> Float[np.ndarray, "T C"]:
    return np.array([[value for r in reports for value in r[side][name]] for name in CURVES]).reshape(len(CURVES), -1).T


def beginning(smile: Float[np.ndarray, " T"]) -> int | None:
    """The frame in which the puppet begins to smile."""
    if len(smile) == 0 or smile.max() - np.median(smile[:10]) < 0.3:
        return None
    at = int(np.argmax(smile > np.median(smile[:10]) + 0.3))
    while at and smile[at] - smile[at - 1] > 0.01:
        at -= 1
    return at + 1


def answer(times: Float[np.ndarray, " N"], smile: Float[np.ndarray, " N"]) -> float | None:
    """When a smile rises above its noise before time 0 and stays there; None if it does not."""
    before = smile[times < 0]
    if len(before) < 5:
        return None
    limit = np.median(before) + max(_NOTICED, 4 * 1.48 * float(np.median(np.abs(before - np.median(before)))))
    above = (smile > limit) & (times > 0)
    lasting = above[:-2] & above[1:-1] & above[2:]
    return float(times[np.argmax(lasting)]) if lasting.any() else None


def heard_at(
    heard: Float[np.ndarray, "N 2"], voice: Float32[np.ndarray, " S"], reports: list[Mapping[str, Any]], first: int
) -> float | None:
    """When the voice of frame `first` was heard; None if it cannot be told."""
    total = samples_to_seconds(len(voice))
    told = [r for r in reports if 0.3 < r["unsaid_s"] < total - 0.3]  # in the middle of the recording
    if not told or len(heard) < 100:
        return None
    block = len(told[0]["user"]["smile"])
    # a block's report comes when its voice is taken: where the recording begins, on the session's clock
    begun_ms = float(
        np.median([(r["start"] + block - first) * FRAME_MS - 1000 * (total - r["unsaid_s"]) for r in told])
    )
    width = round(_HEARD_MS / 1000 * SAMPLE_RATE)
    whole = voice[: len(voice) // width * width].reshape(-1, width)
    loud = np.sqrt(np.square(whole).mean(1))
    place = np.arange(len(loud)) * _HEARD_MS + begun_ms + _HEARD_MS  # a piece's end
    times, levels = heard.T
    best, at = 0.5, None
    for start in np.arange(times[0] - place[-1], times[-1], 5.0):
        inside = (times >= place[0] + start) & (times <= place[-1] + start)
        if inside.sum() < 100 or not levels[inside].any():
            continue
        expected = np.interp(times[inside], place + start, loud)
        if expected.std() > 0 and levels[inside].std() > 0:
            similar = float(np.corrcoef(expected, levels[inside])[0, 1])
            if similar > best:
                best, at = similar, float(start)
    return at


def _budget(reports: list[Mapping[str, Any]]) -> dict[str, float]:
    if not reports:
        return {}
    means = {name: float(np.mean([r["budget"][name] for r in reports])) for name in reports[0]["budget"]}
    block = len(reports[0]["user"]["smile"])
    means["queue"] = FRAME_MS * max(0.0, float(np.mean([r["waiting_frames"] for r in reports])) - block)
    return means
