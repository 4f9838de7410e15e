// Charts by uPlot, in the colours of the theme.
import { colour, number, seconds } from "./dom.js";

const charts = new Set();

/** A chart that fills its element; `draw` gives uPlot's options for the present colours. */
export class Chart {
  constructor(element, draw) {
    Object.assign(this, { element, draw, data: null, plot: null });
    this.watch = new ResizeObserver(() => this.fit());
    this.watch.observe(element);
    charts.add(this);
  }

  show(data) {
    this.data = data;
    if (this.plot) this.plot.setData(data);
    else this.make();
  }

  make() {
    if (this.data === null) return;
    this.plot?.destroy();
    const size = { width: Math.max(this.element.clientWidth, 50), height: this.element.clientHeight || 150 };
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const options = { ...size, legend: { show: false }, cursor: { y: false, drag: { setScale: false } }, ...this.draw(axis) };
    this.plot = new window.uPlot(options, this.data, this.element);
  }

  fit() {
    const width = this.element.clientWidth;
    if (this.plot && width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: this.plot.height });
  }

  end() {
    this.watch.disconnect();
    this.plot?.destroy();
    charts.delete(this);
  }
}

/** The theme changed. */
export function recolour() {
  for (const chart of charts) chart.make();
}

/** Powers of ten: on a log scale uPlot would draw nine lines for each. */
const powers = (_, __, low, high) => {
  const splits = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) splits.push(10 ** e);
  return splits;
};
const decades = (_, low, high) => (low === null || low === undefined || !(low > 0) ? [0.01, 10] : [10 ** Math.floor(Math.log10(low)), 10 ** Math.ceil(Math.log10(high * 1.01))]);
const logAxis = (axis) => ({ ...axis, size: 52, splits: powers, values: (_, v) => v.map((n) => seconds(n).replace(/\.0+ /, " ")) });

/** What both charts of the page show: from the first second that is known to the last, a minute at least. */
const span = { from: 0, to: 60 };
export function showSpan(from, to) {
  span.to = to;
  span.from = Math.min(from, to - 60);
}
const shown = () => [span.from, span.to];

const soft = (of) => of.replace("rgb(", "rgba(").replace(")", ", 0.16)");

/** Says in `note` what is under the cursor, else what it said before. */
function pointed(note, words) {
  const idle = note.textContent;
  return { setCursor: [(plot) => {
    const at = plot.cursor.idx;
    const text = at === null || at === undefined ? null : words(plot, at);
    note.textContent = text ?? idle;
  }] };
}

const at = (unix) => new Date(unix * 1000).toLocaleTimeString("en-GB");
const hours = (_, splits) => splits.map((unix) => (span.to - span.from < 300 ? at(unix) : at(unix).slice(0, 5)));
const elapsed = (_, splits) => splits.map((n) => `${number(n, n % 1 ? 2 : 0)} s`);

export function rateChart(element, note) {
  const hooks = pointed(note, (plot, i) => plot.data[1][i] === null || plot.data[1][i] === undefined ? null : `${number(plot.data[1][i])} chunks/s at ${at(plot.data[0][i])}`);
  return new Chart(element, (axis) => ({
    hooks,
    padding: [8, 26, 0, 0],
    scales: { x: { range: shown }, y: { range: (_, __, high) => [0, Math.max(high * 1.1, 5)] } },
    axes: [{ ...axis, values: hours, space: 70, size: 24 }, { ...axis, size: 42, values: (_, v) => v.map((n) => number(n)) }],
    series: [{}, { stroke: colour("--accent"), fill: soft(colour("--accent")), width: 1.5, points: { show: false }, spanGaps: false }],
  }));
}

export function ttftChart(element, note) {
  const dots = (of) => ({ stroke: of, paths: () => null, points: { show: true, size: 5, fill: of, stroke: of } });
  const hooks = pointed(note, (plot, i) => {
    const value = plot.data[1][i] ?? plot.data[2][i];
    return value === null || value === undefined ? null : `${seconds(value)} at ${at(plot.data[0][i])}`;
  });
  return new Chart(element, (axis) => ({
    hooks,
    padding: [8, 26, 0, 0],
    scales: { x: { range: shown }, y: { distr: 3, range: decades } },
    axes: [{ ...axis, values: hours, space: 70, size: 24 }, logAxis(axis)],
    series: [{}, dots(colour("--blue")), dots(colour("--warn"))],
  }));
}

/** Output chunks over the time of one call. */
export function growthChart(element, note) {
  const hooks = pointed(note, (plot, i) => `chunk ${number(plot.data[1][i])} after ${seconds(plot.data[0][i])}`);
  return new Chart(element, (axis) => ({
    hooks,
    padding: [8, 26, 0, 0],
    scales: { x: { time: false }, y: { range: (_, __, high) => [0, Math.max(high, 1)] } },
    axes: [{ ...axis, values: elapsed, space: 60, size: 24 }, { ...axis, size: 42 }],
    series: [{}, { stroke: colour("--accent"), fill: soft(colour("--accent")), width: 1.5, points: { show: false }, paths: window.uPlot.paths.stepped({ align: 1 }) }],
  }));
}

/** Waits between reads over the time of one call. */
export function gapsChart(element, note) {
  const hooks = pointed(note, (plot, i) => `${seconds(plot.data[1][i])} before the read at ${seconds(plot.data[0][i])}`);
  return new Chart(element, (axis) => ({
    hooks,
    padding: [8, 26, 0, 0],
    scales: { x: { time: false }, y: { distr: 3, range: decades } },
    axes: [{ ...axis, values: elapsed, space: 60, size: 24 }, logAxis(axis)],
    series: [{}, { stroke: colour("--blue"), paths: () => null, points: { show: true, size: 3, fill: colour("--blue"), stroke: colour("--blue") } }],
  }));
}
