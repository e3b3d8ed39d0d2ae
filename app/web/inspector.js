/** The inspector: one image, large, and where the point under the pointer attended. */

import { Problem, at, ended, source } from "./api.js";
import { fetchMap, widest } from "./attention.js";
import { $, announce, copy, flash, h, percent, spoken } from "./dom.js";
import { round, showGate } from "./gate.js";
import { GLANCES, drawGlance, mean, tellGlance } from "./glance.js";
import { linkTo } from "./link.js";
import { drawHeat, drawMarks, drawRing } from "./marks.js";
import { Pins } from "./pins.js";

const PATIENCE = 20; // more tries for a map that is not ready yet

export class Inspector {
  /**
   * `modelOf(name)` is a model of the service, or undefined. `moved(job, k, {pins, layer})` is called when
   * another image, pin or layer is shown, `closed()` when the dialog has closed.
   */
  constructor({ modelOf, moved, closed }) {
    this.dialog = $("#inspector");
    this.stage = $("#stage");
    this.picture = $("#picture");
    this.canvas = $("#overlay");
    this.modelOf = modelOf;
    this.moved = moved;
    this.maps = new Map(); // by link; kept as long as the page lives
    this.map = null;
    this.point = { x: 0.5, y: 0.5 };
    this.pins = new Pins((point) => this.moveTo(point));
    this.resting = true; // until somebody moves, no heat lies over the image

    this.dialog.addEventListener("close", () => {
      this.fetching?.abort();
      closed();
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // the backdrop, not the content
    });
    this.dialog.addEventListener("keydown", (event) => this.turn(event));
    $("#close").addEventListener("click", () => this.dialog.close());
    $("#previous").addEventListener("click", () => this.step(-1));
    $("#next").addEventListener("click", () => this.step(1));

    this.stage.addEventListener("pointerdown", (event) => this.press(event));
    this.stage.addEventListener("pointermove", (event) => this.hover(event));
    this.stage.addEventListener("pointerup", (event) => this.release(event));
    this.stage.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.stage);
    this.picture.addEventListener("load", () => this.drawPins());

