// The open streams: one row each, with its ticks and the time since the last one.
import { $, clean, colour, el, name, number, rate, reachable, say, seconds, walkable } from "./dom.js";

/** What a strip shows, in ms. */
const WINDOW = 30_000;
/** A silence that is long, and one that is a stall by the definition (2 s or more). */
const LONG = 1, STALL = 2;
/** An ended stream stays so long, in ms. */
const FAREWELL = 2500;

const rows = new Map();
let order = { key: "start", down: false };
let colours = null;

const value = {
  start: (row) => row.no,
  model: (row) => row.stream.model ?? "",
  service: (row) => row.stream.service,
  silent: (row) => row.silent() ?? -1,
  ttft: (row) => row.stream.ttft_s ?? -1,
  chunks: (row) => row.stream.chunks,
  rate: (row) => row.stream.tokens_per_s ?? -1,
  age: (row) => row.stream.elapsed_s ?? -1,
};

class Row {
  static last = 0;

  constructor(stream) {
    this.no = Row.last++;
    this.ticks = [];
    this.canvas = el("canvas", { class: "strip", role: "img" });
    const cell = (kind, ...children) => el("td", { class: kind }, ...children);
    this.cells = {
      silent: cell("num silent"), ttft: cell("num mid"), chunks: cell("num low"), rate: cell("num low"), age: cell("num mid"),
    };
    const { silent, ttft, chunks, rate: speed, age } = this.cells;
    this.element = el("tr", { tabindex: "-1" }, cell("model", name(stream.model)),
      cell("mid", name(stream.service), el("span", { class: "muted pid" }, ` ${stream.pid}`)),
      cell("strip-col", this.canvas), silent, ttft, chunks, speed, age);
    this.update(stream, 0, true);
  }

  update(stream, unixMs, whole) {
    this.stream = stream;
    this.seen = performance.now();
    this.ended = null;
    // Ages become times on the clock of this page, which nobody sets.
    const fresh = stream.ticks_ms_ago.map((age) => this.seen - age);
    this.ticks = (whole ? fresh : this.ticks.concat(fresh)).filter((at) => at > this.seen - WINDOW);
    say(this.cells.ttft, seconds(stream.ttft_s));
    say(this.cells.chunks, number(stream.chunks));
    say(this.cells.rate, rate(stream.tokens_per_s));
    say(this.cells.age, seconds(stream.elapsed_s));
    this.canvas.setAttribute("aria-label", `${this.ticks.length} reads with output in the last 30 s`);
    this.element.setAttribute("aria-label", `${clean(stream.model ?? "unknown model")}, ${number(stream.chunks)} chunks`);
  }

  silent(now = performance.now()) {
    const { silent_s } = this.stream;
    return silent_s === null ? null : silent_s + (this.ended ? 0 : (now - this.seen) / 1000);
  }

  draw(now) {
    const silent = this.silent(now);
    const level = this.ended ? "ended" : silent >= STALL ? "stalled" : silent >= LONG ? "long" : "flowing";
    say(this.cells.silent, this.ended ? "ended" : silent === null ? "\u2013" : `${silent.toFixed(1)} s`);
    if (this.element.dataset.level !== level) this.element.dataset.level = level;
    const { canvas } = this, ratio = devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (width === 0) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    const x = (at) => width - ((now - at) / WINDOW) * width;
    const last = this.ticks.at(-1);
    if (!this.ended && silent >= LONG) {
      pen.fillStyle = silent >= STALL ? colours.stall : colours.long;
      const from = last === undefined ? Math.max(0, width - (silent * 1000 / WINDOW) * width) : Math.max(0, x(last));
      pen.fillRect(from, 0, width - from, height);
    }
    pen.fillStyle = colours.tick;
    pen.globalAlpha = 0.8;
    const thick = Math.max(1, Math.round(ratio));
    for (const at of this.ticks) {
      if (now - at <= WINDOW) pen.fillRect(Math.round(x(at)) - thick, height * 0.12, thick, height * 0.76);
    }
    pen.globalAlpha = 1;
  }
}

/** Takes the streams of an event. */
export function showStreams(frame) {
  const body = $("streams").tBodies[0];
  const open = new Set();
  for (const stream of frame.streams) {
    open.add(stream.id);
    const row = rows.get(stream.id);
    if (row) row.update(stream, frame.unix_ms, frame.whole);
    else rows.set(stream.id, new Row(stream));
  }
  const now = performance.now();
  for (const [id, row] of rows) {
    if (open.has(id)) continue;
    row.ended ??= now;
    if (now - row.ended > FAREWELL) {
      if (row.element.contains(document.activeElement)) (row.element.nextElementSibling ?? row.element.previousElementSibling)?.focus();
      row.element.remove();
      rows.delete(id);
    }
  }
  arrange(body);
  say($("streams-count"), String(frame.streams_total));
  const rest = frame.streams_total - frame.streams.length;
  $("streams").hidden = rows.size === 0;
  $("streams-none").hidden = rows.size !== 0 && rest <= 0;
  say($("streams-none"), rest > 0 ? `${number(rest)} more streams are open; shown are those that have been silent longest.` : "No stream is open now.");
}

/** Puts the rows in order, moving only those that are out of place. */
function arrange(body) {
  const of = value[order.key], sign = order.down ? -1 : 1;
  const sorted = [...rows.values()].sort((a, b) => {
    const [x, y] = [of(a), of(b)];
    return (x < y ? -1 : x > y ? 1 : a.no - b.no) * sign;
  });
  sorted.forEach((row, i) => {
    if (body.children[i] !== row.element) body.insertBefore(row.element, body.children[i] ?? null);
  });
  reachable(body);
}

/** The colours changed. */
export function recolourStreams() {
  const soft = (of, share) => of.replace("rgb(", "rgba(").replace(")", `, ${share})`);
  colours = { tick: colour("--accent"), long: soft(colour("--warn"), 0.14), stall: soft(colour("--bad"), 0.2) };
}

export function startStreams() {
  recolourStreams();
  const body = $("streams").tBodies[0];
  walkable(body);
  for (const head of $("streams").tHead.querySelectorAll("th[data-key]")) {
    head.firstElementChild.addEventListener("click", () => {
      const { key } = head.dataset;
      if (order.key === key && order.down) order = { key: "start", down: false };
      else order = { key, down: order.key === key };
      for (const other of $("streams").tHead.querySelectorAll("th[data-key]")) {
        if (other.dataset.key === order.key) other.setAttribute("aria-sort", order.down ? "descending" : "ascending");
        else other.removeAttribute("aria-sort");
      }
      arrange(body);
    });
  }
  // Ten times a second is what an eye follows; less for those who want little motion.
  const every = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 100;
  setInterval(() => {
    if (document.hidden || document.body.dataset.paused === "true") return;
    const now = performance.now();
    for (const row of rows.values()) row.draw(now);
  }, every);
}
