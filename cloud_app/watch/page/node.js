// One node in a window of its own: what it does, its problems, its figures, its history.

import { get } from "./connection.js";
import { LIGHTS, bytes, count, duration, el, find, moment, number, say } from "./text.js";

const EVERY_MS = 3000;

export class NodeView {
  constructor(store) {
    this.store = store;
    this.dialog = find("node");
    this.dialog.addEventListener("close", () => clearTimeout(this.timer));
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
  }

  open(id) {
    this.id = id;
    this.title = el("h2", { id: "node-title" }, id);
    this.body = el("div", { class: "body" }, el("p", { class: "empty" }, "Asks the watcher ..."));
    this.text = "";
    const close = el("button", { type: "button", "aria-label": "Close", class: "close", click: () => this.dialog.close() }, "✕");
    this.dialog.replaceChildren(el("div", { class: "head" }, this.title, close), this.body);
    if (!this.dialog.open) this.dialog.showModal();
    clearTimeout(this.timer);
    this.look();
  }

  async look() {
    const { id } = this;
    try {
      const node = await get(`api/nodes/${encodeURIComponent(id)}`);
      if (this.id === id && this.dialog.open && !document.hidden) this.show(node);
    } catch (error) {
      if (this.id === id && !this.text) this.body.replaceChildren(el("p", { class: "empty" }, error.status === 404 ? "The watcher has not heard of this node." : "The watcher does not answer; this tries again."));
    }
    if (this.id !== id || !this.dialog.open) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), EVERY_MS);
  }

  show(node) {
    const events = node.events ?? [];
    const bad = events.filter((event) => event.level === "problem");
    const text = JSON.stringify([node.light, node.why, node.doing, node.figures, events.length, events[0]?.number]);
    if (text === this.text) return;
    this.text = text;
    const open = new Map([...this.body.querySelectorAll("details")].map((each) => [each.dataset.part, each.open]));
    const part = (key, name, opened, ...children) => {
      const made = el("details", { "data-part": key }, el("summary", {}, name), ...children);
      made.open = open.get(key) ?? opened;
      return made;
    };
    const facts = [
      ["tier", node.tier], ["edge", node.edge], ["doing", node.doing], ["round", node.round == null ? "" : count(node.round)],
      ["loss", node.loss == null ? "" : number(node.loss)], ["samples", node.samples == null ? "" : count(node.samples)],
      ["last seen", node.last_seen ? moment(node.last_seen) : ""],
    ].filter(([, value]) => value !== "" && value != null);
    const figures = Object.keys(node.figures ?? {}).sort();
    const scroll = this.body.scrollTop;
    this.body.replaceChildren(
      el("p", { class: "state" }, el("i", { class: "light", "data-light": node.light, "aria-hidden": "true" }), el("strong", {}, LIGHTS[node.light] ?? node.light), node.why ? el("span", {}, node.why) : null),
      el("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
      part("problems", `Problems (${count(bad.length)} of its last ${count(events.length)} events)`, true, bad.length ? list(bad) : el("p", { class: "empty" }, "None.")),
      part("figures", `Counters and gauges (${count(figures.length)})`, true, figures.length
        ? el("table", {}, ...figures.map((name) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, figure(name, node.figures[name])))))
        : el("p", { class: "empty" }, "It has told none yet.")),
      part("history", "History, newest first", true, events.length ? list(events) : el("p", { class: "empty" }, "Nothing has happened yet.")),
    );
    this.body.scrollTop = scroll;
    say(this.title, node.id);
  }
}

const list = (events) => el("ol", {}, ...events.slice(0, 50).map((event) => el("li", { class: event.level }, el("time", {}, moment(event.time)), ` ${event.text || event.name}`)));

function figure(name, value) {
  if (name.endsWith("bytes")) return bytes(value);
  if (name.endsWith("_s")) return duration(value);
  return name.endsWith("_c") ? `${number(value)} °C` : number(value);
}
