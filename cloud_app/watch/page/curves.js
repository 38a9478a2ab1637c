// The curves: what each chart shows of the history, and how one is drawn by uPlot with a legend that keys can reach.

import { bytes, clock, count, duration, el, find, last, mark, number, percent, say } from "./text.js";

const HIGH = 170; // pixels
const whole = (value) => `${Math.round(100 * value)} %`;
const SIZES = [1, 1024, 1024 ** 2, 1024 ** 3, 1024 ** 4].flatMap((unit) => [1, 2, 5, 10, 20, 50, 100, 200, 500].map((each) => each * unit));
const MOST = 8; // series in one chart

const BY_ROUND = { x: "round", waits: "Waits for the first round to close." };
const BY_TIME = { x: "time", waits: "Waits for the first reports." };
const CHARTS = [
  { key: "accuracy", name: "Accuracy by round", ...BY_ROUND, form: percent, range: upToOne, series: accuracy, high: 220, wide: true },
  { key: "loss", name: "Training loss by round", ...BY_ROUND, form: number, series: ({ rounds }) => [rounds.round, [{ name: "FL model", values: rounds.loss }]] },
  { key: "seconds", name: "Round time, last to answer", ...BY_ROUND, form: duration, bars: true, series: ({ rounds }) => [rounds.round, [{ name: "seconds", values: rounds.seconds }]], tell: waited },
  { key: "links", name: "Bytes by link", ...BY_TIME, form: bytes, series: links },
  { key: "share", name: "Share of batches sent", ...BY_TIME, form: percent, range: upToOne, series: ({ series }) => [series.time, [{ name: "sent of those offered", values: series.sent_share }]] },
  { key: "overlay", name: "Overlay loss by edge", ...BY_TIME, form: number, series: edges("loss") },
  { key: "cache", name: "Cache by edge", ...BY_TIME, choices: { entries: ["batches", count], bytes: ["bytes", bytes], age: ["age in rounds", number], interval: ["interval", number] }, series: (history, choice) => edges(choice)(history) },
  { key: "kinds", name: "Bytes by kind of message", ...BY_TIME, form: bytes, series: kinds, wide: true },
  { key: "endpoint", name: "Endpoint", ...BY_TIME, waits: "Waits for the endpoint’s first figures.", choices: { requests: ["requests", count], latency_ms: ["latency", (value) => (value == null ? "–" : `${number(value)} ms`)] }, series: ({ endpoint }, choice) => [endpoint?.time ?? [], [{ name: choice === "requests" ? "requests" : "latency", values: endpoint?.[choice] ?? [] }]], when: (state) => state?.endpoint != null },
];

function accuracy({ rounds }, _, state) {
  const series = [{ name: "FL model", values: rounds.accuracy }];
  const result = state?.result ?? {};
  const level = (value) => rounds.round.map(() => value);
  const ensemble = result.bagged ?? result.served;
  if (ensemble != null) series.push({ name: "ensemble", values: level(ensemble), dash: [7, 4] });
  for (const key of Object.keys(result).filter((each) => each.startsWith("boosted.")).sort()) {
    series.push({ name: `pair ${key.slice(8)}`, values: level(result[key]), dash: [2, 4] });
  }
  return [rounds.round, series];
}

function links({ series }) {
  return [series.time, [
    { name: "FL (WAN)", values: series.fl_bytes }, { name: "activations (LAN)", values: series.activation_bytes }, { name: "reports", values: series.report_bytes },
  ]];
}

function kinds({ series }) {
  const names = Object.keys(series.by_kind).filter((name) => last(series.by_kind[name]) > 0);
  names.sort((a, b) => last(series.by_kind[b]) - last(series.by_kind[a]));
  return [series.time, names.slice(0, MOST).map((name) => ({ name, values: series.by_kind[name] }))];
}

// Edges tell at times of their own: one axis for all, on which each has its values.
function edges(column) {
  return ({ edges: told }) => {
    const names = Object.keys(told ?? {}).sort().slice(0, MOST);
    if (!names.length) return [[], []];
    if (names.length === 1) return [told[names[0]].time, [{ name: names[0], values: told[names[0]][column] }]];
    const joined = uPlot.join(names.map((name) => [told[name].time, told[name][column]]));
    return [joined[0], names.map((name, at) => ({ name, values: joined[at + 1], gaps: true }))];
  };
}

function waited(history, round) {
  const found = Object.values(history.waited ?? {});
  if (round != null) {
    const one = history.waited?.[round];
    return one ? `round ${count(round)}: waited for ${one.device}` : `round ${count(round)}`;
  }
  const often = new Map();
  for (const { device } of found) often.set(device, (often.get(device) ?? 0) + 1);
  const [most] = [...often].sort((a, b) => b[1] - a[1]);
  return most ? `last to answer most often: ${most[0]}, in ${count(most[1])} of ${count(found.length)} rounds` : "";
}

function upToOne(_, low, high) {
  if (low == null) return [0, 1];
  const floor = Math.max(0, Math.floor(low * 10 - 0.3) / 10);
  return [floor, Math.min(1, Math.max(floor + 0.1, Math.ceil(high * 10 + 0.1) / 10))];
}

const fromZero = (_, low, high) => (low == null ? [0, 1] : [Math.min(0, low), high > 0 ? high * 1.08 : 1]);

export class Curves {
  constructor(store) {
    this.store = store;
    this.charts = CHARTS.map((about) => new Chart(about, store));
    find("charts").append(...this.charts.map((chart) => chart.card));
  }

  show() {
    for (const chart of this.charts) chart.show();
  }

  recolour() {
    for (const chart of this.charts) chart.close();
  }
}

