// Ended calls: the list with its small waterfalls, failures, stalls, and the comparison of models.
import { $, clean, clock, el, name, number, rate, reachable, say, seconds, walkable } from "./dom.js";

/** Phases in the order in which they pass: key, words. */
export const PHASES = [
  ["connect", "Connect"], ["tls", "TLS handshake"], ["upload", "Upload"], ["first_byte_wait", "Wait for the head"],
  ["first_token_wait", "Head to first token"], ["decode", "Decode"], ["stalls", "Stalls"], ["rest", "Rest"],
];
/** Why something came late, by what the socket showed; nothing is said where it was not watched. */
const CAUSES = {
  late_arrival: ["late arrival", "Nothing was in the socket for most of that time: the server or the network."],
  late_read: ["late read", "Data lay in the socket unread for most of that time: the process itself."],
};
/** As many as the observer keeps. */
const KEPT = 500;
const PAGE = 50, SHORT = 6;

let calls = [];
let shown = PAGE;
let open = () => {};

export const known = () => calls;

const OUTCOMES = { completed: "completed", error: "failed", server_abort: "aborted by the server", client_abort: "given up", incomplete: "not seen whole" };

export function outcome(call) {
  const level = { completed: "good", error: "bad", server_abort: "bad", client_abort: "warn", incomplete: "dim" }[call.outcome] ?? "dim";
  const words = call.error_type ? clean(call.error_type) : OUTCOMES[call.outcome] ?? clean(call.outcome);
  const slow = call.slow?.length ? el("span", { class: "tag warn", title: `slow: ${call.slow.join(", ").replace("_", " ")}` }, "slow") : null;
  return el("span", { class: "outcome" }, el("span", { class: `mark ${level}`, "aria-hidden": "true" }), el("bdi", { title: OUTCOMES[call.outcome] ?? "" }, words), slow);
}

/** A cause in words and its explanation; `null` where it is unknown. */
export const causeWords = (cause) => CAUSES[cause] ?? null;

/** The causes of these stalls in words, the more frequent first, with their numbers where there are several. */
export function causesOf(causes) {
  const counted = Object.entries(CAUSES).map(([key, [words]]) => [words, (causes ?? []).filter((cause) => cause === key).length]);
  const unknown = (causes ?? []).length - counted.reduce((sum, [, n]) => sum + n, 0);
  const some = counted.filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]);
  if (some.length === 0) return null;
  if (some.length === 1 && unknown === 0) return some[0][0];
  return some.concat(unknown ? [["cause unknown", unknown]] : []).map(([words, n]) => `${n} ${words}`).join(", ");
}

/** The phases of a call as one bar. */
function fall(call) {
  const parts = PHASES.map(([key, words]) => [key, words, call.phases?.[key]]).filter(([, , s]) => s > 0);
  const sum = parts.reduce((all, [, , s]) => all + s, 0);
  const bar = el("span", { class: "fall", role: "img", "aria-label": parts.map(([, words, s]) => `${words} ${seconds(s)}`).join(", ") || "no times are known" });
  for (const [key, words, s] of parts) {
    const part = el("span", { class: `ph ph-${key}`, title: `${words}: ${seconds(s)}` });
    part.style.flexGrow = String(s / sum);
    bar.append(part);
  }
  return bar;
}

function row(call) {
  const cell = (kind, ...children) => el("td", { class: kind }, ...children);
  const tr = el("tr", { tabindex: "-1", "data-seq": call.seq, "aria-label": `Call ${call.seq}, ${clean(call.model ?? "unknown model")}, ${call.outcome}` },
    cell("time", clock(call.end_unix_ms)), cell("model", name(call.model)), cell("low", name(call.service)), cell("", outcome(call)),
    cell("fall-col mid", fall(call)), cell("num mid", seconds(call.ttft_s)), cell("num", seconds(call.duration_s)),
    cell("num low", rate(call.decode_tokens_per_s)), cell("num low", number(call.tokens?.output)));
  tr.addEventListener("click", () => open(call.seq));
  return tr;
}

function item(call, ...what) {
  const button = el("button", { type: "button" }, el("span", { class: "time" }, clock(call.end_unix_ms)), name(call.model), el("span", { class: "what" }, ...what));
  button.addEventListener("click", () => open(call.seq));
  return el("li", {}, button);
}

const failed = (call) => call.outcome === "error" || call.outcome === "server_abort";
const stalled = (call) => call.stalled_before_first_token || call.stalls?.length > 0;

const why = (words) => (words ? ` (${words})` : "");

