// Try it: an image, dropped or drawn, goes to the endpoint; each member of the ensemble answers.

import { post } from "./connection.js";
import { el, find, mark, percent, say } from "./text.js";

const SIDE = 280; // pixels of what is drawn
const PEN = 26;
const BROAD = 42; // of what is sent, 0.15 of its side: with thinner ones 1 and 7 are lost in 8x8 pixels, with broader ones 8 and 9
const STROKES = 2000; // points of one, and strokes
const BEST = 3; // labels of each answer

export class TryIt {
  constructor(store) {
    this.store = store;
    this.canvas = el("canvas", { width: SIDE, height: SIDE, id: "draw", role: "img", "aria-label": "Draw here by mouse, pen or finger; by keyboard, choose an image file instead" });
    this.clear();
    const button = (name, click, more = {}) => el("button", { type: "button", click, ...more }, name);
    const file = el("input", { type: "file", accept: "image/*", id: "try-file", change: () => file.files[0] && this.ask(file.files[0], file.files[0].name) });
    this.told = el("p", { class: "note", role: "status" }, "Draw a digit for the demo’s model, or give it an image: choose, drop or paste.");
    this.answers = el("div", { class: "answers" });
    find("try-body").append(
      el("div", { class: "draw" }, this.canvas, el("div", { class: "buttons" }, button("Ask", () => this.send(), { class: "strong", id: "try-ask" }), button("Clear", () => this.clear(true), { id: "try-clear" }), el("label", { class: "file" }, "Image file", file))),
      el("div", {}, this.told, this.answers),
    );
    this.draw();
    const place = find("try");
    place.addEventListener("dragover", (event) => {
      event.preventDefault();
      mark(place, "data-over", "");
    });
    place.addEventListener("dragleave", () => mark(place, "data-over", null));
    place.addEventListener("drop", (event) => {
      event.preventDefault();
      mark(place, "data-over", null);
      const [given] = event.dataTransfer.files;
      if (given) this.ask(given, given.name);
    });
    document.addEventListener("paste", (event) => {
      const given = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
      if (given && !place.hidden) this.ask(given, "the pasted image");
    });
  }

  show() {
    const endpoint = this.store.state?.endpoint;
    const hidden = endpoint == null;
    if (find("try").hidden !== hidden) find("try").hidden = find("to-try").hidden = hidden;
    if (hidden) return;
    const early = this.store.state.phase !== "done" ? "its model is served after the export" : endpoint.text || "the endpoint does not answer yet";
    say(find("try-model"), endpoint.alive ? `${endpoint.name}${endpoint.version ? `, version ${endpoint.version}` : ""}` : early);
    for (const part of ["try", "to-try"]) mark(find(part), "data-alive", endpoint.alive ? "" : null);
  }

  clear(told) {
    clearTimeout(this.timer);
    this.strokes = [];
    const pen = black(this.canvas);
    pen.fillStyle = "#9aa7b5";
    pen.font = "24px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.fillText("draw here", SIDE / 2, SIDE / 2 + 8);
    if (!told) return;
    this.asked = null;
    this.answers.replaceChildren();
    say(this.told, "Draw a digit for the demo’s model, or give it an image: choose, drop or paste.");
  }

  draw() {
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      clearTimeout(this.timer);
      if (!this.strokes.length) black(this.canvas);
      this.canvas.setPointerCapture(event.pointerId);
      this.strokes = [...this.strokes.slice(-STROKES), [place(event)]];
      line(this.canvas, this.strokes.at(-1), PEN);
      event.preventDefault();
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const stroke = this.strokes.at(-1);
      if (!this.canvas.hasPointerCapture(event.pointerId) || !stroke || stroke.length > STROKES) return;
      stroke.push(place(event));
      line(this.canvas, stroke.slice(-2), PEN);
    });
    this.canvas.addEventListener("pointerup", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.send(), 700); // a second stroke may follow
    });
  }

  // What is drawn, as the digits lie that the demo's model was trained on: large, in the middle, by a broad pen.
  send() {
    clearTimeout(this.timer);
    const points = this.strokes.flat();
    if (!points.length) return say(this.told, "Nothing is drawn yet.");
    const [across, down] = [0, 1].map((axis) => points.map((point) => point[axis]));
    const [left, right, top, bottom] = [Math.min(...across), Math.max(...across), Math.min(...down), Math.max(...down)];
    const scale = (SIDE - BROAD) / Math.max(right - left, bottom - top, SIDE / 8);
    const sent = el("canvas", { width: SIDE, height: SIDE });
    black(sent);
    for (const stroke of this.strokes) {
      line(sent, stroke.map(([x, y]) => [SIDE / 2 + (x - (left + right) / 2) * scale, SIDE / 2 + (y - (top + bottom) / 2) * scale]), BROAD);
    }
    sent.toBlob((blob) => this.ask(blob, "what is drawn"), "image/png");
  }

  async ask(image, name) {
    const asked = (this.asked = {});
    say(this.told, `Asks the endpoint about ${name} ...`);
    try {
      const told = await post("api/try", image);
      if (this.asked !== asked) return;
      say(this.told, `${name}, by ${told.model} version ${told.version}${told.note ? ` (${told.note})` : ""}:`);
      this.answers.replaceChildren(...[...told.answers].sort((a, b) => (b.name === "ensemble") - (a.name === "ensemble")).map(answer));
    } catch (error) {
      if (this.asked !== asked) return;
      this.answers.replaceChildren();
      say(this.told, `No answer about ${name}: ${error.message}`);
    }
  }
}

function black(canvas) {
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, SIDE, SIDE);
  return pen;
}

function line(canvas, points, width) {
  const pen = canvas.getContext("2d");
  pen.strokeStyle = "#fff";
  pen.lineWidth = width;
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(...points[0]);
  for (const point of points.length > 1 ? points.slice(1) : points) pen.lineTo(...point);
  pen.stroke();
}

function answer({ name, labels }) {
  const [best] = labels;
  return el("div", { class: name === "ensemble" ? "answer ensemble" : "answer" },
    el("h3", {}, name), el("strong", { class: "label" }, best?.[0] ?? "–"),
    el("ul", {}, ...labels.slice(0, BEST).map(([label, share]) => {
      const bar = el("i", { "aria-hidden": "true" });
      bar.style.setProperty("--share", Math.min(1, Math.max(0, share)));
      return el("li", {}, el("span", {}, label), bar, el("b", {}, percent(share)));
    })));
}
