// The fleet as it hangs together: the cloud, its edges, each with its devices; a light for each, and why where one is not well.

import { LIGHTS, bytes, count, el, find, last, mark, number, say } from "./text.js";

const MANY = 60; // devices: from then on a device is a light without its name
const BAD = ["refused", "gone", "out", "late"];
const LOOK = 50; // of those that need a look are listed

export class Fleet {
  constructor(store, open) {
    this.store = store;
    this.open = open;
    this.only = new Set();
    this.filter = "";
    this.shown = new Map(); // id -> what is on the page of it
    this.groups = new Map(); // edge -> its part of the tree
    this.buttons = {};
    for (const [light, word] of Object.entries(LIGHTS)) {
      const number = el("b", {}, "0");
      const button = el("button", { type: "button", "aria-pressed": "false", click: () => this.toggle(light) }, el("i", { class: "light", "data-light": light, "aria-hidden": "true" }), number, ` ${word}`);
      this.buttons[light] = { button, number };
      find("lights").append(button);
    }
    this.cloud = el("div", { class: "cloud" });
    this.edges = el("ul", { class: "edges" });
    this.empty = el("p", { class: "empty" }, "Waits for the first node to say that it is there.");
    find("tree").append(this.empty, this.cloud, this.edges);
    find("fleet-filter").addEventListener("input", (event) => {
      this.filter = event.target.value.trim().toLowerCase();
      this.show();
    });
    const opened = (event) => {
      const id = event.target.closest("[data-id]")?.dataset.id;
      if (id != null) this.open(id);
    };
    find("tree").addEventListener("click", opened);
    find("look").addEventListener("click", opened);
    find("tree").addEventListener("keydown", walk);
  }

  toggle(light) {
    if (!this.only.delete(light)) this.only.add(light);
    this.show();
  }

  fits(node) {
    const named = !this.filter || node.id.toLowerCase().includes(this.filter) || node.edge.toLowerCase().includes(this.filter);
    return named && (!this.only.size || this.only.has(node.light));
  }

  show() {
    const nodes = [...this.store.nodes.values()].sort((a, b) => (a.id < b.id ? -1 : 1));
    const devices = nodes.filter((node) => node.tier === "device");
    this.empty.hidden = nodes.length > 0;
    const edges = new Map(nodes.filter((node) => node.tier === "edge").map((node) => [node.id, node]));
    for (const device of devices) if (!edges.has(device.edge)) edges.set(device.edge, null);
    mark(find("tree"), "class", devices.length > MANY ? "many" : "few");
    for (const [edge, group] of this.groups) {
      if (edges.has(edge)) continue;
      group.part.remove();
      this.groups.delete(edge);
    }
    for (const edge of [...edges.keys()].sort()) this.group(edge, edges.get(edge));
    const seen = new Set();
    for (const node of nodes) {
      seen.add(node.id);
      this.node(node);
    }
    for (const [id, { button }] of this.shown) {
      if (seen.has(id)) continue;
      button.remove();
      this.shown.delete(id);
    }
    for (const { list } of this.groups.values()) {
      if (list.children.length && !list.querySelector('[tabindex="0"]:not([hidden])')) {
        for (const each of list.querySelectorAll('[tabindex="0"]')) each.tabIndex = -1;
        const first = list.querySelector("button:not([hidden])");
        if (first) first.tabIndex = 0;
      }
    }
    for (const [light, { button, number }] of Object.entries(this.buttons)) {
      say(number, count(nodes.reduce((sum, node) => sum + (node.light === light), 0)));
      mark(button, "aria-pressed", this.only.has(light));
    }
    this.look(nodes);
  }

