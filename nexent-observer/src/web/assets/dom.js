// Elements, numbers and colours. Text from a stream gets into the page through `clean` and `textContent` only.

/** Characters that would not show, or would turn the text around them. */
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u115f\u180e\u200b-\u200f\u2028-\u202f\u205f-\u206f\u3164\ufe00-\ufe0f\ufeff\ufff9-\ufffb]/g;

export const clean = (text) => String(text).replace(UNSEEN, "\ufffd");

export const $ = (id) => document.getElementById(id);

/** An element; properties by name (`class`, `title`, `aria-...`), children are elements or text. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A name from a stream, in isolation from the text around it. */
export function name(text, missing = "unknown") {
  if (text === null || text === undefined || text === "") return el("span", { class: "muted" }, missing);
  const shown = clean(text);
  return el("bdi", { class: "name", title: shown }, shown);
}

/** Writes text where it changed. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const plain = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });

export const UNKNOWN = "\u2013";

/** Seconds as a person reads them. */
export function seconds(value) {
  if (value === null || value === undefined) return UNKNOWN;
  const size = Math.abs(value);
  if (size < 0.001) return `${Math.round(value * 1e6)} \u00b5s`;
  if (size < 1) return `${plain(value * 1000, size < 0.01 ? 1 : 0)} ms`;
  if (size < 100) return `${plain(value, Number.isInteger(value) ? 0 : size < 10 ? 2 : 1)} s`;
  if (size < 6000) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${plain(value / 3600, 1)} h`;
}

export function number(value, digits = 0) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value >= 1e9) return `${plain(value / 1e9, 1)} G`;
  if (value >= 1e6) return `${plain(value / 1e6, 1)} M`;
  if (value >= 1e5) return `${plain(value / 1e3, 0)} k`;
  return plain(value, digits);
}

export const rate = (value) => number(value, value > 0 && value < 100 ? 1 : 0);

export function clock(unixMs) {
  return unixMs === null || unixMs === undefined ? UNKNOWN : new Date(unixMs).toLocaleTimeString("en-GB");
}

/** What a CSS variable comes to in the present theme. */
export function colour(variable) {
  const probe = $("probe") ?? document.body.appendChild(el("span", { id: "probe", hidden: "" }));
  probe.style.color = `var(${variable})`;
  return getComputedStyle(probe).color;
}

/** Lets arrow keys walk through the rows of a table body; one of them is in the tab order. */
export function walkable(body, open) {
  body.addEventListener("keydown", (event) => {
    const row = event.target.closest("tr");
    if (!row || event.altKey || event.ctrlKey || event.metaKey) return;
    const rows = [...body.children];
    const at = rows.indexOf(row);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      rows[Math.max(0, Math.min(rows.length - 1, to))]?.focus();
    } else if (open && (event.key === "Enter" || event.key === " ") && event.target === row) {
      event.preventDefault();
      open(row);
    }
  });
  body.addEventListener("focusin", (event) => {
    const row = event.target.closest("tr");
    for (const other of body.children) other.tabIndex = other === row ? 0 : -1;
  });
}

/** Keeps one row of the body in the tab order. */
export function reachable(body) {
  if (body.firstElementChild && !body.querySelector('tr[tabindex="0"]')) body.firstElementChild.tabIndex = 0;
}
