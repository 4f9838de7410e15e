// One call: its waterfall, its token timeline, and what is known of it.
import { $, clean, clock, el, name, number, rate, seconds, UNKNOWN } from "./dom.js";
import { gapsChart, growthChart } from "./charts.js";
import { causesOf, causeWords, known, outcome, PHASES } from "./calls.js";

let charts = [];
let showing = null;
let before = null;

/** From and to of each phase in seconds since the request start; `null` where it was not seen. */
function spans(call) {
  const { connect, tls } = call.phases ?? {};
  const m = call.marks ?? {};
  const span = (from, to) => (from === null || from === undefined || to === null || to === undefined || to < from ? [] : [[from, to]]);
  const start = call.origin === "request_start" ? 0 : null;
  const hello = tls ?? 0;
  // The stalls stand out of the decode, as they are taken out of its figure.
  let decode = span(m.first_token_s, m.last_token_s);
  for (const [from, to] of call.stalls ?? []) {
    decode = decode.flatMap(([a, b]) => [[a, Math.min(b, from)], [Math.max(a, to), b]].filter(([x, y]) => y > x));
  }
  return {
    connect: connect === null || connect === undefined ? [] : [[-hello - connect, -hello]],
    tls: tls === null || tls === undefined ? [] : [[-tls, 0]],
    upload: span(start, m.request_sent_s),
    first_byte_wait: span(m.request_sent_s, m.first_byte_s),
    first_token_wait: span(m.first_byte_s, m.first_token_s),
    decode,
    stalls: call.stalls ?? [],
    rest: call.stream ? span(m.last_token_s, m.end_s) : span(m.first_byte_s, m.end_s),
  };
}

/** Causes of what is shown as a phase, bar by bar. The wait for the first token is told at its longer part. */
function causes(call) {
  const { first_byte_wait: head = 0, first_token_wait: token = 0 } = call.phases ?? {};
  const wait = (token ?? 0) > (head ?? 0) ? "first_token_wait" : "first_byte_wait";
  return { stalls: call.stall_causes ?? [], [wait]: [call.first_token_cause] };
}

function waterfall(call) {
  const all = spans(call);
  const late = causes(call);
  const ends = Object.values(all).flat(2);
  const list = el("dl", { class: "waterfall" });
  const low = Math.min(0, ...ends), high = Math.max(...ends, low + 1e-6);
  const share = (s) => `${((s / (high - low)) * 100).toFixed(3)}%`;
  for (const [key, words] of PHASES) {
    const track = el("span", { class: "track", "aria-hidden": "true" });
    for (const [i, [from, to]] of all[key].entries()) {
      const cause = late[key]?.[i];
      const said = causeWords(cause);
      const bar = el("span", { class: `ph ph-${key}${said ? ` cause-${cause}` : ""}`, title: `${words}: ${seconds(from)} to ${seconds(to)}${said ? `, ${said[0]}. ${said[1]}` : ""}` });
      bar.style.left = share(from - low);
      bar.style.width = share(to - from);
      track.append(bar);
    }
    const length = call.phases?.[key];
    const none = key === "stalls" ? "none" : call.stream === false && (key === "first_token_wait" || key === "decode") ? "no stream" : "not seen";
    const largest = call.phases?.largest === key ? " largest" : "";
    const why = all[key].length ? causesOf(late[key]) : null;
    const line = why ? el("span", { class: "why", title: late[key].map((cause) => causeWords(cause)?.[1]).filter((text, i, texts) => text && texts.indexOf(text) === i).join(" ") }, why) : null;
    list.append(el("div", { class: `phase${largest}`, "data-phase": key }, el("dt", {}, words), el("dd", { class: "bar" }, track, line),
      el("dd", { class: "num" }, length === null || length === undefined ? el("span", { class: "muted" }, none) : seconds(length))));
  }
  return list;
}

function facts(call) {
  const list = el("dl", { class: "facts" });
  const add = (term, ...what) => list.append(el("div", {}, el("dt", {}, term), el("dd", {}, ...what)));
  const text = (term, value) => { if (value !== null && value !== undefined && value !== "") add(term, name(value)); };
  add("Outcome", outcome(call));
  add("Duration", seconds(call.duration_s));
  add("Time to first token", seconds(call.ttft_s));
  add("Decode rate", call.decode_tokens_per_s === null ? UNKNOWN : `${rate(call.decode_tokens_per_s)} tokens/s`);
  add("End to end", call.end_to_end_tokens_per_s === null ? UNKNOWN : `${rate(call.end_to_end_tokens_per_s)} tokens/s`);
  const { input, output, cached_input: cached, reasoning, source } = call.tokens ?? {};
  add("Tokens", `${number(input)} in${cached ? ` (${number(cached)} cached)` : ""}, ${number(output)} out${reasoning ? ` (${number(reasoning)} reasoning)` : ""}`,
    source ? el("span", { class: "muted" }, source === "usage" ? " by the provider" : ` by ${source}`) : null);
  add("Output chunks", number(call.chunks));
  text("Finish reason", call.finish_reasons?.join(", "));
  text("Error", call.error_type);
  text("HTTP status", call.http_status);
  text("Retry", call.retry_count ? `attempt ${call.retry_count + 1}` : null);
  if (call.late_reads) add("Late reads", `${number(call.late_reads)}, longest ${seconds(call.read_delay_max_s)}`);
  text("Retransmits", call.retransmits ? number(call.retransmits) : null);
  if (call.slow?.length) add("Slow", call.slow.join(", ").replace("_", " "));
  if (call.bytes_lost !== 0) add("Bytes lost", call.bytes_lost === null ? "some, not known how many" : number(call.bytes_lost));
  text("Model that answered", call.response_model === call.model ? null : call.response_model);
  text("Provider", call.provider);
  text("Operation", call.operation);
  add("Service", name(call.service), el("span", { class: "muted" }, ` pid ${call.pid}${call.role === "server" ? ", serves the call" : ""}`));
  text("Endpoint", call.endpoint);
  text("Host", call.host);
  text("Path", call.path);
  text("Peer", call.peer);
  add("Ended", clock(call.end_unix_ms));
  text("Trace", call.trace_id);
  return list;
}

