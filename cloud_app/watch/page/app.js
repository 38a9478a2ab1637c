// The page of `emo watch`: keeps what the server tells, bounded, and shows what has changed four times a second at most.

import { Refused, get, listen, remember } from "./connection.js";
import { Curves } from "./curves.js";
import { Events } from "./events.js";
import { Fleet } from "./fleet.js";
import { Heat } from "./heat.js";
import { NodeView } from "./node.js";
import { find } from "./text.js";
import { Top } from "./top.js";
import { TryIt } from "./tryit.js";

const OFTEN_MS = 250; // between two looks at what has changed
const HISTORY_MS = 1000; // between two askings for the curves

// What is known. `away`: since when the server does not answer, in this machine's milliseconds; `ahead`: the server's clock
// less this one, in seconds.
const store = { state: null, nodes: new Map(), history: null, away: null, ahead: 0 };
store.now = () => Date.now() / 1000 + store.ahead;

const view = new NodeView(store);
const parts = {
  top: new Top(store),
  fleet: new Fleet(store, (id) => view.open(id)),
  curves: new Curves(store),
  heat: new Heat(store, (id) => view.open(id)),
  events: new Events(store, (id) => view.open(id)),
  tryit: new TryIt(store),
};

// -- showing

const changed = new Set();
let timer = null;
let shownAt = -Infinity;

function touch(...names) {
  for (const name of names) changed.add(name);
  if (timer === null && !document.hidden) {
    timer = setTimeout(() => requestAnimationFrame(show), Math.max(0, shownAt + OFTEN_MS - performance.now()));
  }
}

function show() {
  timer = null;
  if (document.hidden) return; // what has changed is shown as soon as somebody looks
  shownAt = performance.now();
  const names = [...changed];
  changed.clear();
  for (const name of names) parts[name].show();
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  touch(...Object.keys(parts));
  askHistory();
});
setInterval(() => touch("top"), 1000);
const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => {
  parts.curves.recolour();
  touch("curves", "heat");
});

// -- hearing

let forgetting = false, asking = false, stale = false, askedAt = -Infinity;

// One at a time, not too often, and never for a tab that nobody sees.
async function askHistory() {
  stale = true;
  if (asking) return;
  asking = true;
  try {
    while (stale && !document.hidden) {
      await pause(askedAt + HISTORY_MS - performance.now());
      stale = false;
      askedAt = performance.now();
      store.history = await get("api/history");
      touch("curves", "fleet", "top");
    }
  } catch { // the stream tells that the server is away, and asks again
  } finally {
    asking = false;
  }
}

const pause = (ms) => new Promise((done) => setTimeout(done, Math.max(0, ms)));

function take(state) {
  const { nodes, ...rest } = state;
  store.state = rest;
  store.ahead = rest.time - Date.now() / 1000;
  if (nodes) store.nodes = new Map(nodes.map((node) => [node.id, node]));
}

function hear(name, data) {
  if (name === "event") {
    parts.events.happened(data);
    touch("events");
  } else if (name === "state") {
    take(data);
    touch("top", "fleet", "tryit");
  } else if (name === "nodes") {
    for (const node of data) store.nodes.set(node.id, node);
    touch("fleet", "heat");
    forget();
  } else if (name === "history") {
    askHistory();
  }
}

// A node that the watcher no longer shows is not told of: where there are too many, ask for all.
async function forget() {
  let devices = 0;
  for (const node of store.nodes.values()) devices += node.tier === "device";
  if (forgetting || !store.state || devices <= store.state.counts.devices) return;
  forgetting = true;
  await pause(HISTORY_MS);
  await get("api/state").then(take, () => {});
  touch("fleet", "heat");
  forgetting = false;
}

async function follow() {
  let since = null, newest = 0;
  for (let tries = 0; ;) {
    try {
      const state = await get("api/state");
      if (state.watcher.since !== since) { // another process: its numbers are others, and so may the run be
        since = state.watcher.since;
        newest = await parts.events.begin();
      }
      take(state);
      store.away = null;
      tries = 0;
      touch(...Object.keys(parts));
      askHistory();
      await listen(newest, (name, data, number) => {
        if (number) newest = number;
        hear(name, data);
      });
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        await askKey();
        continue;
      }
    }
    store.away ??= Date.now();
    touch("top");
    await pause(Math.min(5000, 500 * 2 ** tries++));
  }
}

function askKey() {
  const dialog = find("key");
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      remember(dialog.querySelector("input").value.trim());
      done();
    }, { once: true });
    dialog.querySelector("button").onclick = () => dialog.close();
    dialog.showModal();
  });
}

follow();
