/** Tools of Explore: each has a `root`, `update()`s when the images change, and `rest()`s when it is left. */

import { at } from "./api.js";
import { h, icon, spoken } from "./dom.js";
import { Drawn, Live, Prefill, Wanted, paint } from "./frames.js";

const LEG = 16; // steps from one image to the next
const FPS = 12;
const LATER = 2; // the priority of pictures that nobody has asked for yet
const SHOWN = 6; // seeds of the truncation's picture

export class Tool {
  constructor(explore) {
    this.explore = explore;
    this.live = new Live((problem) => explore.complain(problem));
    this.bar = h("progress", { class: "loading", max: 1, hidden: true, "aria-label": "Pictures made" });
    this.prefill = new Prefill((k) => this.came(k), (problem) => {
      this.bar.hidden = true;
      explore.complain(problem);
      if (problem === null) this.whole();
    });
  }

  get state() {
    return this.explore.state;
  }

  rest() {
    this.live.drop();
    this.prefill.drop();
    this.bar.hidden = true;
  }

  /** Orders all pictures that are not there yet, as one job. */
  fill(ends, body, wanted) {
    this.wanted = wanted;
    this.prefill.drop();
    this.whole(false);
    if (wanted.every((one) => one.made !== undefined) && !this.needsJob) return;
    Object.assign(this.bar, { hidden: false, value: 0 });
    // behind what somebody waits for, such as the one picture under the pointer
    const beside = { truncation: this.state.truncation, priority: LATER, ...body };
    this.prefill.start(this.state.model, ends, beside, wanted);
  }

  came() {
    this.bar.value = this.wanted.filter((one) => one.made !== undefined).length / this.wanted.length;
  }

  /** All pictures of the job are there; false: not any more. */
  whole() {}

  lookButton() {
    return h("button", { type: "button", disabled: true, onclick: () => this.shown && this.explore.look(this.shown) },
      icon("figure"), h("span", {}, "Look inside"));
  }
}

/** "60 % Pug, 40 % Beagle": what a picture lies between. */
export function inWords(explore, ends, weights) {
  const shares = new Map();
  ends.forEach((end, k) => {
    for (const [id, part] of Object.entries(end.class_weights ?? { [end.class_id]: 1 })) {
      const name = spoken(explore.classes[id].name);
      shares.set(name, (shares.get(name) ?? 0) + part * weights[k]);
    }
  });
  const parts = [...shares].filter(([, share]) => share > 0.005).sort((a, b) => b[1] - a[1]);
  if (parts.length === 1) return parts[0][0];
  const rounded = parts.map(([, share]) => Math.round(100 * share));
  rounded[0] += 100 - rounded.reduce((sum, share) => sum + share, 0); // together they are the whole
  return parts.map(([name], k) => `${rounded[k]} % ${name}`).join(", ");
}

/** From image to image along a slider. */
export class Morph extends Tool {
  name = "morph";
  title = "Morph";
  words = "Drag from one image to the next. Noise moves on a great circle, the class on a straight line.";
  used = Infinity;
  needsJob = true; // of which a film is made

