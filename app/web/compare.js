/** Two images side by side: one pointer moves the ring on both, and each shows where it attended from there. */

import { Problem, at, ended, source } from "./api.js";
import { fetchMap } from "./attention.js";
import { $, announce, h, icon, percent, spoken } from "./dom.js";
import { drawHeat, drawMarks } from "./marks.js";
import { toast, dismiss } from "./toast.js";

const PATIENCE = 20; // more tries for a map that is not ready yet

export class Comparison {
  /** `modelOf(name)` is a model of the service, or undefined. */
  constructor({ inspector, modelOf }) {
    this.dialog = $("#comparison");
    this.held = null; // [job, k]: the image that waits for another
    this.point = { x: 0.5, y: 0.5 };
    this.sides = [0, 1].map(() => new Side(modelOf, this));
    $("#pair").append(...this.sides.map(({ root }) => root));

    $("#compare").addEventListener("click", () => {
      const [job, k] = [inspector.job, inspector.k];
      inspector.dialog.close();
      this.hold(job, k);
    });
    $("#close-comparison").addEventListener("click", () => this.dialog.close());
    $("#swap").addEventListener("click", () => this.swap());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // the backdrop, not the content
    });
    this.dialog.addEventListener("close", () => this.sides.forEach((side) => side.leave()));
    for (const radio of this.dialog.querySelectorAll("[name=pair-view]")) {
      radio.addEventListener("change", () => this.draw());
    }
    $("#pair-opacity").addEventListener("input", () => this.draw());
  }

  /** Keeps an image in mind: the one opened next stands beside it. */
  hold(job, k) {
    this.held = [job, k];
    const words = `${spoken(job.spec.class_name)}, image ${k + 1}: now open the image to compare it with.`;
    const forget = () => (this.held = null);
    toast(words, "Cancel", forget, { focus: false, passed: forget });
  }

  /** Whether an image that is opened belongs beside the one held; shows both then. */
  takes(job, k) {
    if (this.held === null) return false;
    const [first, one] = this.held;
    this.held = null;
    dismiss();
    this.dialog.showModal();
    this.sides[0].show(first, one);
    this.sides[1].show(job, k);
    this.sides[0].stage.focus();
    return true;
  }

  swap() {
    const [one, other] = this.sides.map(({ job, k }) => [job, k]);
    this.sides[0].show(...other);
    this.sides[1].show(...one);
    announce("Swapped");
  }

  moveTo(point) {
    this.point = point;
    this.draw();
  }

  /** Draws with the next frame: once a frame, however fast the pointer moves. */
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      const view = $("[name=pair-view]:checked").value;
      $("#pair-opacity").disabled = view !== "overlay";
      for (const side of this.sides) side.draw(this.point, view, Number($("#pair-opacity").value));
    });
  }
}