class Chart {
  constructor(about, store) {
    this.about = about;
    this.store = store;
    this.high = about.high ?? HIGH;
    this.plot = null;
    this.drawn = ""; // of which series, in which colours
    this.off = new Set();
    this.choice = Object.keys(about.choices ?? {})[0];
    this.legend = el("div", { class: "legend", role: "group", "aria-label": `Lines of ${about.name}` });
    this.area = el("div", { class: "plot", role: "img" });
    this.waits = el("p", { class: "empty" }, about.waits);
    this.told = about.tell ? el("p", { class: "note" }) : null;
    const head = el("div", { class: "head" }, el("h3", {}, about.name));
    if (about.choices) {
      const select = el("select", { "aria-label": `${about.name}: what`, change: () => {
        this.choice = select.value;
        this.close();
        this.show();
      } }, ...Object.entries(about.choices).map(([value, [name]]) => el("option", { value }, name)));
      head.append(select);
    }
    this.card = el("article", { class: about.wide ? "panel chart wide" : "panel chart", "data-key": about.key }, head, this.legend, this.area, this.told);
    this.area.append(this.waits);
    new ResizeObserver(([entry]) => {
      if (this.plot && entry.contentRect.width) this.plot.setSize({ width: Math.floor(entry.contentRect.width), height: this.high });
    }).observe(this.area);
  }

  get form() {
    return this.about.choices ? this.about.choices[this.choice][1] : this.about.form;
  }

  show() {
    const { history, state } = this.store;
    const { about } = this;
    const hidden = about.when ? !about.when(state) : false;
    if (this.card.hidden !== hidden) this.card.hidden = hidden;
    if (hidden || !history) return;
    const [x, series] = about.series(history, this.choice, state);
    const some = x.length > 0 && series.some(({ values }) => values.some((value) => value != null));
    if (this.waits.hidden !== some) this.waits.hidden = some;
    if (!some) {
      mark(this.area, "aria-label", about.waits);
      return this.close();
    }
    const names = series.map(({ name, dash }) => [name, dash]);
    const drawn = JSON.stringify([names, this.choice]);
    const data = [x, ...series.map(({ values }) => values)];
    if (drawn !== this.drawn || !this.plot) {
      this.close();
      this.drawn = drawn;
      this.open(series, data);
    } else this.plot.setData(data);
    this.values();
    mark(this.area, "aria-label", `${about.name}: ${series.map(({ name, values }) => `${name} ${this.form(last(values))}`).join(", ")}`);
  }

  open(series, data) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const { about } = this;
    const byRound = about.x === "round";
    const axis = { stroke: colour("--muted"), font: "12px system-ui, sans-serif", grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false } };
    const form = this.form;
    this.plot = new uPlot({
      width: Math.max(120, Math.floor(this.area.clientWidth)), height: this.high, legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: {
        x: { time: false, range: byRound ? (_, low, high) => this.rounds(low, high) : ({ data: [times] }) => [times[0], Math.max(times.at(-1), times[0] + 10)] },
        y: { range: about.range ?? fromZero },
      },
      axes: [
        { ...axis, size: 26, gap: 4, space: byRound ? 40 : 76, incrs: byRound ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000] : undefined, values: (_, splits) => splits.map(byRound ? count : clock) },
        { ...axis, size: 62, gap: 4, space: 34, incrs: form === bytes ? SIZES : undefined, values: (_, splits) => splits.map(form === percent ? whole : form) },
      ],
      series: [{}, ...series.map(({ name, dash, gaps }, at) => {
        const stroke = colour(`--s${(at % MOST) + 1}`);
        const shown = !this.off.has(name);
        return about.bars
          ? { show: shown, stroke, fill: `${stroke}99`, paths: uPlot.paths.bars({ size: [0.7, 28] }), points: { show: false } }
          : { show: shown, stroke, width: 2, dash, spanGaps: gaps ?? true, points: dash ? { show: false } : { size: 5, fill: stroke } };
      })],
      hooks: { setCursor: [() => this.values()] },
    }, data, this.area);
    this.legend.replaceChildren(...series.map(({ name, dash }, at) => {
      const value = el("output", {}), key = el("i", { class: dash ? "key dashed" : "key", "aria-hidden": "true" });
      key.style.setProperty("--c", `var(--s${(at % MOST) + 1})`);
      const button = el("button", { type: "button", "aria-pressed": String(!this.off.has(name)), click: () => {
        if (!this.off.delete(name)) this.off.add(name);
        mark(button, "aria-pressed", !this.off.has(name));
        this.plot.setSeries(at + 1, { show: !this.off.has(name) });
      } }, key, el("span", {}, name), value);
      return button;
    }));
  }

  // Up to the last round that there will be: so the curve shows how far the run is.
  rounds(low, high) {
    const until = this.store.state?.rounds ?? 0;
    const pad = this.about.bars ? 0.6 : 0;
    return low == null ? [0, 1] : [Math.min(low, 1) - pad, Math.max(high, until, low + 1) + pad];
  }

  // What the legend says: the values under the cursor, else the newest.
  values() {
    if (!this.plot) return;
    const at = this.plot.cursor.idx;
    const keys = this.legend.querySelectorAll("output");
    for (let row = 0; row < keys.length; row++) {
      const values = this.plot.data[row + 1];
      say(keys[row], this.form(at == null ? last(values) : values?.[at]));
    }
    if (this.told) say(this.told, this.about.tell(this.store.history, at == null ? null : this.plot.data[0][at]));
  }

  close() {
    this.plot?.destroy();
    this.plot = null;
    if (this.waits.hidden === false) this.legend.replaceChildren();
  }
}