  group(edge, node) {
    let group = this.groups.get(edge);
    if (!group) {
      const head = el("div", { class: "edge" }), facts = el("p", { class: "facts" });
      const list = el("div", { class: "devices", role: "group", "aria-label": edge ? `Devices of ${edge}` : "Devices without an edge" });
      const part = el("li", {}, head, facts, list);
      group = { part, head, facts, list };
      this.groups.set(edge, group);
      const next = [...this.groups.keys()].sort();
      this.edges.insertBefore(part, this.groups.get(next[next.indexOf(edge) + 1])?.part ?? null);
    }
    if (!node && !group.head.firstChild) group.head.append(el("span", { class: "hint" }, edge ? `${edge}: not heard of` : "Devices without an edge"));
    else if (node && group.head.querySelector(".hint")) group.head.replaceChildren();
    const told = this.store.history?.edges?.[edge];
    const parts = told && last(told.entries) != null
      ? [`cache ${count(last(told.entries))} batches, ${bytes(last(told.bytes))}`, `overlay step ${count(last(told.step))}`, `loss ${number(last(told.loss))}`]
      : [node ? "its cache is still empty" : ""];
    say(group.facts, parts.join(" · "));
  }

  node(node) {
    let shown = this.shown.get(node.id);
    const place = node.tier === "device" ? this.groups.get(node.edge).list : node.tier === "edge" ? this.groups.get(node.id).head : this.cloud;
    if (!shown) {
      const light = el("i", { class: "light", "aria-hidden": "true" }), what = el("span", { class: "what" });
      const button = el("button", { type: "button", class: `node ${node.tier}`, "data-id": node.id }, light, el("span", { class: "id" }, node.id), what);
      if (node.tier === "device") button.tabIndex = -1;
      shown = { button, light, what, place: null };
      this.shown.set(node.id, shown);
    }
    if (shown.place !== place) {
      shown.place = place;
      const after = node.tier === "device" ? [...place.children].find((each) => each.dataset.id > node.id) : null;
      if (node.tier === "device" && place.lastElementChild && place.lastElementChild.dataset.id > node.id) place.insertBefore(shown.button, after);
      else place.append(shown.button);
    }
    const state = LIGHTS[node.light] ?? node.light;
    const full = `${node.id}: ${[state, node.why, node.doing].filter(Boolean).join("; ")}`;
    mark(shown.light, "data-light", node.light);
    say(shown.what, node.tier === "device" ? state : node.why || node.doing || state);
    mark(shown.button, "title", full);
    mark(shown.button, "aria-label", full);
    const hidden = node.tier === "device" && !this.fits(node);
    if (shown.button.hidden !== hidden) shown.button.hidden = hidden;
  }

  look(nodes) {
    const over = this.store.state?.phase === "done"; // then it is no wonder that they have gone
    const bad = nodes.filter((node) => BAD.includes(node.light) && !(over && node.light === "gone") && this.fits(node));
    bad.sort((a, b) => BAD.indexOf(a.light) - BAD.indexOf(b.light) || (a.id < b.id ? -1 : 1));
    const lines = bad.slice(0, LOOK).map((node) => [node.id, node.light, node.why || LIGHTS[node.light]]);
    const more = bad.length - lines.length;
    const text = JSON.stringify([lines, more, nodes.length > 0, over]);
    if (text === this.looked) return;
    this.looked = text;
    const box = find("look");
    if (!lines.length) return box.replaceChildren(el("p", { class: "empty" }, !nodes.length ? "" : over ? "The run is over; no node needs a look." : "No node needs a look."));
    box.replaceChildren(el("ul", {}, ...lines.map(([id, light, why]) => el("li", {}, el("i", { class: "light", "data-light": light, "aria-hidden": "true" }), el("button", { type: "button", class: "link", "data-id": id }, id), el("span", {}, why)))));
    if (more) box.append(el("p", {}, `and ${count(more)} more; the filter finds them`));
  }
}

// The arrow keys go from device to device; Tab goes from edge to edge.
function walk(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const list = event.target.closest(".devices");
  if (!list || !(step || event.key === "Home" || event.key === "End")) return;
  const all = [...list.querySelectorAll("button:not([hidden])")], at = all.indexOf(event.target);
  const to = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : Math.min(all.length - 1, Math.max(0, at + step * across(event.key, all)));
  event.target.tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
  event.preventDefault();
}

// How many stand in a row, where the key goes up or down.
function across(key, all) {
  if (key === "ArrowLeft" || key === "ArrowRight") return 1;
  const row = all.findIndex((each) => each.offsetTop !== all[0].offsetTop);
  return row > 0 ? row : 1;
}
