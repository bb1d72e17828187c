"use strict";
const $ = name => document.getElementById(name), all = selector => [...document.querySelectorAll(selector)];
const token = new URLSearchParams(location.search).get("token");
const asking = { headers: token ? { Authorization: `Bearer ${token}` } : {} };
let about, peer, channel, call, network = null, closed = null, latest = {};
const curves = new Curves($("curves"), ({ name, lag }) => $("answer").textContent = lag === null ? `${name}: no answer` : `${name} answered after ${lag.toFixed(2)} s`);

function say(text, bad = false) { $("state").textContent = text; $("state").classList.toggle("bad", bad); }
function send(what, values = {}) { if (channel?.readyState === "open") channel.send(JSON.stringify({ do: what, ...values })); }
async function fetched(path, options = {}) {
  const response = await fetch(path, { ...asking, ...options }), found = await response.json();
  if (found.error) throw new Error(found.error);
  return found;
}

async function start() {
  closed = null; curves.clear(); say("connecting …");
  about = await fetched("about");
  $("play").hidden = !about.voice; $("mirror-hint").hidden = about.landmarks;
  document.querySelector("[value=mirror]").disabled = !about.landmarks;
  $("no-text").hidden = about.text; $("say").hidden = !about.text;
  $("recorded").hidden = !about.recorded; document.querySelector("[data-switch=student]").disabled = !about.student;
  const anchor = document.querySelector("[data-switch=anchor]");
  anchor.disabled = !about.anchored;
  if (!about.anchored) anchor.parentElement.title = "needs a server that computes on torch: af live --runtime torch";
  document.querySelector("[value=replay]").disabled = !about.replays.length;
  if ($("replays").length !== about.replays.length) {
    $("replays").replaceChildren(...about.replays.map(({ name, seconds }, n) => new Option(`${name}, ${Math.round(seconds)} s`, n)));
  }
  peer = new RTCPeerConnection({ iceServers: about.ice });
  const voice = peer.addTransceiver("audio", { direction: "sendrecv" });
  const face = peer.addTransceiver("video", { direction: "sendrecv" });
  const seen = peer.addTransceiver("video", { direction: "recvonly" });
  peer.addTransceiver("audio", { direction: "sendonly" }); // of somebody who speaks for the avatar
  for (const { receiver } of [voice, face, seen]) receiver.jitterBufferTarget = 0; // as little delay as the line allows
  $("avatar").srcObject = new MediaStream([voice.receiver.track, face.receiver.track]);
  $("user").srcObject = new MediaStream([seen.receiver.track]);
  channel = peer.createDataChannel("live");
  channel.onopen = () => { say("connected"); restore(); };
  channel.onmessage = event => receive(JSON.parse(event.data));
  channel.onclose = () => ended("the connection has ended");
  peer.onconnectionstatechange = () => { if (peer.connectionState === "failed") ended("no connection to the server: a STUN or TURN server (--ice) may be needed"); };
  await peer.setLocalDescription();
  await new Promise(resolve => {
    const check = () => { if (peer.iceGatheringState === "complete") resolve(); };
    peer.addEventListener("icegatheringstatechange", check); check(); setTimeout(resolve, 2000);
  });
  const answer = await fetched("call", { method: "POST", body: peer.localDescription.sdp });
  call = answer.call;
  await peer.setRemoteDescription({ type: "answer", sdp: answer.sdp });
}

function ended(why) {
  if (closed) return;
  closed = why;
  say(`${why} – press Restart`, true);
  peer?.close();
}
const begin = () => start().catch(error => ended(error.message));
// What was chosen holds for a new call, too.
function restore() {
  const user = document.querySelector("[name=user]:checked").value;
  if (user !== "puppet") be(user);
  for (const slider of all("[data-steer]")) if (+slider.value) send("steer", { [slider.dataset.steer]: +slider.value });
  for (const [kind, track] of Object.entries(media)) if (track) peer.getTransceivers()[LINES[kind]].sender.replaceTrack(track);
}

function receive(message) {
  latest = { ...latest, ...message };
  if (message.error) say(message.error, true);
  if (message.is === "puppet") become("puppet");
  if (message.closed) ended(message.closed);
  if (message.settings) show(message.settings);
  if (message.user) { curves.add(message.start, message.user, message.avatar); report(message); }
}

