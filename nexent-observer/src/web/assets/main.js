// The page: follows /api/live and hands each event to the parts.
import { $, clean, el, name, number, rate, say, seconds } from "./dom.js";
import { rateChart, recolour, showSpan, ttftChart } from "./charts.js";
import { addCalls, known, showModels, startCalls } from "./calls.js";
import { recolourStreams, showStreams, startStreams } from "./streams.js";
import { showCall, startDetail } from "./detail.js";

/** What the charts show, in s. */
const SHOWN = 900;

const page = { source: null, seconds: [], charts: null, recent: null, health: null, lostAt: null, lost: 0, silence: null };

const STATES = {
  ready: ["good", "attached, losing nothing"],
  not_attached: ["warn", "nothing attached"],
  losing: ["bad", "losing events"],
  stuck: ["bad", "stuck"],
};

function tile(id, title, value, note, level = "") {
  let box = $(id);
  if (!box) {
    box = el("div", { id, class: "tile" }, el("dt", {}, title), el("dd", { class: "value" }), el("dd", { class: "note muted" }));
    $("tiles").append(box);
  }
  box.dataset.level = level;
  say(box.children[1], value);
  say(box.children[2], note);
}

function tiles(frame) {
  const { recent } = page;
  const last = page.seconds.slice(-5);
  const now = last.length ? last.reduce((sum, second) => sum + second[1], 0) / last.length : null;
  const all = recent?.all;
  const calls = page.seconds.reduce((sum, second) => sum + second[3], 0);
  const failed = page.seconds.reduce((sum, second) => sum + second[4], 0);
  const stalled = page.seconds.reduce((sum, second) => sum + second[5], 0);
  tile("tile-rate", "Output rate", now === null ? "\u2013" : rate(now), "chunks/s, last 5 s");
  tile("tile-ttft", "First token", seconds(all?.ttft_p50_s), `median; p95 ${seconds(all?.ttft_p95_s)}`);
  tile("tile-decode", "Decode rate", rate(all?.decode_p50_tokens_per_s), "tokens/s, median");
  const silent = frame.streams.filter((stream) => stream.silent_s >= 2).length;
  tile("tile-open", "Open streams", number(frame.streams_total), silent ? `${number(silent)} silent for 2 s or more` : "none silent", silent ? "warn" : "");
  tile("tile-calls", "Calls, 15 min", number(calls), `${number(frame.health.llm_exchanges)} since the start`);
  tile("tile-failed", "Failed, 15 min", number(failed), calls ? `${number((failed / calls) * 100, 1)} %` : "\u2013", failed ? "bad" : "");
  tile("tile-stalled", "Stalled, 15 min", number(stalled), calls ? `${number((stalled / calls) * 100, 1)} %` : "\u2013", stalled ? "warn" : "");
}

function problem(level, title, ...what) {
  return el("p", { class: `problem ${level}` }, el("strong", {}, title), " ", ...what);
}

function problems() {
  const found = [];
  const { health } = page;
  if (page.lostAt !== null) {
    found.push(problem("bad", "The observer does not answer.", "What stands here is from ", new Date(page.lostAt).toLocaleTimeString("en-GB"), ". The page tries again by itself."));
  }
  if (health?.state === "stuck") found.push(problem("bad", "The observer's loop has not moved for 10 s.", "See its log; /healthz says how long."));
  if (health?.state === "losing") {
    found.push(problem("bad", "Events are being lost.", `${number(health.lost_records)} records and ${number(health.lost_bytes)} bytes since the start. Calls that are hit are marked incomplete and kept out of all figures. Raise read_ring_bytes and write_ring_bytes, or give the observer more CPU.`));
  }
  if (health?.state === "not_attached") {
    found.push(problem("warn", "No process is attached.", "Name one: nexent-observer run --pid PID, or --exe PATH for all processes of an executable, also future ones."));
  }
  if (health?.export_dropped > 0) {
    found.push(problem("warn", "Exporters gave up items.", `${number(health.export_dropped)} since the start: look for the receiver in the observer's log.`));
  }
  const text = found.map((one) => one.textContent).join("\n");
  if (text !== $("problems").dataset.text) {
    $("problems").dataset.text = text;
    $("problems").replaceChildren(...found);
  }
}

function empty(frame) {
  const nothing = frame.health.llm_exchanges === 0 && frame.streams_total === 0;
  $("empty").hidden = !nothing;
  if (!nothing) return;
  const { processes_total: total, health } = frame;
  const names = frame.processes.slice(0, 12).flatMap((process) => [name(process.service), el("span", { class: "muted" }, ` ${process.pid}  `)]);
  const signature = JSON.stringify([total, health.http_exchanges > 0, health.records > 0, frame.processes.map((process) => process.pid)]);
  if ($("empty").dataset.signature === signature) return;
  $("empty").dataset.signature = signature;
  const many = total === 1 ? "1 process is" : `${number(total)} processes are`;
  const steps = [];
  if (total === 0) {
    steps.push("Start the observer with --pid PID or --exe PATH. It attaches while the process runs; nothing is restarted.");
  } else if (health.http_exchanges > 0) {
    steps.push("HTTP is seen, but none of it was an LLM call yet. Make one; which APIs are known stands in docs/apis.md.");
  } else if (health.records > 0) {
    steps.push("Bytes are seen, but no HTTP in them yet.", "Connections that were open before the observer are understood from their next request on.");
  } else {
    steps.push("Make an LLM call in one of these processes: it appears here with its first byte.",
      "Is it another process that calls? Name that one, or its executable with --exe.",
      "The observer's log says for each process which TLS library is hooked, or why none is.");
  }
  $("empty").replaceChildren(el("h2", {}, "No LLM call seen yet"), el("p", {}, `${many} observed. `, ...names), el("ul", {}, ...steps.map((step) => el("li", {}, step))));
}

