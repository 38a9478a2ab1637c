// The top of the page: what the run does now, how far it is, how good, what it has sent; and the banner when something is away.

import { bytes, count, duration, el, find, last, mark, moment, percent, say } from "./text.js";

const HEAD = { waiting: "Waiting for devices", training: "Training", finishing: "Edges finish their overlays", exporting: "Exporting the ensemble", done: "Done" };
const MEANS = {
  waiting: "A run begins as soon as enough devices are there.",
  training: "Devices train the small model, round by round. Beside it, edges replay the activations that devices publish and train larger overlays on them.",
  finishing: "The rounds are over. Each edge ends the training of its overlay and sends it to the cloud.",
  exporting: "The cloud joins the small model and the overlays into one ensemble, measures it and writes it as one ONNX file.",
  done: "The small model and the overlays are one ensemble now, exported as one ONNX file.",
};
const TILES = { fl: "FL model’s accuracy", ensemble: "Ensemble’s accuracy", left: "Time left", sent: "Sent, against split learning", batches: "Batches sent", devices: "Devices" };

export class Top {
  constructor(store) {
    this.store = store;
    this.tiles = {};
    for (const [key, name] of Object.entries(TILES)) {
      const value = el("strong", {}, "–"), note = el("span", { class: "note" });
      this.tiles[key] = { value, note };
      const bar = key === "sent" ? (this.bar = el("span", { class: "share", "aria-hidden": "true" }, el("i", { class: "a" }), el("i", { class: "b" }))) : null;
      const parts = key === "sent" ? (this.parts = el("span", { class: "note parts" })) : null;
      find("tiles").append(el("div", { class: `panel tile of-${key}` }, el("dt", {}, name), el("dd", {}, value, bar, parts, note)));
    }
  }

  tile(key, value, note) {
    say(this.tiles[key].value, value);
    say(this.tiles[key].note, note);
  }

  show() {
    this.connection();
    const { state } = this.store;
    if (!state) return;
    const { phase, round, rounds, open } = state;
    say(find("run"), state.run ?? "no run yet");
    const head = phase === "training" && rounds ? `Training, round ${count(round)} of ${count(rounds)}` : HEAD[phase] ?? "Waiting for the cloud";
    say(find("headline"), head);
    say(document.querySelector("title"), `${head} · EMO watch`);
    say(find("doing"), sentence(state.doing) || "Nothing has been heard of a cloud yet.");
    say(find("meaning"), MEANS[phase] ?? "As soon as a cloud tells of a run, it is shown here.");
    const over = phase && phase !== "waiting" && phase !== "training";
    const closed = over ? rounds : Math.max(0, round - 1) + (open?.asked ? (0.95 * open.answered) / open.asked : 0);
    const progress = find("progress");
    const share = rounds && phase && phase !== "waiting" ? Math.min(1, closed / rounds) : 0;
    if (progress.value !== share) progress.value = share;
    for (const step of find("steps").children) {
      mark(step, "aria-current", step.dataset.phase === phase ? "step" : null);
      mark(step, "data-over", phase && order(step.dataset.phase) < order(phase) ? "" : null);
    }
    this.accuracy(state);
    this.time(state, over);
    this.sent(state);
    const { counts } = state;
    this.tile("devices", counts.devices ? `${count(counts.alive)} of ${count(counts.devices)}` : "–", counts.devices ? counts.gone === counts.devices && phase === "done" ? "the run is over, they have gone" : `alive; ${count(counts.training)} training` : "none has been heard of yet");
    const { watcher } = state;
    say(find("about"), `emo watch ${watcher.version}, node ${watcher.id}, since ${moment(watcher.since)}${watcher.refused ? `; ${count(watcher.refused)} messages not shown` : ""}`);
  }