/** One of the two images. */
class Side {
  constructor(modelOf, whole) {
    this.modelOf = modelOf;
    this.whole = whole;
    this.maps = new Map(); // by link
    this.map = null;
    this.picture = h("img", { alt: "", draggable: false });
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.status = h("p", { class: "stage-status", hidden: true });
    this.stage = h("div", {
      class: "stage",
      tabIndex: 0,
      role: "application",
      "aria-roledescription": "attention map",
      "aria-label": "Image to compare",
      "aria-describedby": "pair-help",
    }, this.picture, this.canvas, this.status);
    this.title = h("h3", {});
    this.facts = h("p", { class: "facts" });
    this.readout = h("p", { class: "readout" });
    this.layers = h("select", { "aria-label": "Attention site", hidden: true, onchange: () => this.load() });
    const turn = (name, words, by) =>
      h("button", { type: "button", class: "mark", onclick: () => this.step(by) }, icon(name), h("span", { class: "unseen" }, words));
    this.previous = turn("previous", "Previous image", -1);
    this.next = turn("next", "Next image", 1);
    this.root = h("section", { class: "side" },
      h("header", {}, h("div", {}, this.title, this.facts), this.previous, this.next),
      this.stage, this.layers, this.readout);
    this.stage.addEventListener("pointerdown", (event) => this.press(event));
    this.stage.addEventListener("pointermove", (event) => this.hover(event));
    this.stage.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.whole.draw()).observe(this.stage);
  }

  show(job, k) {
    Object.assign(this, { job, k, map: null });
    const { spec } = job;
    const name = spoken(spec.class_name);
    const what = `${name}, image ${k + 1} of ${spec.count}`;
    this.title.textContent = name;
    this.facts.textContent = `Image ${k + 1} of ${spec.count} · seed ${spec.seed} · ${spoken(spec.model)}`;
    this.root.setAttribute("aria-label", what);
    this.stage.setAttribute("aria-label", what);
    this.picture.alt = what;
    this.picture.removeAttribute("src"); // not the one before, while this one comes
    this.previous.disabled = k === 0;
    this.next.disabled = k >= spec.count - 1 || job.state !== "succeeded";
    source(job.links.images[k]).then(
      (address) => this.job === job && this.k === k && (this.picture.src = address),
      (problem) => this.say(problem.message),
    );
    const sites = this.modelOf(spec.model)?.attention;
    const widest = [...(sites ?? [])].sort((a, b) => Math.abs(b.gamma) - Math.abs(a.gamma));
    if (this.layers.dataset.model !== spec.model_hash) {
      this.layers.dataset.model = spec.model_hash;
      this.layers.replaceChildren(...widest.map((site) => h("option", { value: site.name }, `Layer ${site.name}`)));
    }
    this.layers.hidden = widest.length < 2;
    this.readout.textContent = "";
    if (sites?.length === 0) this.say("This model has no attention layer.");
    else this.load();
    this.whole.draw();
  }

  step(by) {
    this.show(this.job, this.k + by);
    announce(`Image ${this.k + 1} of ${this.job.spec.count}`);
    const pressed = by < 0 ? this.previous : this.next;
    if (pressed.disabled) this.stage.focus(); // a disabled button loses the focus
  }

  leave() {
    this.fetching?.abort();
  }

  /** Fetches the map of the image and layer, unless it was seen before. */
  async load() {
    this.fetching?.abort();
    const fetching = (this.fetching = new AbortController());
    const url = at(this.job.links.attention);
    url.pathname += "/map";
    const layer = this.layers.value;
    url.search = new URLSearchParams({ image: this.k, rounded: true, ...(layer ? { layer } : {}) });
    this.map = null;
    this.say("Looking at what it attended to…");
    try {
      for (let attempt = 0; !this.maps.has(url.href); attempt++) {
        try {
          if (!ended(this.job)) throw new Problem("Its map can be made as soon as the whole job is finished.");
          this.maps.set(url.href, await fetchMap(url, fetching.signal));
        } catch (error) {
          if (!(error instanceof Problem) || error.retryAfter === null || attempt === PATIENCE) throw error;
          await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
          if (fetching.signal.aborted) return;
        }
      }
      if (fetching.signal.aborted) return;
      this.map = this.maps.get(url.href);
      this.say(null);
      this.whole.draw();
    } catch (error) {
      if (!fetching.signal.aborted) this.say(error.message);
    }
  }

  say(words) {
    this.status.hidden = words === null;
    this.status.textContent = words ?? "";
  }

  place(event) {
    const box = this.stage.getBoundingClientRect();
    const inside = (value) => Math.min(Math.max(value, 0), 1 - 1e-6);
    return { x: inside((event.clientX - box.left) / box.width), y: inside((event.clientY - box.top) / box.height) };
  }

  press(event) {
    if (event.button !== 0) return;
    this.stage.setPointerCapture(event.pointerId);
    this.whole.moveTo(this.place(event));
  }

  hover(event) {
    if (event.pointerType !== "mouse" && !this.stage.hasPointerCapture(event.pointerId)) return;
    this.whole.moveTo(this.place(event));
  }

  key(event) {
    if (this.map === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const [height, width] = this.map.query_grid;
    const { column, row } = this.map.cell(this.whole.point.x, this.whole.point.y);
    const stride = event.shiftKey ? 4 : 1;
    const along = (value, size) => (Math.min(Math.max(value, 0), size - 1) + 0.5) / size;
    this.whole.moveTo({ x: along(column + by[0] * stride, width), y: along(row + by[1] * stride, height) });
    requestAnimationFrame(() =>
      announce(this.whole.sides.map((side) => `${side.title.textContent}: ${side.readout.textContent}`).join(" "), 400));
  }

  draw(point, view, strength) {
    const scale = devicePixelRatio;
    const size = Math.round(this.stage.clientWidth * scale);
    if (this.canvas.width !== size) this.canvas.width = this.canvas.height = size;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, size, size);
    if (this.map === null) return;
    drawHeat(context, this.map, point, view, strength);
    drawMarks(context, this.map, point, "#ffffff", 8);
    const look = this.map.look(this.map.cell(point.x, point.y));
    const side = this.picture.naturalWidth || 1;
    const pixels = ({ x, y }) => `${Math.floor(x * side)}, ${Math.floor(y * side)}`;
    this.readout.textContent =
      `From pixel ${pixels(point)} it attends most to ${pixels(look)}: ${percent(look.most)} there. ` +
      `Half of it lies in ${look.half} of ${this.map.keys} cells.`;
  }
}