function stallWords(call) {
  const longest = Math.max(0, ...(call.stalls ?? []).map(([from, to]) => to - from));
  const inside = call.stalls?.length ? `${call.stalls.length} in the stream, longest ${seconds(longest)}${why(causesOf(call.stall_causes))}` : null;
  const before = call.stalled_before_first_token ? `${seconds(call.ttft_s ?? call.duration_s)} before the first token${why(causeWords(call.first_token_cause)?.[0])}` : null;
  return [before, inside].filter(Boolean).join("; ");
}

/** Takes the calls of an event; the newest come first. */
export function addCalls(frame) {
  if (frame.whole) calls = [];
  if (frame.exchanges.length === 0 && !frame.whole) return;
  const newest = calls[0]?.seq ?? 0;
  calls = frame.exchanges.filter((call) => call.seq > newest).concat(calls).slice(0, KEPT);
  renderCalls();
}

function renderCalls() {
  const words = clean($("filter").value).toLowerCase().split(/\s+/).filter(Boolean);
  const text = (call) => [call.model, call.service, call.error_type, call.host, call.provider, call.outcome, call.path, call.endpoint, call.pid, ...(call.slow ?? [])].join(" ").toLowerCase();
  const found = words.length ? calls.filter((call) => words.every((word) => text(call).includes(word))) : calls;
  const body = $("calls").tBodies[0];
  const focused = document.activeElement?.closest?.("#calls tbody tr")?.dataset.seq;
  const have = new Map([...body.children].map((tr) => [Number(tr.dataset.seq), tr]));
  const rows = found.slice(0, shown).map((call) => have.get(call.seq) ?? row(call));
  body.replaceChildren(...rows);
  if (focused) body.querySelector(`tr[data-seq="${focused}"]`)?.focus({ preventScroll: true });
  reachable(body);
  $("calls").hidden = rows.length === 0;
  $("calls-none").hidden = rows.length !== 0;
  say($("calls-none"), calls.length === 0 ? "No call has ended yet." : "No call fits the filter.");
  $("more").hidden = found.length <= shown && !(calls.length >= 200 && calls.length < KEPT && calls.at(-1).seq > 1);
  const bad = calls.filter(failed), slow = calls.filter(stalled);
  fill("errors", bad.map((call) => [call, outcome(call)]), "No call failed.");
  fill("stalls", slow.map((call) => [call, stallWords(call)]), "No stream stalled.");
  say($("errors-count"), bad.length ? String(bad.length) : "");
  say($("stalls-count"), slow.length ? String(slow.length) : "");
}

function fill(id, entries, none) {
  const items = entries.slice(0, SHORT).map(([call, what]) => item(call, what));
  $(id).replaceChildren(...(items.length ? items : [el("li", { class: "none" }, none)]));
}

/** Takes the figures of an event. */
export function showModels(recent) {
  if (!recent) return;
  const rows = recent.models.map((model) => {
    const cell = (kind, ...children) => el("td", { class: kind }, ...children);
    const some = (n) => el("span", { class: n ? "hot" : "muted" }, number(n));
    return el("tr", {}, cell("model", name(model.model)), cell("mid", name(model.provider)), cell("num", number(model.calls)),
      cell("num mid", some(model.failed)), cell("num low", some(model.stalled)), cell("num", seconds(model.ttft_p50_s)),
      cell("num mid", seconds(model.ttft_p95_s)), cell("num", rate(model.decode_p50_tokens_per_s)), cell("num low", seconds(model.duration_p50_s)),
      cell("num low", number(model.input_tokens)), cell("num low", number(model.output_tokens)));
  });
  $("models").tBodies[0].replaceChildren(...rows);
  $("models").hidden = rows.length === 0;
  $("models-none").hidden = rows.length !== 0;
  const more = recent.more_models ? `, ${number(recent.more_models)} models more` : "";
  say($("models-note"), rows.length ? `medians over the last ${number(recent.kept)} calls${more}` : "");
  say($("calls-count"), recent.ended ? number(recent.ended) : "");
}

async function more() {
  shown += PAGE;
  if (calls.length < shown && calls.length < KEPT && calls.length > 0) {
    const answer = await fetch(`/api/exchanges?before=${calls.at(-1).seq}`).catch(() => null);
    if (answer?.ok) calls = calls.concat((await answer.json()).exchanges).slice(0, KEPT);
  }
  renderCalls();
}

export function startCalls(show) {
  open = show;
  walkable($("calls").tBodies[0], (tr) => show(Number(tr.dataset.seq)));
  $("filter").addEventListener("input", renderCalls);
  $("more").addEventListener("click", more);
  for (const [key, words] of PHASES) $("legend").append(el("li", {}, el("span", { class: `ph ph-${key}` }), words));
}