/** Reads and the number of chunks after each, from the chunks of a timeline. */
function reads(timeline) {
  const times = [], counts = [];
  timeline.forEach(([at, , coalesced], i) => {
    if (coalesced && times.length) counts[counts.length - 1] = i + 1;
    else { times.push(at); counts.push(i + 1); }
  });
  return [times, counts];
}

function timeline(call, chunks) {
  const box = el("div", { class: "timeline" });
  if (chunks.length < 2) {
    box.append(el("p", { class: "none" }, call.stream ? "Fewer than two output chunks: no timeline." : "The answer was no stream: it has no timeline."));
    return box;
  }
  const [times, counts] = reads(chunks);
  const part = (title, note, make, data) => {
    const words = el("p", { class: "muted" }, note);
    const chart = el("div", { class: "chart low", role: "img", "aria-label": title });
    box.append(el("div", {}, el("div", { class: "head" }, el("h3", {}, title), words), chart));
    return () => { const drawn = make(chart, words); drawn.show(data); charts.push(drawn); };
  };
  const from = call.origin === "request_start" ? "the request" : "the first chunk";
  const truncated = call.timeline_truncated ? `, the first ${number(chunks.length)}` : "";
  const draw = [part("Output chunks", `since ${from}${truncated}`, growthChart, [times, counts])];
  const gaps = times.slice(1).map((at, i) => at - times[i]);
  if (gaps.some((gap) => gap > 0)) draw.push(part("Wait before each read", "log scale", gapsChart, [times.slice(1), gaps.map((gap) => (gap > 0 ? gap : null))]));
  box.draw = () => draw.forEach((one) => one());
  return box;
}

function render(call, chunks) {
  charts.splice(0).forEach((chart) => chart.end());
  $("detail-title").replaceChildren(`Call ${call.seq} `, name(call.model));
  const lines = timeline(call, chunks);
  $("detail-body").replaceChildren(
    el("section", {}, el("h3", {}, "Where the time went"), waterfall(call)), lines,
    el("section", {}, el("h3", {}, "What is known"), facts(call)));
  lines.draw?.();
  const at = known().findIndex((other) => other.seq === call.seq);
  $("newer").disabled = at <= 0;
  $("older").disabled = at < 0 || at + 1 >= known().length;
}

/** Opens a call. */
export async function showCall(seq) {
  const dialog = $("detail");
  if (!dialog.open) {
    before = document.activeElement;
    dialog.showModal();
    $("close").focus();
  }
  showing = seq;
  history.replaceState(null, "", `#call=${seq}`);
  const call = known().find((other) => other.seq === seq);
  if (call) render(call, []);
  const answer = await fetch(`/api/exchanges/${seq}`).catch(() => null);
  if (showing !== seq) return;
  if (answer?.ok) {
    const { exchange, timeline: chunks } = await answer.json();
    if (showing === seq) render(exchange, chunks);
  } else if (!call) {
    $("detail-title").textContent = `Call ${seq}`;
    $("detail-body").replaceChildren(el("p", { class: "none" }, "The observer does not keep this call any more."));
  }
}

function step(by) {
  const at = known().findIndex((other) => other.seq === showing);
  const next = known()[at + by];
  if (at >= 0 && next) showCall(next.seq);
}

export function startDetail() {
  const dialog = $("detail");
  $("close").addEventListener("click", () => dialog.close());
  $("newer").addEventListener("click", () => step(-1));
  $("older").addEventListener("click", () => step(1));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("close", () => {
    charts.splice(0).forEach((chart) => chart.end());
    const row = document.querySelector(`#calls tr[data-seq="${Number(showing)}"]`);
    showing = null;
    history.replaceState(null, "", location.pathname);
    (row ?? (before?.isConnected ? before : null))?.focus();
  });
  const asked = /^#call=(\d+)$/.exec(location.hash);
  if (asked) showCall(Number(asked[1]));
}
