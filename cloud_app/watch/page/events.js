// The list of events, newest first: 300 rows at most, whatever comes; filtered here as it comes and by the server for what was.

import { get } from "./connection.js";
import { clock, count, el, find, moment, say } from "./text.js";

const MOST = 300;
const KINDS = 100; // names in the filter

export class Events {
  constructor(store, open) {
    this.store = store;
    this.waiting = []; // have come, are not shown yet; oldest first
    this.rows = []; // newest first: [entry, li]
    this.kinds = new Set();
    this.past = false; // looks at older ones: new ones wait until asked for
    this.missed = 0;
    this.list = find("log");
    this.form = find("events-filter");
    this.list.addEventListener("click", (event) => {
      const id = event.target.closest("[data-id]")?.dataset.id;
      if (id != null) open(id);
    });
    let timer;
    const refilter = () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.begin().catch(() => {}), 200);
    };
    this.form.addEventListener("input", refilter);
    this.form.addEventListener("submit", (event) => event.preventDefault());
    find("older").addEventListener("click", () => this.older());
    find("newest").addEventListener("click", () => this.begin().catch(() => {}));
  }

  get wanted() {
    const { node, name, level } = this.form.elements;
    return { node: node.value.trim(), name: name.value, level: level.checked ? "problem" : "" };
  }

  query(more) {
    const asked = new URLSearchParams({ limit: "200", ...more });
    for (const [name, value] of Object.entries(this.wanted)) if (value) asked.set(name, value);
    return `api/log?${asked}`;
  }

  // From the newest on; returns its number.
  async begin() {
    const query = this.query({});
    const { entries } = await get(query);
    if (query !== this.query({})) return entries[0]?.number ?? 0;
    this.past = false;
    this.missed = 0;
    this.waiting = [];
    this.rows = [];
    this.list.replaceChildren();
    this.add([...entries].reverse());
    this.more(entries.length);
    return this.filtered ? (await get("api/log?limit=1")).entries[0]?.number ?? 0 : entries[0]?.number ?? 0;
  }

  get filtered() {
    return Object.values(this.wanted).some(Boolean);
  }

  more(found) {
    find("older").disabled = found < 200;
  }

  async older() {
    const end = this.rows.at(-1)?.[0].number;
    if (end == null) return;
    const { entries } = await get(this.query({ before: String(end) })).catch(() => ({ entries: null }));
    if (!entries) return;
    this.past = true;
    for (const entry of entries) {
      const row = this.row(entry);
      this.rows.push([entry, row]);
      this.list.append(row);
    }
    for (const [, row] of this.rows.splice(0, Math.max(0, this.rows.length - MOST))) row.remove();
    this.more(entries.length);
    this.hint();
  }

  happened(entry) {
    this.waiting.push(entry);
    if (this.waiting.length > 2 * MOST) this.waiting.splice(0, MOST);
  }

  show() {
    const came = this.waiting;
    this.waiting = [];
    this.add(came);
  }

  add(entries) {
    for (const { name } of entries) if (this.kinds.size < KINDS) this.kind(name);
    const { node, name, level } = this.wanted;
    const newest = this.rows[0]?.[0].number ?? -1;
    const fit = entries.filter((each) => each.number > newest && (!node || each.node === node) && (!name || each.name === name) && (!level || each.level === level));
    if (this.past) this.missed += fit.length;
    else {
      const made = fit.slice(-MOST).map((entry) => [entry, this.row(entry)]).reverse();
      const [first] = this.rows;
      const scrolled = this.list.scrollTop > 4 ? this.list.scrollHeight - this.list.scrollTop : null;
      for (const [, row] of made) this.list.insertBefore(row, first?.[1] ?? null);
      this.rows.unshift(...made);
      for (const [, row] of this.rows.splice(MOST)) row.remove();
      if (scrolled !== null && made.length) this.list.scrollTop = this.list.scrollHeight - scrolled; // who reads on stays where he is
      if (!this.rows.length && !this.list.firstChild) this.list.append(el("li", { class: "empty" }, this.filtered ? "Nothing that fits this filter." : "Waits for the first event."));
      else if (this.rows.length) this.list.querySelector(".empty")?.remove();
    }
    this.hint();
  }

  hint() {
    say(find("events-hint"), this.past ? `older ones; ${count(this.missed)} new` : "newest first");
    find("newest").disabled = !this.past;
  }

  row({ number, time, node, name, level, text }) {
    const problem = level === "problem";
    return el("li", { class: problem ? "problem" : "", "data-number": number },
      el("time", { datetime: iso(time), title: moment(time) }, clock(time)),
      el("button", { type: "button", class: "link", tabindex: "-1", "data-id": node }, node),
      el("span", { class: "kind" }, problem ? `⚠ ${name}` : name),
      el("span", { class: "text" }, text));
  }

  kind(name) {
    if (this.kinds.has(name)) return;
    this.kinds.add(name);
    const options = this.form.elements.name;
    const next = [...options.options].find((each) => each.value > name);
    options.insertBefore(el("option", { value: name }, name), next ?? null);
  }
}

const iso = (time) => {
  const at = new Date(time * 1000);
  return Number.isNaN(at.getTime()) ? "" : at.toISOString();
};