    for (const radio of this.dialog.querySelectorAll("[name=view]")) {
      radio.addEventListener("change", () => {
        this.resting = false;
        this.drawPins();
        if (this.view in GLANCES) announce(() => $("#readout").textContent, 400);
      });
    }
    $("#opacity").addEventListener("input", () => this.moveTo(this.point));
    $("#layer").addEventListener("change", () => {
      this.load();
      this.tell();
    });
    $("#clear-pins").addEventListener("click", () => {
      this.pins.set([]);
      this.drawPins();
      this.tell();
      this.stage.focus();
    });
    $("#copy-link").addEventListener("click", () =>
      this.give($("#copy-link"), linkTo(this.job, this.k, this.looked).href));
    $("#copy-spec").addEventListener("click", () => this.give($("#copy-spec"), $("#spec").textContent));
  }

  /**
   * Opens image `k` of a job, `done` of whose images are made. notice: words above the rest; null: none.
   * pins: points that are pinned. layer: null: the one chosen, or the usual one.
   */
  open(job, k, done, { notice = null, pins = [], layer = null } = {}) {
    $("#inspector-notice").hidden = notice === null;
    $("#inspector-notice").textContent = notice ?? "";
    const { spec } = job;
    Object.assign(this, { job, k, done, map: null });
    this.pins.set(pins);
    const name = spoken(spec.class_name);
    $("#inspector-title").textContent = name;
    const index = spec.start > 0 && !spec.morph ? ` · index ${spec.start + k}` : "";
    $("#inspector-facts").textContent = `Image ${k + 1} of ${spec.count}${index} · seed ${spec.seed}`;
    $("#previous").disabled = k === 0;
    $("#next").disabled = k >= done - 1;
    this.stage.setAttribute("aria-label", `${name}, image ${k + 1}`);
    this.picture.alt = `${name}, image ${k + 1} of ${spec.count}`;
    this.showPicture();

    const file = `${spec.class_name}-${spec.seed}-${spec.morph ? k : (spec.start ?? 0) + k}.png`;
    Object.assign($("#download"), { href: at(job.links.images[k]), download: file });
    $("#job-link").href = at(job.links.self);
    $("#spec").textContent = specText(spec, k);

    const sites = this.modelOf(spec.model)?.attention;
    this.offerLayers(spec.model_hash, sites ?? []);
    if (layer !== null) $("#layer").value = layer;
    if (!this.dialog.open) {
      this.resting = true;
      this.dialog.showModal();
      this.stage.focus();
    }
    this.say(null);
    this.hasSites = sites === undefined || sites.length > 0;
    if (!this.hasSites) {
      this.without(
        "This model has no attention layer, so there is no map to show. Its images are made by convolutions alone.",
      );
    } else {
      this.load();
    }
  }

  offerLayers(model, sites) {
    const layers = $("#layer");
    if (layers.dataset.model !== model) {
      layers.dataset.model = model;
      layers.replaceChildren(...sites.map((site) =>
        h("option", { value: site.name }, `${site.name} (γ ${round(site.gamma)})`)));
      if (sites.length > 0) layers.value = widest(sites).name;
    }
    $("#layer-field").hidden = layers.options.length < 2;
  }

  showPicture() {
    const { job, k } = this;
    source(job.links.images[k]).then(
      (address) => this.job.id === job.id && this.k === k && (this.picture.src = address),
      (problem) => this.without(problem.message),
    );
  }

  /** There is news of a job, which may be the one that is open. */
  grown(job, done) {
    if (!this.dialog.open || job.id !== this.job.id) return;
    const waited = !ended(this.job);
    Object.assign(this, { job, done });
    // the images that `done` counts need not include the one shown
    if (this.picture.complete && this.picture.naturalWidth === 0) this.showPicture();
    $("#next").disabled = this.k >= done - 1;
    if (waited && ended(job) && this.hasSites) this.load();
  }

  step(by) {
    const k = this.k + by;
    if (k < 0 || k >= this.done) return;
    this.open(this.job, k, this.done, { pins: this.pins.all });
    announce(`Image ${k + 1} of ${this.job.spec.count}`);
    this.tell();
  }

  /** What a link to the image has beside it: the pins in pixels, and the layer where there are several. */
  get looked() {
    const size = this.modelOf(this.job.spec.model)?.resolution ?? this.picture.naturalWidth;
    const layers = $("#layer");
    return { pins: this.pins.inPixels(size), layer: layers.options.length > 1 ? layers.value : null };
  }

  tell() {
    this.moved(this.job, this.k, this.looked);
  }

  /** Shows the map of the image and layer, fetched unless it was seen before. */
  async load() {
    this.fetching?.abort();
    const fetching = (this.fetching = new AbortController());
    const link = this.attentionLink("/map", { image: this.k, rounded: true });
    this.map = null;
    this.with();
    this.draw();
    if (!ended(this.job)) return this.say("Its map can be made as soon as the whole job is finished.");
    const slow = setTimeout(() => this.say("Looking at what it attended to…"), 150);
    try {
      for (let attempt = 0; !this.maps.has(link); attempt++) {
        try {
          this.maps.set(link, await fetchMap(link, fetching.signal));
        } catch (error) {
          // not there yet, or the service is away: `retryAfter` says when to ask again
          if (!(error instanceof Problem) || error.retryAfter === null || attempt === PATIENCE) throw error;
          this.say(`${error.message} Trying again.`);
          await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
          if (fetching.signal.aborted) return;
        }
      }
      if (fetching.signal.aborted) return;
      this.map = this.maps.get(link);
      this.say(null);
      showGate(this.map);
      this.drawPins();
    } catch (error) {
      if (!fetching.signal.aborted) this.without(error.message);
    } finally {
      clearTimeout(slow);
    }
  }

  attentionLink(path, query) {
    const url = at(this.job.links.attention);
    url.pathname += path;
    const layer = $("#layer").value;
    url.search = new URLSearchParams({ ...query, ...(layer ? { layer } : {}) });
    return url.href;
  }

  say(words) {
    const status = $("#stage-status");
    status.hidden = words === null;
    status.textContent = words ?? "";
  }

  without(why) {
    this.say(null);
    $("#inspector-problem").textContent = why;
    $("#inspector-problem").hidden = false;
    $("#attention").hidden = $("#under").hidden = $("#figure").hidden = true;
  }

  with() {
    $("#inspector-problem").hidden = true;
    $("#attention").hidden = $("#under").hidden = $("#figure").hidden = false;
    $("#gate").hidden = this.map === null;
  }

  // --- moving the point -------------------------------------------------

  place(event) {
    const box = this.stage.getBoundingClientRect();
    const inside = (value) => Math.min(Math.max(value, 0), 1 - 1e-6);
    return { x: inside((event.clientX - box.left) / box.width), y: inside((event.clientY - box.top) / box.height) };
  }

  hover(event) {
    // a browser says that the pointer moved when a dialog has opened under it
    if (this.resting && event.movementX === 0 && event.movementY === 0) return;
    if (event.pointerType !== "mouse" && !this.stage.hasPointerCapture(event.pointerId)) return;
    this.moveTo(this.place(event));
  }

  press(event) {
    if (event.button !== 0) return;
    this.stage.setPointerCapture(event.pointerId);
    this.pressed = { x: event.clientX, y: event.clientY };
    this.moveTo(this.place(event));
  }

  release(event) {
    if (this.pressed === undefined) return;
    // a drag only moves the point; a click or tap pins it
    const moved = Math.hypot(event.clientX - this.pressed.x, event.clientY - this.pressed.y);
    this.pressed = undefined;
    if (moved < 6 && event.button === 0) this.pin();
  }

  key(event) {
    if (this.map === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (by !== undefined) {
      event.preventDefault();
      const [height, width] = this.map.query_grid;
      const { column, row } = this.map.cell(this.point.x, this.point.y);
      const stride = event.shiftKey ? 4 : 1;
      const along = (value, size) => (Math.min(Math.max(value, 0), size - 1) + 0.5) / size;
      this.moveTo({ x: along(column + by[0] * stride, width), y: along(row + by[1] * stride, height) });
      announce(() => $("#readout").textContent, 400);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.pin();
    }
  }

  turn(event) {
    if (event.key === "PageUp") this.step(-1);
    else if (event.key === "PageDown") this.step(1);
    else return;
    event.preventDefault();
  }

  moveTo(point) {
    this.point = point;
    this.resting = false;
    this.draw();
  }

  /** Pins the point, or removes the pin in the same cell. */
  pin() {
    if (this.map === null) return;
    announce(this.pins.toggle(this.map, this.point));
    this.drawPins();
    this.tell();
  }

  drawPins() {
    const { view } = this;
    $("#opacity").disabled = !["overlay", "mean", "flow"].includes(view);
    this.pins.draw(this.map, this.picture, view in GLANCES ? "overlay" : view, this.strength);
    // the service's figure shows the pinned points, in pixels of the image; or what is seen at a glance
    const points = this.pins.inPixels(this.picture.naturalWidth);
    const shown = view in GLANCES ? { view: GLANCES[view], size: 512 } : points ? { points } : {};
    $("#figure").href = this.attentionLink("", { image: this.k, ...shown });
    $("#figure").title = view in GLANCES
      ? "This view as a picture, with its numbers"
      : points
        ? "The figure of the SAGAN paper for the pinned points"
        : "The figure of the SAGAN paper: five points and their maps";
    this.draw();
  }

  // --- drawing ----------------------------------------------------------

  get view() {
    return $("[name=view]:checked", this.dialog).value;
  }

  get strength() {
    return Number($("#opacity").value);
  }

  /** Draws with the next frame: once a frame, however fast the pointer moves. */
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.drawNow();
    });
  }

  drawNow() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    const scale = devicePixelRatio;
    const { canvas } = this;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (this.map === null) return;
    const { view, map, point, strength } = this;
    if (view in GLANCES) drawGlance(context, map, point, view, strength);
    else {
      if (!this.resting || view !== "overlay") drawHeat(context, map, point, view, strength);
      for (const pin of this.pins.all) drawRing(context, pin, pin.colour, 5);
      drawMarks(context, map, point, "#ffffff", 8);
    }
    this.read();
  }

  read() {
    const { row, column } = this.map.cell(this.point.x, this.point.y);
    const look = this.map.look({ row, column });
    const size = this.picture.naturalWidth || 1;
    const pixels = ({ x, y }) => `${Math.floor(x * size)}, ${Math.floor(y * size)}`;
    if (this.view in GLANCES) {
      $("#scale-most").textContent = this.view === "mean" ? percent(mean(this.map).most) : "peak";
      $("#readout").textContent = tellGlance(this.map, this.point, this.view, pixels, this.stage.clientWidth);
      return;
    }
    const even = look.most * this.map.keys;
    const times = even < 10 ? even.toFixed(1) : Math.round(even);
    $("#scale-most").textContent = percent(look.most);
    $("#readout").textContent =
      `From pixel ${pixels(this.point)} it attends most to ${pixels(look)}: ${percent(look.most)} there, ` +
      `${times} times an even spread. Half of it lies in ${look.half} of ${this.map.keys} cells.`;
  }

  async give(button, text) {
    try {
      await copy(text, this.dialog);
      flash(button, "Copied");
    } catch (error) {
      flash(button, error.message);
    }
  }
}

function specText(spec, k) {
  const { model, model_hash, precision, class_id, class_name, seed, truncation } = spec;
  const shown = { model, model_hash, precision, class_id, class_name, seed, index: k, truncation };
  // the seed is a number in JSON, with all its digits
  return JSON.stringify(shown, null, 2).replace(`"seed": "${seed}"`, `"seed": ${seed}`);
}
