"use strict";
// Curves of user and avatar over the session's time, and the lag from a movement to its answer.

class Curves {
  static SECONDS = 10;
  static FPS = 25;
  // name: [least, most, threshold of a movement, whether the avatar's answer is looked for]
  static ROWS = { smile: [-0.2, 1.05, 0.4, true], tilt: [-0.35, 0.35, 0.11, true], nod: [-0.3, 0.35, 0, false], mouth: [-0.05, 1.05, 0, false] };
  static ANSWER = [3, 34]; // frames within which an answer comes
  static RISE = 12; // frames within which a movement is at its height
  static EVERY_MS = 80; // between two drawings: without a GPU 60 a second take a good part of a core

  constructor(canvas, onAnswer) {
    this.canvas = canvas; this.onAnswer = onAnswer;
    this.clear();
    let drawn = 0;
    const draw = now => {
      if (now - drawn >= Curves.EVERY_MS) { drawn = now; this.draw(); }
      requestAnimationFrame(draw);
    };
    requestAnimationFrame(draw);
  }

  clear() {
    this.values = { user: {}, avatar: {} };
    for (const side of ["user", "avatar"]) for (const name in Curves.ROWS) this.values[side][name] = [];
    this.first = 0; this.end = 0; this.arrived = 0; this.lags = [];
  }

  add(start, user, avatar) {
    if (start < this.end) this.clear(); // a new beginning
    const count = user.smile.length;
    if (!this.end) this.first = start;
    for (const name in Curves.ROWS) {
      const gap = Array(Math.max(0, start - Math.max(this.end, this.first))).fill(NaN);
      this.values.user[name].push(...gap, ...user[name]);
      this.values.avatar[name].push(...gap, ...avatar[name]);
    }
    this.end = start + count; this.arrived = performance.now();
    const surplus = this.end - this.first - (Curves.SECONDS + 3) * Curves.FPS;
    if (surplus > 0) {
      for (const side of ["user", "avatar"]) for (const name in Curves.ROWS) this.values[side][name].splice(0, surplus);
      this.first += surplus;
    }
    this.lags = this.findLags();
    const last = this.lags.at(-1);
    if (last) this.onAnswer(last);
  }

  // Movements away from the curve's median by `threshold` or more, each where it passes half of its own height: so a
  // weak answer is not found later, or a strong one earlier, than it comes.
  onsets(values, threshold) {
    const sorted = values.filter(Number.isFinite).sort((a, b) => a - b), middle = sorted[sorted.length >> 1] ?? 0;
    const sizes = values.map(value => Math.abs(value - middle)), found = [];
    let armed = true;
    sizes.forEach((size, i) => {
      if (size < threshold / 2) armed = true;
      else if (armed && size >= threshold) {
        armed = false;
        const half = Math.max(...sizes.slice(i, i + Curves.RISE)) / 2;
        let at = i;
        while (at > 0 && sizes[at - 1] >= half) at--;
        while (at < sizes.length - 1 && !(sizes[at] >= half)) at++;
        const before = sizes[at - 1] ?? half, part = sizes[at] > before ? (sizes[at] - half) / (sizes[at] - before) : 0;
        found.push({ at: at - Math.min(1, Math.max(0, part)), sign: Math.sign(values[i] - middle) });
      }
    });
    return found;
  }

  findLags() {
    const lags = [];
    for (const [name, [, , threshold, answered]] of Object.entries(Curves.ROWS)) {
      if (!answered) continue;
      const answers = this.onsets(this.values.avatar[name], threshold / 2);
      for (const cause of this.onsets(this.values.user[name], threshold)) {
        const answer = answers.find(a => a.sign === cause.sign && a.at >= cause.at + Curves.ANSWER[0] && a.at <= cause.at + Curves.ANSWER[1]);
        const over = this.values.user[name].length - cause.at > Curves.ANSWER[1] + Curves.RISE;
        if (answer) lags.push({ name, start: this.first + cause.at, stop: this.first + answer.at, lag: (answer.at - cause.at) / Curves.FPS });
        else if (over) lags.push({ name, start: this.first + cause.at, lag: null });
      }
    }
    return lags.sort((a, b) => a.start - b.start);
  }

  draw() {
    const { canvas } = this, ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement), colour = name => style.getPropertyValue(name).trim();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "12px system-ui, sans-serif"; context.textBaseline = "top";
    const names = Object.keys(Curves.ROWS), row = (height - 16) / names.length, left = 44;
    // smooth scrolling between two reports, at most a second
    const now = this.end + Math.min(1, (performance.now() - this.arrived) / 1000) * Curves.FPS;
    const x = frame => left + (width - left) * (1 - (now - frame) / (Curves.SECONDS * Curves.FPS));
    context.lineWidth = 1;
    for (let s = 0; s <= Curves.SECONDS; s += 2) {
      const place = left + (width - left) * (1 - s / Curves.SECONDS);
      context.strokeStyle = colour("--line"); context.beginPath(); context.moveTo(place, 0); context.lineTo(place, height - 14); context.stroke();
      context.fillStyle = colour("--soft"); context.textAlign = s ? "center" : "right"; context.fillText(s ? `−${s} s` : "now", place, height - 13);
    }
    context.textAlign = "left";
    names.forEach((name, i) => {
      const [least, most] = Curves.ROWS[name], top = i * row, y = value => top + row - 4 - (row - 10) * (Math.min(most, Math.max(least, value)) - least) / (most - least);
      context.fillStyle = colour("--soft"); context.fillText(name, 0, top + row / 2 - 6);
      context.strokeStyle = colour("--line"); context.beginPath(); context.moveTo(left, y(0)); context.lineTo(width, y(0)); context.stroke();
      context.save(); context.beginPath(); context.rect(left, top, width - left, row); context.clip();
      for (const side of ["user", "avatar"]) {
        context.strokeStyle = colour("--" + side); context.lineWidth = 1.8; context.beginPath();
        this.values[side][name].forEach((value, n) => {
          if (Number.isFinite(value)) context[n && Number.isFinite(this.values[side][name][n - 1]) ? "lineTo" : "moveTo"](x(this.first + n), y(value));
        });
        context.stroke();
      }
      context.lineWidth = 1;
      let written = left; // to where: a time that would overlap the one before it is left out
      for (const lag of this.lags.filter(found => found.name === name)) {
        context.strokeStyle = context.fillStyle = colour("--ink");
        const from = x(lag.start), to = lag.lag === null ? from : x(lag.stop), mark = top + 8;
        context.beginPath(); context.moveTo(from, mark + 4); context.lineTo(from, mark); context.lineTo(to, mark); context.lineTo(to, mark + 4); context.stroke();
        const text = lag.lag === null ? "no answer" : `${lag.lag.toFixed(2)} s`, wide = context.measureText(text).width;
        const right = Math.max(from, to) + 4, place = right + wide < width ? right : Math.min(from, to) - 4 - wide;
        if (place > written) { context.fillText(text, place, top + 2); written = place + wide; }
      }
      context.restore();
    });
  }
}
