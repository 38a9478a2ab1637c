// Try it: an image, dropped or drawn, goes to the endpoint; each member of the ensemble answers.

import { post } from "./connection.js";
import { el, find, mark, percent, say } from "./text.js";

const SIDE = 280; // pixels of what is drawn
const PEN = 26;
const BEST = 3; // labels of each answer

export class TryIt {
  constructor(store) {
    this.store = store;
    this.drawn = false;
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
    say(find("try-model"), endpoint.alive ? `${endpoint.name}${endpoint.version ? `, version ${endpoint.version}` : ""}` : `${endpoint.name}: the endpoint does not answer yet`);
    mark(find("try"), "data-alive", endpoint.alive ? "" : null);
  }

  clear(told) {
    const pen = this.canvas.getContext("2d");
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, SIDE, SIDE);
    pen.fillStyle = "#9aa7b5";
    pen.font = "24px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.fillText("draw here", SIDE / 2, SIDE / 2 + 8);
    this.drawn = false;
    this.box = [SIDE, SIDE, 0, 0];
    if (!told) return;
    this.answers.replaceChildren();
    say(this.told, "Draw a digit for the demo’s model, or give it an image: choose, drop or paste.");
  }

  draw() {
    const pen = this.canvas.getContext("2d");
    let from = null, timer;
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
    };
    const line = (event) => {
      const to = place(event);
      if (!this.drawn) {
        pen.fillStyle = "#000";
        pen.fillRect(0, 0, SIDE, SIDE);
      }
      pen.strokeStyle = "#fff";
      pen.lineWidth = PEN;
      pen.lineCap = pen.lineJoin = "round";
      pen.beginPath();
      pen.moveTo(...(from ?? to));
      pen.lineTo(...to);
      pen.stroke();
      const [left, top, right, bottom] = this.box;
      this.box = [Math.min(left, to[0]), Math.min(top, to[1]), Math.max(right, to[0]), Math.max(bottom, to[1])];
      from = to;
      this.drawn = true;
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      clearTimeout(timer);
      this.canvas.setPointerCapture(event.pointerId);
      from = null;
      line(event);
      event.preventDefault();
    });
    this.canvas.addEventListener("pointermove", (event) => this.canvas.hasPointerCapture(event.pointerId) && line(event));
    this.canvas.addEventListener("pointerup", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.send(), 700); // a second stroke may follow
    });
  }

  // What is drawn, as the digits lie that the model was trained on: as tall as the picture, in its middle.
  send() {
    if (!this.drawn) return say(this.told, "Nothing is drawn yet.");
    const [left, top, right, bottom] = this.box, room = PEN / 2;
    const side = Math.max(right - left, bottom - top) + 2 * room;
    const sent = el("canvas", { width: SIDE, height: SIDE }), pen = sent.getContext("2d");
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, SIDE, SIDE);
    pen.drawImage(this.canvas, (left + right - side) / 2, (top + bottom - side) / 2, side, side, 0, 0, SIDE, SIDE);
    sent.toBlob((blob) => this.ask(blob, "what is drawn"), "image/png");
  }

  async ask(image, name) {
    const asked = (this.asked = {});
    say(this.told, `Asks the endpoint about ${name} ...`);
    try {
      const told = await post("api/try", image);
      if (this.asked !== asked) return;
      say(this.told, `${name}, by ${told.model} version ${told.version}:`);
      this.answers.replaceChildren(...[...told.answers].sort((a, b) => (b.name === "ensemble") - (a.name === "ensemble")).map(answer));
    } catch (error) {
      if (this.asked !== asked) return;
      this.answers.replaceChildren();
      say(this.told, `No answer about ${name}: ${error.message}`);
    }
  }
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
