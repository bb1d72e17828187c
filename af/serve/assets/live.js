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
  peer = new RTCPeerConnection({ iceServers: about.ice });
  const voice = peer.addTransceiver("audio", { direction: "sendrecv" });
  const face = peer.addTransceiver("video", { direction: "sendrecv" });
  const seen = peer.addTransceiver("video", { direction: "recvonly" });
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
  if (user !== "puppet") send("user", { user });
  for (const slider of all("[data-steer]")) if (+slider.value) send("steer", { [slider.dataset.steer]: +slider.value });
  if (media.audio) peer.getTransceivers()[0].sender.replaceTrack(media.audio);
  if (media.video) peer.getTransceivers()[1].sender.replaceTrack(media.video);
}

function receive(message) {
  latest = { ...latest, ...message };
  if (message.error) say(message.error, true);
  if (message.is === "puppet") become("puppet");
  if (message.closed) ended(message.closed);
  if (message.settings) show(message.settings);
  if (message.user) { curves.add(message.start, message.user, message.avatar); report(message); }
}

function show({ signals, steps, audio, user, barge_in }) {
  for (const box of all("[data-signal]")) box.checked = signals[box.dataset.signal];
  $("barge").checked = barge_in;
  for (const slider of all("[data-change]")) {
    const value = { steps, audio, user }[slider.dataset.change];
    slider.disabled = value === null;
    if (value !== null) slider.value = value;
    slider.parentElement.querySelector("output").textContent = value ?? "off";
  }
}

const PARTS = { waiting: "waiting for the block to be complete", features: "speech features", motion: "motion", decoding: "images", queue: "waiting to be shown", network: "network and player" };
function report({ budget, faults, waiting_frames, face_lost, seconds }) {
  const times = { ...budget, queue: 40 * Math.max(0, waiting_frames - about.block_frames), network };
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
  $("load").textContent = `${Math.round(100 * budget.load)} %`;
  $("load").classList.toggle("bad", budget.load > 1);
  const found = Object.entries(faults);
  $("faults").textContent = found.map(([name, count]) => `${name.replaceAll("_", " ")}: ${count}`).join(", ") || "none";
  if (!closed) say(face_lost ? "your face is lost: the last motion is held" : `connected for ${Math.floor(seconds)} s`, face_lost);
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

// Camera and microphone, kept for the page's life.
const media = { audio: null, video: null };
async function use(kind, on) {
  const sender = peer.getTransceivers()[kind === "audio" ? 0 : 1].sender;
  if (!on) { media[kind]?.stop(); media[kind] = null; await sender.replaceTrack(null); return; }
  if (!navigator.mediaDevices) throw new Error("browsers give camera and microphone to HTTPS pages only (--tls-certificate)");
  const wanted = kind === "audio" ? { audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true } } : { video: { width: 640, height: 480, frameRate: 30, facingMode: "user" } };
  media[kind]?.stop();
  media[kind] = (await navigator.mediaDevices.getUserMedia(wanted)).getTracks()[0];
  await sender.replaceTrack(media[kind]);
}

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
$("barge").onchange = () => send("change", { barge_in: $("barge").checked });
async function become(user) {
  const camera = user !== "puppet";
  try { await use("video", camera); } catch (error) { say(`no camera: ${error.message}`, true); user = "puppet"; }
  document.querySelector(`[value=${user}]`).checked = true;
  $("puppet").hidden = user === "camera"; $("camera-hint").hidden = user !== "camera";
  $("who").textContent = { puppet: "drawn, steered by you", mirror: "drawn, moved by your camera", camera: "your face, as the model sees it" }[user];
  send("user", { user });
}
for (const radio of all("[name=user]")) radio.onchange = () => become(radio.value);
$("microphone").onclick = async () => {
  const on = $("microphone").getAttribute("aria-pressed") !== "true";
  try { await use("audio", on); $("microphone").setAttribute("aria-pressed", on); } catch (error) { say(`no microphone: ${error.message}`, true); }
};
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
  if (event.target.matches("input[type=text], input[type=range], input[type=radio]") || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  if (KEYS[key]) { send("act", { what: KEYS[key] }); event.preventDefault(); }
  else if (key === "escape") send("interrupt");
  else if (key === "m") $("microphone").click();
});
begin();
