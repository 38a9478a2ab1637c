// The heat map of intervals: a row a device, a cell a batch; dark is sent often, pale seldom. Only the rows in sight are drawn.

import { count, el, find, mark, say } from "./text.js";

const SIGNS = "0123456789abcdefghijklmnopqrstuvwxyz";
const HEIGHT = 300; // of the map on the page, at most

export class Heat {
  constructor(store, open) {
    this.store = store;
    this.open = open;
    this.rows = [];
    this.at = null; // [row, column] that is told
    this.canvas = el("canvas", {});
    this.spacer = el("div", { class: "spacer" });
    this.box = el("div", { class: "map", tabindex: "0", role: "application", "aria-roledescription": "heat map", "aria-label": "Intervals: devices by batches. The arrow keys go from cell to cell, Enter opens the device.", "aria-describedby": "heat-told" }, this.canvas, this.spacer);
    this.told = el("p", { class: "note told", id: "heat-told", "aria-live": "polite" });
    this.empty = el("p", { class: "empty" }, "Waits for the first answers of an edge: they say when a batch is to be sent again.");
    const scale = el("span", { class: "scale", "aria-hidden": "true" });
    this.legend = el("p", { class: "legend" }, "sent every time ", scale, " ", this.rarest = el("span"), el("span", { class: "key none", "aria-hidden": "true" }), " no answer yet");
    find("heat").append(this.empty, this.box, this.told, this.legend);
    this.box.addEventListener("scroll", () => this.draw());
    this.box.addEventListener("mousemove", (event) => this.point(event));
    this.box.addEventListener("mouseleave", () => this.choose(null));
    this.box.addEventListener("blur", () => this.choose(null));
    this.box.addEventListener("click", () => this.at && this.open(this.rows[this.at[0]].id));
    this.box.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  show() {
    const devices = [...this.store.nodes.values()].filter((node) => node.tier === "device" && node.intervals);
    devices.sort((a, b) => (a.edge === b.edge ? (a.id < b.id ? -1 : 1) : a.edge < b.edge ? -1 : 1));
    this.rows = devices;
    this.empty.hidden = devices.length > 0;
    for (const part of [this.box, this.told, this.legend]) part.hidden = !devices.length;
    if (!devices.length) return;
    this.most = devices.reduce((most, { intervals }) => [...intervals].reduce((most, sign) => Math.max(most, SIGNS.indexOf(sign)), most), 1);
    say(this.rarest, this.most === 35 ? "left out 35 times or more" : `left out ${this.most}${this.most === 1 ? " time" : " times"}`);
    this.columns = devices.reduce((most, { intervals }) => Math.max(most, intervals.length), 1);
    this.tall = Math.min(24, Math.max(4, Math.floor(HEIGHT / devices.length)));
    this.box.style.height = `${Math.min(HEIGHT, this.tall * devices.length)}px`;
    this.spacer.style.height = `${this.tall * devices.length}px`;
    if (this.at && this.at[0] >= devices.length) this.at = null;
    this.draw();
    this.tell();
  }

  draw() {
    if (!this.rows.length) return;
    const style = getComputedStyle(this.box);
    const [often, rare, none, ink] = ["--heat-often", "--heat-rare", "--heat-none", "--ink"].map((name) => style.getPropertyValue(name).trim());
    const wide = this.box.clientWidth, high = this.box.clientHeight, ratio = Math.min(2, devicePixelRatio || 1);
    if (!wide || !high) return;
    const [canvas, pen] = [this.canvas, this.canvas.getContext("2d")];
    if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
      canvas.width = Math.round(wide * ratio);
      canvas.height = Math.round(high * ratio);
      canvas.style.width = `${wide}px`;
      canvas.style.height = `${high}px`;
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, wide, high);
    const top = this.box.scrollTop, { tall } = this;
    this.left = tall >= 12 ? Math.min(120, Math.round(wide * 0.25)) : 0;
    const cell = (wide - this.left) / this.columns;
    const shades = [...SIGNS].map((_, interval) => mix(often, rare, Math.min(1, Math.log2(1 + interval) / Math.log2(1 + this.most))));
    pen.textBaseline = "middle";
    pen.font = "12px system-ui, sans-serif";
    const from = Math.floor(top / tall), until = Math.min(this.rows.length, Math.ceil((top + high) / tall));
    for (let row = from; row < until; row++) {
      const { id, intervals } = this.rows[row];
      const y = row * tall - top;
      if (this.left) {
        pen.fillStyle = ink;
        pen.fillText(id, 0, y + tall / 2, this.left - 8);
      }
      for (let column = 0; column < intervals.length; column++) {
        pen.fillStyle = shades[SIGNS.indexOf(intervals[column])] ?? none;
        const x = this.left + column * cell;
        pen.fillRect(x, y, Math.max(1, cell - 1), tall > 6 ? tall - 1 : tall);
      }
    }
    if (this.at) {
      pen.strokeStyle = ink;
      pen.lineWidth = 2;
      pen.strokeRect(this.left + this.at[1] * cell, this.at[0] * tall - top, Math.max(2, cell - 1), tall);
    }
    this.cell = cell;
  }

  point(event) {
    const box = this.box.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top - this.box.clientTop + this.box.scrollTop) / this.tall);
    const column = Math.floor((event.clientX - box.left - this.box.clientLeft - this.left) / this.cell);
    const there = this.rows[row] && column >= 0 && column < this.rows[row].intervals.length;
    this.choose(there ? [row, column] : null);
  }

  key(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-10, 0], PageDown: [10, 0] }[event.key];
    if (event.key === "Enter" && this.at) this.open(this.rows[this.at[0]].id);
    if (event.key === "Escape") this.choose(null);
    if (!step) return;
    event.preventDefault();
    const [row, column] = this.at ? [this.at[0] + step[0], this.at[1] + step[1]] : [0, 0];
    const to = Math.min(this.rows.length - 1, Math.max(0, row));
    this.choose([to, Math.min(this.rows[to].intervals.length - 1, Math.max(0, column))]);
    const y = to * this.tall;
    if (y < this.box.scrollTop) this.box.scrollTop = y;
    else if (y + this.tall > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = y + this.tall - this.box.clientHeight;
  }

  choose(at) {
    if (String(at) === String(this.at)) return;
    this.at = at;
    mark(this.box, "data-at", at ? at.join(" ") : null);
    this.draw();
    this.tell();
  }

  tell() {
    if (!this.at) return say(this.told, `${count(this.rows.length)} devices; point at a cell, or use the arrow keys, to see its batch.`);
    const { id, edge, intervals } = this.rows[this.at[0]];
    const sign = SIGNS.indexOf(intervals[this.at[1]] ?? ".");
    const what = sign < 0 ? "no answer of the edge yet: sent at the next attempt" : sign === 0 ? "sent every time" : `left out ${sign}${sign === 35 ? " times or more" : sign === 1 ? " time" : " times"}, then sent`;
    say(this.told, `${id}${edge ? ` at ${edge}` : ""}, column ${this.at[1] + 1} of ${intervals.length}: ${what}`);
  }
}

// Between two colours written #rrggbb.
function mix(from, to, share) {
  const part = (colour, at) => Number.parseInt(colour.slice(at, at + 2), 16);
  return `rgb(${[1, 3, 5].map((at) => Math.round(part(from, at) + (part(to, at) - part(from, at)) * share)).join(" ")})`;
}