  constructor(explore) {
    super(explore);
    this.canvas = h("canvas", { class: "picture", role: "img", width: 64, height: 64,
      onclick: ({ offsetX: x, offsetY: y }) => this.lookFrom(x / this.canvas.clientWidth, y / this.canvas.clientHeight),
      onkeydown: (event) => this.key(event) });
    this.point = [0.5, 0.5]; // whose attention is shown, in shares of the image's side
    this.attend = h("button", { type: "button", "aria-pressed": "false", onclick: () => this.toggle() },
      icon("eye"), h("span", {}, "Attention"));
    this.note = h("p", { class: "hint", hidden: true },
      "Click on the image, or move the point by the arrow keys: the heat shows where it attends, all along the way. " +
      "The film shows it too.");
    this.readout = h("p", { class: "readout" });
    this.slider = h("input", { type: "range", min: "0", value: "0", "aria-label": "Way from image to image",
      oninput: () => this.draw() });
    this.ticks = h("div", { class: "ticks", "aria-hidden": "true" });
    this.playButton = h("button", { type: "button", onclick: () => this.play(!this.playing) },
      icon("play"), h("span", {}, "Play"));
    this.loop = h("input", { type: "checkbox", onchange: () => this.update() });
    this.loopLabel = h("label", { class: "check" }, this.loop, "On to the first again");
    this.lookAt = this.lookButton();
    this.format = h("select", { "aria-label": "Format of the film", onchange: () => this.offerFilm() },
      ...Object.entries({ webp: "WebP", gif: "GIF", apng: "APNG", mp4: "MP4", strip: "Strip" }).map(([value, name]) =>
        h("option", { value }, name)));
    this.film = h("a", { class: "button", "data-keyed": "", "aria-disabled": "true" },
      icon("download"), h("span", {}, "Film"));
    this.root = h("div", { class: "morph" },
      h("div", { class: "frame" }, this.canvas, this.bar), this.slider, this.ticks, this.readout, this.note,
      h("div", { class: "doing" }, this.playButton, this.loopLabel, this.attend, this.lookAt,
        h("span", { class: "joined" }, this.format, this.film)));
  }

  get legs() {
    const { ends } = this.state;
    return this.loop.checked && ends.length > 2 ? ends.length : ends.length - 1;
  }

  /** Of each image so far along the way; the same as jobs.job.JobSpec.shares. */
  weights(k) {
    const weights = this.state.ends.map(() => 0);
    const [leg, rest] = [Math.floor(k / LEG), k % LEG];
    weights[leg % weights.length] = 1 - rest / LEG;
    weights[(leg + 1) % weights.length] += rest / LEG;
    return weights;
  }

  update() {
    const { model, ends, truncation } = this.state;
    this.play(false);
    if (ends.length < 2) return void this.explore.add();
    this.loopLabel.hidden = ends.length < 3; // two are there and back anyway
    const round = this.loop.checked && ends.length > 2;
    const count = LEG * this.legs + (round ? 0 : 1);
    this.slider.max = String(count - 1);
    const marks = round ? [...ends, ends[0]] : ends;
    this.ticks.replaceChildren(...marks.map((end) => h("span", {}, spoken(this.explore.classes[end.class_id].name))));
    const wanted = Array.from({ length: count }, (_, k) => Wanted.between(model, ends, this.weights(k), truncation));
    this.attend.hidden = model.attention.length === 0;
    this.fill(ends, { frames: count, loop: round, attention: this.attends }, wanted);
    this.draw();
  }

  /** Whether the picture shows where a point attends. */
  get attends() {
    return this.attend.getAttribute("aria-pressed") === "true" && !this.attend.hidden;
  }

  toggle() {
    this.attend.setAttribute("aria-pressed", String(!this.attends));
    this.note.hidden = !this.attends;
    this.canvas.tabIndex = this.attends ? 0 : -1;
    this.update(); // a job makes its maps with its images, or none
  }

  lookFrom(x, y) {
    if (!this.attends) return;
    this.point = [x, y].map((share) => Math.min(Math.max(share, 0), 1 - 1e-6));
    this.offerFilm();
    this.draw();
  }

  key(event) {
    const by = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    if (by === undefined || !this.attends) return;
    event.preventDefault();
    this.lookFrom(...this.point.map((share, axis) => share + by[axis] / 16));
  }

  /** The point in pixels of the image, "x,y". */
  get pixel() {
    return this.point.map((share) => Math.floor(share * this.state.model.resolution)).join(",");
  }

  came(k) {
    super.came(k);
    if (k === Number(this.slider.value)) this.draw();
  }