  accuracy({ accuracy, result, rounds, phase }) {
    const fl = accuracy ?? result?.fl ?? null, measured = this.store.history?.rounds;
    const at = measured && last(measured.round.filter((_, row) => measured.accuracy[row] != null));
    this.tile("fl", percent(fl), fl == null ? "measured after each round" : at ? `after round ${count(at)} of ${count(rounds)}` : "as measured last");
    const ensemble = result?.served ?? result?.bagged ?? null;
    const base = result?.fl ?? fl;
    const gain = ensemble != null && base != null ? 100 * (ensemble - base) : null;
    const note = gain == null ? (phase === "done" ? "was not measured" : "measured at the export") : `${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(1)} points against FL alone`;
    this.tile("ensemble", percent(ensemble), note);
  }

  time({ seconds_left: left, open, phase, result, time }, over) {
    if (phase === "done") return this.tile("left", "none", result?.seconds ? `the run took ${duration(result.seconds)}` : "the run is over");
    const passed = Math.max(0, this.store.now() - time); // the state is not sent for every second
    const shown = left == null ? "–" : duration(Math.max(0, left - passed));
    if (over) return this.tile("left", shown, "the rounds are over");
    if (!open) return this.tile("left", shown, phase === "training" ? "between two rounds" : "known after the first rounds");
    const age = duration(Math.max(0, this.store.now() - open.since));
    this.tile("left", shown, `${count(open.answered)} of ${count(open.asked)} answered, open ${age}`);
  }

  sent({ bytes: sent, sent: batches, phase }) {
    const all = sent.fl + sent.activations;
    // Reports are some seconds old, the cloud's sum is not: while short rounds go by the two do not fit.
    const fit = phase !== "training" || last(this.store.history?.rounds.seconds) > 15;
    const share = sent.sfl && fit ? all / sent.sfl : null;
    const by = share == null || !all ? "" : share < 1 ? `, ${(1 / share).toFixed(1)} × as much` : `, ${percent(1 / share)} of it`;
    this.tile("sent", all ? bytes(all) : "–", sent.sfl ? `split learning: ${bytes(sent.sfl)}${by || (fit ? "" : " so far")}` : "compared after the first round");
    if (!this.parts.firstChild) this.parts.append((this.fl = el("span", { class: "a" })), (this.activations = el("span", { class: "b" })));
    say(this.fl, `FL ${bytes(sent.fl || null)}`);
    say(this.activations, `activations ${bytes(sent.activations || null)}`);
    const scale = Math.max(all, sent.sfl ?? 0) || 1;
    this.bar.style.setProperty("--a", sent.fl / scale);
    this.bar.style.setProperty("--b", sent.activations / scale);
    this.tile("batches", batches.offered ? percent(batches.sent / batches.offered) : "–", batches.offered ? `${count(batches.sent)} of ${count(batches.offered)} offered` : "of those that devices offer");
  }

  connection() {
    const { state, away } = this.store;
    const watcher = state?.watcher, link = find("link");
    let is = "live", word = "live", text = "";
    if (away !== null) {
      [is, word] = ["away", `watcher away ${duration((Date.now() - away) / 1000)}`];
      text = `The watcher does not answer since ${moment(away / 1000)}. ${state ? "What you see is as of then; " : ""}this page tries again by itself.`;
    } else if (!state) {
      [is, word] = ["wait", "connecting"];
    } else if (watcher.source === "record") {
      [is, word] = ["record", "record"];
      text = "This is the record of a run, not a fleet as it is now.";
    } else if (!watcher.connected) {
      [is, word] = ["away", `broker away ${duration(this.store.now() - watcher.changed)}`];
      text = `The broker ${watcher.broker} is away since ${moment(watcher.changed)}. What you see is as of then; the watcher tries again by itself.`;
    }
    mark(link, "data-is", is);
    say(link, word);
    mark(find("banner"), "data-is", is);
    say(find("banner"), text);
  }
}

const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}` : "");
const PHASES = Object.keys(HEAD);
const order = (phase) => PHASES.indexOf(phase);