function show({ signals, steps, audio, user, ...switches }) {
  for (const box of all("[data-signal]")) box.checked = signals[box.dataset.signal];
  for (const box of all("[data-switch]")) box.checked = switches[box.dataset.switch];
  for (const slider of all("[data-change]")) {
    const value = { steps, audio, user }[slider.dataset.change];
    slider.disabled = value === null;
    if (value !== null) slider.value = value;
    slider.parentElement.querySelector("output").textContent = value ?? "off";
  }
}

const PARTS = { waiting: "waiting for the block to be complete", features: "speech features", motion: "motion", decoding: "the first image", queue: "waiting to be shown", network: "network and player" };
function report({ budget, faults, waiting_frames, face_lost, seconds }) {
  const times = { ...budget, queue: 40 * Math.max(0, waiting_frames - (latest.settings ?? about).block_frames), network };
  const total = Object.keys(PARTS).reduce((sum, part) => sum + (times[part] ?? 0), 0);
  $("total").textContent = `${Math.round(total)} ms at most, from the user's movement to the avatar's image`;
  $("budget").replaceChildren(...Object.keys(PARTS).map(part => {
    const bar = document.createElement("div");
    bar.style.cssText = `width: ${100 * (times[part] ?? 0) / total}%; background: var(--${part})`;
    bar.title = PARTS[part];
    return bar;
  }));
  $("parts").replaceChildren(...Object.entries(PARTS).flatMap(([part, text]) => {
    const dot = document.createElement("i"), name = document.createElement("dt"), value = document.createElement("dd");
    dot.className = "dot"; dot.style.background = `var(--${part})`;
    name.append(dot, text); value.textContent = times[part] == null ? "–" : `${Math.round(times[part])} ms`;
    return [name, value];
  }));
  $("load").textContent = budget.load.toFixed(2);
  $("load").classList.toggle("bad", budget.load > 1);
  const found = Object.entries(faults);
  $("faults").textContent = found.map(([name, count]) => `${name.replaceAll("_", " ")}: ${count}`).join(", ") || "none";
  const gone = GONE[Object.keys(media).find(kind => media[kind]?.readyState === "ended")], lost = gone ?? (face_lost && "your face is lost: the last motion is held");
  if (!closed) say(lost || `connected for ${Math.floor(seconds)} s`, lost);
}

// What the line and the browser's buffer add: half a round trip, and the time of a frame in the buffer.
let before = null;
setInterval(async () => {
  if (peer?.connectionState !== "connected") { network = null; before = null; return; }
  const stats = [...(await peer.getStats()).values()];
  const pair = stats.find(s => s.type === "candidate-pair" && s.nominated && s.currentRoundTripTime !== undefined);
  const video = stats.find(s => s.type === "inbound-rtp" && s.kind === "video" && s.trackIdentifier === peer.getTransceivers()[1].receiver.track.id);
  if (video) {
    const emitted = video.jitterBufferEmittedCount - (before?.jitterBufferEmittedCount ?? 0), held = video.jitterBufferDelay - (before?.jitterBufferDelay ?? 0);
    network = 500 * (pair?.currentRoundTripTime ?? 0) + (emitted > 0 ? 1000 * held / emitted : 0);
    before = video;
  }
}, 1000);

// Camera and microphones, kept for the page's life, and the lines of the call that they go by.
const media = { audio: null, video: null, dub: null }, LINES = { audio: 0, video: 1, dub: 3 };
async function use(kind, on, device = "") {
  const sender = peer.getTransceivers()[LINES[kind]].sender;
  if (!on) { media[kind]?.stop(); media[kind] = null; await sender.replaceTrack(null); return; }
  if (!navigator.mediaDevices) throw new Error("browsers give camera and microphone to HTTPS pages only (--tls-certificate)");
  const sound = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, ...(device && { deviceId: { exact: device } }) };
  const wanted = kind === "video" ? { video: { width: 640, height: 480, frameRate: 30, facingMode: "user" } } : { audio: sound };
  media[kind]?.stop();
  media[kind] = (await navigator.mediaDevices.getUserMedia(wanted)).getTracks()[0];
  await sender.replaceTrack(media[kind]);
}
const GONE = { video: "the camera is gone: your last motion is held", audio: "the microphone is gone: silence is heard", dub: "the second microphone is gone: the avatar is silent" };
navigator.mediaDevices?.addEventListener("devicechange", async () => {
  for (const kind in media) if (media[kind]?.readyState === "ended") {
    try { await use(kind, true, kind === "dub" ? $("devices").value : ""); } catch { /* another device came, or it is not ready */ }
  }
});