function draw() {
  const until = page.seconds.at(-1)?.[0];
  if (until === undefined) return;
  const times = [], values = [];
  let last = null;
  for (const [at, chunks] of page.seconds) {
    if (last !== null && at - last > 3) { times.push(last + 1); values.push(null); }
    times.push(at);
    values.push(chunks);
    last = at;
  }
  showSpan(times[0], until);
  page.charts.rate.show([times, values]);
  const calls = known().filter((call) => call.ttft_s > 0 && call.end_unix_ms / 1000 > Math.max(until - SHOWN, times[0] - 1) && call.outcome !== "incomplete").sort((a, b) => a.end_unix_ms - b.end_unix_ms);
  const slow = (call) => call.stalled_before_first_token || call.outcome !== "completed";
  page.charts.ttft.show([calls.map((call) => call.end_unix_ms / 1000), calls.map((call) => (slow(call) ? null : call.ttft_s)), calls.map((call) => (slow(call) ? call.ttft_s : null))]);
}

function take(frame) {
  page.health = frame.health;
  page.lostAt = null;
  if (frame.whole) page.seconds = [];
  const newest = page.seconds.at(-1)?.[0] ?? 0;
  const fresh = frame.seconds.filter((second) => second[0] > newest);
  page.seconds = page.seconds.concat(fresh).slice(-SHOWN);
  page.recent = frame.recent ?? page.recent;
  const [level, words] = STATES[frame.health.state] ?? ["warn", clean(frame.health.state)];
  $("state").dataset.level = level;
  say($("state").querySelector(".words"), words);
  say($("watched"), `${number(frame.health.processes)} ${frame.health.processes === 1 ? "process" : "processes"}, ${number(frame.health.probes)} probes, up ${seconds(Math.max(1, Math.round(frame.health.uptime_s)))}`);
  say($("version"), `nexent-observer ${frame.observer}`);
  showStreams(frame);
  addCalls(frame);
  showModels(frame.recent);
  tiles(frame);
  problems();
  empty(frame);
  if (fresh.length || frame.exchanges.length) draw();
}

function gone() {
  page.lostAt ??= Date.now();
  $("state").dataset.level = "bad";
  say($("state").querySelector(".words"), "no answer");
  problems();
}

function follow() {
  page.source?.close();
  const source = new EventSource("/api/live");
  page.source = source;
  const heard = (event) => {
    clearTimeout(page.silence);
    page.silence = setTimeout(gone, 8000);
    take(JSON.parse(event.data));
  };
  source.addEventListener("whole", heard);
  source.addEventListener("more", heard);
  source.addEventListener("error", async () => {
    gone();
    if (source.readyState !== EventSource.CLOSED || page.source !== source) return;
    // The browser gave up: the session is over, or too many follow.
    const answer = await fetch("/api/snapshot").catch(() => null);
    if (answer?.status === 401) location.assign("/login");
    else setTimeout(() => { if (page.source === source) follow(); }, 3000);
  });
}

function pause() {
  const paused = document.body.dataset.paused !== "true";
  document.body.dataset.paused = String(paused);
  $("pause").setAttribute("aria-pressed", String(paused));
  say($("pause"), paused ? "Go on" : "Pause");
  if (paused) {
    clearTimeout(page.silence);
    page.source?.close();
    page.source = null;
    $("state").dataset.level = "warn";
    say($("state").querySelector(".words"), "paused");
  } else {
    follow();
  }
}

function themed() {
  recolour();
  recolourStreams();
}

function theme() {
  const chosen = window.nextTheme();
  say($("theme"), { system: "Theme", dark: "Dark", light: "Light" }[chosen]);
  themed();
}

function keys(event) {
  const typing = event.target.closest?.("input, textarea, select") || $("detail").open;
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = { "/": () => $("filter").focus(), p: pause, t: theme }[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
}

page.charts = { rate: rateChart($("rate"), $("rate-note")), ttft: ttftChart($("ttft"), $("ttft-note")) };
startStreams();
startCalls(showCall);
$("pause").addEventListener("click", pause);
$("theme").addEventListener("click", theme);
say($("theme"), { system: "Theme", dark: "Dark", light: "Light" }[document.documentElement.dataset.theme]);
$("filter").addEventListener("keydown", (event) => { if (event.key === "Escape") event.target.blur(); });
document.addEventListener("keydown", keys);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themed);
follow();
startDetail();