  draw() {
    const k = Number(this.slider.value);
    const words = inWords(this.explore, this.state.ends, this.weights(k));
    this.readout.textContent = words;
    this.slider.setAttribute("aria-valuetext", words);
    this.canvas.setAttribute("aria-label", this.attends ? `${words}; where ${this.pixel} attends` : words);
    this.live.want(this.wanted[k], (made) => {
      this.shown = made;
      this.lookAt.disabled = false;
      if (!this.attends || this.painted?.made === undefined) paint(this.canvas, made.bitmap);
      if (this.attends) this.drawAttention(k);
    });
  }

  drawAttention(k) {
    const { job } = this.prefill;
    if (job?.state !== "succeeded") return;
    const url = at(job.links.attention);
    url.search = new URLSearchParams({ image: k, view: "overlay", points: this.pixel, size: 384 });
    this.painted = new Drawn(url.href);
    this.live.want(this.painted, ({ bitmap }) => this.attends && paint(this.canvas, bitmap));
  }

  play(on) {
    this.playing = on;
    this.playButton.replaceChildren(icon(on ? "pause" : "play"), h("span", {}, on ? "Pause" : "Play"));
    clearTimeout(this.timer);
    if (!on) return;
    let step = 1;
    const next = () => {
      const last = Number(this.slider.max);
      let k = Number(this.slider.value) + step;
      if (this.loop.checked && this.legs > 1) k %= last + 1;
      else if (k < 0 || k > last) k += 2 * (step = -step);
      // a picture that is not there yet is waited for
      if (this.wanted[k].made !== undefined) {
        this.slider.value = String(k);
        this.draw();
      }
      this.timer = setTimeout(next, 1000 / FPS);
    };
    next();
  }

  rest() {
    this.play(false);
    super.rest();
  }

  whole(there = true) {
    this.film.setAttribute("aria-disabled", String(!there));
    this.film.removeAttribute("href");
    if (!there) return;
    this.offerFilm();
    if (this.attends) this.draw();
  }

  offerFilm() {
    const { job } = this.prefill;
    if (job === null || job.state !== "succeeded") return;
    const url = at(job.links.film);
    const there = this.loop.checked && this.state.ends.length > 2;
    const how = this.attends ? { attention: this.pixel } : { resample: "lanczos" };
    const packed = this.format.value === "webp" ? { quality: 90 } : {}; // lossless it is ten times as large
    const shown = { format: this.format.value, size: 256, ...how, ...packed };
    url.search = new URLSearchParams(shown.format === "strip" ? shown : { ...shown, fps: FPS, bounce: !there });
    this.film.href = url.href;
    this.film.download = `${job.spec.class_name}.${{ apng: "png", strip: "png" }[shown.format] ?? shown.format}`;
  }
}

/** The same seeds at each truncation. */
export class Truncation extends Tool {
  name = "truncation";
  title = "Truncation";
  words = "Move the truncation: the same seeds from what is typical of the class to all that the model can make.";
  used = 1;
  ownTruncation = true;

  constructor(explore) {
    super(explore);
    this.canvas = h("canvas", { class: "picture wide", role: "img", width: 194, height: 128 });
    this.value = h("output", {});
    this.slider = h("input", {
      type: "range", min: "0.05", max: "1", step: "0.05", value: "0.7", oninput: () => this.draw(),
      onchange: () => explore.setTruncation(this.slider.value),
    });
    this.root = h("div", { class: "truncation" }, h("div", { class: "frame" }, this.canvas),
      h("label", {}, "Truncation ", this.value, this.slider));
  }

  update() {
    this.slider.value = String(this.state.truncation);
    this.draw();
  }

  draw() {
    const { model, ends } = this.state;
    const truncation = Number(this.slider.value);
    this.value.textContent = this.slider.value;
    const name = spoken(this.explore.classes[ends[0].class_id].name);
    this.canvas.setAttribute("aria-label", `${SHOWN} images of ${name} at truncation ${truncation}`);
    this.live.want(Wanted.row(model, ends[0], SHOWN, truncation), ({ bitmap }) => paint(this.canvas, bitmap));
  }
}