function sound(on) { $("avatar").muted = !on; $("sound").setAttribute("aria-pressed", on); $("sound").textContent = on ? "Sound on" : "Sound off"; $("avatar").play().catch(() => {}); }
$("sound").onclick = () => sound($("avatar").muted);
addEventListener("pointerdown", event => { if (event.target !== $("sound")) sound(true); }, { once: true });
$("restart").onclick = () => { curves.clear(); closed || channel?.readyState !== "open" ? begin() : send("restart"); };
for (const button of all("[data-act]")) button.onclick = () => send("act", { what: button.dataset.act });
for (const slider of all("[data-steer]")) slider.oninput = () => send("steer", { [slider.dataset.steer]: +slider.value });
for (const slider of all("[data-change]")) {
  slider.oninput = () => slider.parentElement.querySelector("output").textContent = slider.value;
  slider.onchange = () => send("change", { [slider.dataset.change]: +slider.value });
}
for (const box of all("[data-signal]")) box.onchange = () => send("change", { signals: { [box.dataset.signal]: box.checked } });
for (const box of all("[data-switch]")) box.onchange = () => send("change", { [box.dataset.switch]: box.checked });
function be(user) { user === "replay" ? send("replay", { number: +$("replays").value }) : send("user", { user }); }
async function become(user) {
  const camera = user === "mirror" || user === "camera";
  try { await use("video", camera); } catch (error) { say(`no camera: ${error.message}`, true); user = "puppet"; }
  document.querySelector(`[value=${user}]`).checked = true;
  $("puppet").hidden = user === "camera" || user === "replay"; $("replay").hidden = user !== "replay"; $("mirror-hint").hidden = about.landmarks || user !== "puppet"; $("camera-hint").hidden = user !== "camera";
  $("who").textContent = { puppet: "steered by you", mirror: "moved by your camera", camera: "your face, as the model sees it", replay: "recorded" }[user];
  be(user);
}
$("replays").onchange = () => be("replay");
for (const radio of all("[name=user]")) radio.onchange = () => become(radio.value);
async function listen(button, kind, on, device) {
  try { await use(kind, on, device); button.setAttribute("aria-pressed", on); } catch (error) { say(`no microphone: ${error.message}`, true); }
  await listDevices();
}
async function listDevices() { // browsers tell names only after one microphone was allowed
  const found = (await navigator.mediaDevices?.enumerateDevices() ?? []).filter(({ kind, label, deviceId }) => kind === "audioinput" && label && deviceId !== "default");
  const chosen = $("devices").value;
  $("devices").replaceChildren($("devices").options[0], ...found.map(({ deviceId, label }) => new Option(label, deviceId)));
  $("devices").value = found.some(({ deviceId }) => deviceId === chosen) ? chosen : "";
}
const pressed = button => button.getAttribute("aria-pressed") === "true";
$("microphone").onclick = () => listen($("microphone"), "audio", !pressed($("microphone")));
$("dub").onclick = () => listen($("dub"), "dub", !pressed($("dub")), $("devices").value);
$("devices").onchange = () => { if (pressed($("dub"))) listen($("dub"), "dub", true, $("devices").value); };
listDevices();
$("say").onsubmit = event => { event.preventDefault(); send("say", { text: $("text").value }); $("text").value = ""; };
$("play").onclick = () => send("play");
$("interrupt").onclick = () => send("interrupt");
$("portrait").onchange = async () => {
  const file = $("portrait").files[0];
  if (!file) return;
  try {
    const { notes } = await fetched(`portrait?call=${encodeURIComponent(call)}`, { method: "POST", body: file });
    $("notes").textContent = notes.join("; "); $("notes").classList.remove("bad");
  } catch (error) { $("notes").textContent = error.message; $("notes").classList.add("bad"); }
};
const KEYS = { s: "smile", n: "nod", b: "blink", t: "talk", arrowleft: "tilt left", arrowright: "tilt right" };
addEventListener("keydown", event => {
  if (event.target.matches("input[type=text], input[type=range], input[type=radio], select") || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  if (KEYS[key]) { send("act", { what: KEYS[key] }); event.preventDefault(); }
  else if (key === "escape") send("interrupt");
  else if (key === "m") $("microphone").click();
});
begin();
