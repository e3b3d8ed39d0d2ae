/** Classes, or truncations, by images of one seed: a job a row, and one sheet of all. */

import { MAX_SEED, Problem, ended, generate, source } from "./api.js";
import { $, announce, h, spoken } from "./dom.js";
import { showPreviews } from "./previews.js";
import { drawSheet } from "./sheet.js";

const MOST = 8; // rows
const MANY = 24; // a model with more classes gets a search field
const TRUNCATIONS = ["0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"];
const PATIENCE = 6; // tries to queue a row while the queue is full
const PAUSES_MS = [500, 3000]; // before each new try to fetch an image of a job that has ended

export class Grids {
  /** `keep(job)` takes a job into the history and returns its card; `open(job, k)` looks into an image. */
  constructor({ keep, open }) {
    this.keep = keep;
    this.open = open;
    this.models = [];
    this.rows = [];
    this.root = $("#grids");
    $("#grid-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.make();
    });
    $("#grid-form").addEventListener("input", () => this.show());
    $("#grid-model").addEventListener("change", () => this.useModel());
    $("#grid-filter").addEventListener("input", () => this.filter());
    $("#grid-filter").addEventListener("keydown", (event) => {
      if (event.key === "Enter") event.preventDefault(); // it makes no sheet yet
    });
    for (const radio of this.root.querySelectorAll("[name=grid-rows]")) {
      radio.addEventListener("change", () => this.useKind());
    }
    $("#grid-truncations").append(...TRUNCATIONS.map((value) => chip("checkbox", "grid-value", value, value)));
    $("#grid-cancel").addEventListener("click", () => this.cancel());
    $("#grid-save").addEventListener("click", () => this.save());
    for (const value of ["0.3", "0.5", "0.7", "1"]) $(`[name=grid-value][value="${value}"]`).checked = true;
    this.useKind();
  }

  get kind() {
    return $("[name=grid-rows]:checked").value;
  }

  get model() {
    return this.models.find(({ name }) => name === $("#grid-model").value);
  }

  /** Offers the models that are served now. The choice made so far stays if it is among them. */
  offer(models) {
    const chosen = $("#grid-model").value;
    this.models = models;
    $("#grid-model").replaceChildren(...models.map(({ name }) => h("option", { value: name }, spoken(name))));
    if (models.some(({ name }) => name === chosen)) $("#grid-model").value = chosen;
    this.useModel();
  }

  useModel() {
    const { model } = this;
    const before = new Set(this.chosen.map(({ name }) => name));
    const { classes } = model;
    const type = this.kind === "classes" ? "checkbox" : "radio";
    const list = $("#grid-classes");
    list.classList.remove("pictured");
    list.classList.toggle("many", classes.length > MANY);
    list.replaceChildren(...classes.map(({ id, name }) => chip(type, "grid-class", String(id), spoken(name), name)));
    $("#grid-filter-field").hidden = classes.length <= MANY;
    $("#grid-filter").value = "";
    const boxes = this.boxes;
    const same = boxes.filter((box) => before.has(box.dataset.name));
    // four classes, spread over all
    const some = [0, 1, 2, 3].map((k) => boxes[Math.floor(((k + 0.5) * boxes.length) / 4)]);
    for (const box of same.length > 0 ? same : some) box.checked = true;
    showPreviews(model, (sheet) => {
      if (this.model !== model) return;
      for (const label of list.children) $("span", label).prepend(sheet.picture(Number($("input", label).value)));
      list.classList.add("pictured");
    });
    this.show();
  }

  /** Rows are classes, or truncations of one class. */
  useKind() {
    const classes = this.kind === "classes";
    const first = this.boxes.find((box) => box.checked);
    for (const box of this.boxes) {
      box.type = classes ? "checkbox" : "radio";
      box.checked = box === first || (classes && box.checked);
    }
    $("#grid-classes-words").textContent = classes ? "Classes" : "Class";
    $("#grid-truncations-field").hidden = classes;
    $("#grid-truncation-field").hidden = !classes;
    this.show();
  }

  get boxes() {
    return [...$("#grid-classes").querySelectorAll("input")];
  }

  /** The chosen classes: [{id, name}]. */
  get chosen() {
    return this.boxes.filter((box) => box.checked).map((box) => ({ id: Number(box.value), name: box.dataset.name }));
  }

  get truncations() {
    return [...$("#grid-truncations").querySelectorAll("input:checked")].map((box) => Number(box.value));
  }

  filter() {
    const words = $("#grid-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const label of $("#grid-classes").children) {
      const text = label.textContent.toLowerCase();
      // what is chosen stays in sight
      label.hidden = !$("input", label).checked && !words.every((word) => text.includes(word));
    }
  }

  show() {
    const classes = this.kind === "classes";
    const { length } = this.chosen;
    for (const box of this.boxes) box.disabled = classes && length >= MOST && !box.checked;
    $("#grid-chosen").textContent = classes ? `${length}, at most ${MOST}` : "";
    $("#grid-names").textContent = this.chosen.map(({ name }) => spoken(name)).join(", ");
    $("#grid-columns-value").textContent = $("#grid-columns").value;
    $("#grid-truncation-value").textContent = $("#grid-truncation").value;
    const seed = $("#grid-seed").value.trim();
    const valid = seed === "" || (/^\d{1,19}$/.test(seed) && BigInt(seed) <= MAX_SEED);
    $("#grid-seed").setAttribute("aria-invalid", String(!valid));
    $("#grid-seed-hint").textContent = valid
      ? "Every row starts from the same noise: a column differs by its row alone."
      : `A seed is a whole number from 0 to ${MAX_SEED}.`;
    const some = length > 0 && (classes || this.truncations.length > 0);
    $("#grid-problem").hidden = some || this.models.length === 0;
    $("#grid-problem").textContent = some ? "" : "Choose what the rows are: one at least.";
    $("#grid-make").disabled = this.models.length === 0;
    return { valid, some };
  }

  // --- making one --------------------------------------------------------

  async make() {
    const { valid, some } = this.show();
    if (!valid) return $("#grid-seed").focus();
    if (!some || this.busy) return;
    const { model, chosen } = this;
    const typed = $("#grid-seed").value.trim();
    const seed = typed === "" ? drawn() : BigInt(typed).toString();
    const count = Number($("#grid-columns").value);
    const orders = this.kind === "classes"
      ? chosen.map(({ id, name }) => [spoken(name), { class_id: id, truncation: Number($("#grid-truncation").value) }])
      : this.truncations.map((truncation) => [String(truncation), { class_id: chosen[0].id, truncation }]);
    const what = this.kind === "classes"
      ? `${spoken(model.name)}, seed ${seed}, truncation ${$("#grid-truncation").value}`
      : `${spoken(chosen[0].name)} by ${spoken(model.name)}, seed ${seed}`;
    this.title = what;
    this.name = `${model.name}-${this.kind}-${seed}`;
    this.corner = this.kind === "classes" ? "Class" : "Truncation";
    this.rows = orders.map(([label, order]) => ({ label, order: { model: model.name, count, seed, ...order } }));
    this.lay(count);
    this.stopped = false;
    this.busy = true;
    this.tell();
    announce(`Queued: a sheet of ${orders.length} rows.`);
    if (this.root.querySelector(".sheet").getBoundingClientRect().top > innerHeight * 0.8) {
      $("#grid-sheet").scrollIntoView({ block: "start" });
    }
    try {
      for (const row of this.rows) {
        if (!this.stopped) await this.queue(row);
      }
    } catch (problem) {
      this.stopped = true;
      $("#grid-problem").textContent = problem.message;
      $("#grid-problem").hidden = false;
    }
    this.tell();
  }

  /** Queues a row's job; waits where the queue is full. Raises Problem. */
  async queue(row) {
    for (let attempt = 0; ; attempt++) {
      try {
        const job = await generate(row.order);
        row.job = job;
        row.card = this.keep(job);
        if (this.stopped) row.card.cancel();
        return this.grown(row.card);
      } catch (error) {
        if (!(error instanceof Problem) || error.retryAfter === null || attempt === PATIENCE) throw error;
        $("#grid-status").textContent = `${error.message} Trying again.`;
        await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(error.retryAfter, 10)));
        if (this.stopped) return;
      }
    }
  }

  /** The table with empty places. */
  lay(count) {
    const columns = Array.from({ length: count }, (_, k) => h("th", { scope: "col" }, String(k + 1)));
    $("#grid-sheet").replaceChildren(
      h("caption", {}, h("span", {}, this.title)),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, this.corner), ...columns)),
      h("tbody", {}, ...this.rows.map((row) => {
        row.tiles = Array.from({ length: count }, (_, k) => this.cell(row, k));
        row.head = h("th", { scope: "row" }, row.label);
        return h("tr", {}, row.head, ...row.tiles.map((tile) => h("td", {}, tile)));
      })),
    );
    $("#grid-none").hidden = true;
    $("#grid-result").hidden = false;
  }

  cell(row, k) {
    const picture = h("img", { alt: "", decoding: "async", draggable: false });
    const tile = h("button", {
      type: "button",
      class: "tile",
      disabled: true,
      "aria-label": `${row.label}, image ${k + 1}`,
      onclick: () => this.open(row.card.job, k),
    }, picture);
    tile.dataset.state = "waiting";
    const pauses = [...PAUSES_MS];
    picture.addEventListener("load", () => {
      tile.dataset.state = "ready";
      tile.disabled = false;
      this.tell();
    });
    picture.addEventListener("error", () => {
      tile.dataset.state = "waiting"; // counted, but not there yet: the next news asks again
      if (!ended(row.card.job)) return;
      if (pauses.length > 0) setTimeout(() => this.load(row, k), pauses.shift());
      else tile.dataset.state = "missing";
      this.tell();
    });
    return tile;
  }

  load(row, k) {
    row.tiles[k].dataset.state = "coming";
    const picture = row.tiles[k].firstElementChild;
    source(row.job.links.images[k]).then(
      (address) => (picture.src = address),
      () => picture.dispatchEvent(new Event("error")),
    );
  }

  /** There is news of a job, which may be one of the rows. */
  grown(card) {
    const row = this.rows.find(({ job }) => job?.id === card.job.id);
    if (row === undefined) return;
    for (let k = 0; k < card.done; k++) if (row.tiles[k].dataset.state === "waiting") this.load(row, k);
    if (ended(card.job)) for (const tile of row.tiles.slice(card.done)) tile.dataset.state = "never";
    const fault = ["failed", "lost", "expired"].includes(card.state) ? card.words(card.state) : "";
    row.head.replaceChildren(row.label, ...(fault ? [h("small", {}, fault)] : []));
    this.tell();
  }

  /** Says how far it is, and offers what can be done now. */
  tell() {
    const tiles = this.rows.flatMap((row) => row.tiles);
    const made = tiles.filter((tile) => tile.dataset.state === "ready").length;
    const over = (row) => (row.card === undefined ? this.stopped : row.card.state !== "queued" && row.card.state !== "running");
    const open = tiles.some((tile) => ["waiting", "coming"].includes(tile.dataset.state));
    const was = this.busy;
    this.busy = this.rows.some((row) => !over(row)) || (open && !this.stopped);
    $("#grid-bar").hidden = $("#grid-cancel").hidden = !this.busy;
    Object.assign($("#grid-bar"), { max: tiles.length, value: made });
    $("#grid-save").hidden = this.busy || made === 0;
    const short = made < tiles.length && !this.busy;
    const ready = made === 1 ? "1 image" : `${made} images`;
    $("#grid-status").textContent = short || !this.busy ? (short ? `${made} of ${tiles.length} made` : ready) : `${made} of ${tiles.length}`;
    if (was && !this.busy) {
      announce(`The sheet is finished: ${$("#grid-status").textContent}.`);
      if (document.activeElement === document.body) $("#grid-result").focus({ preventScroll: true });
    }
    this.root.dataset.state = this.busy ? "running" : "ended";
  }

  async cancel() {
    this.stopped = true;
    await Promise.all(this.rows.map(({ card }) => card && !ended(card.job) && card.cancel()));
    for (const row of this.rows) {
      if (row.card === undefined) for (const tile of row.tiles) tile.dataset.state = "never";
    }
    this.tell();
    $("#grid-result").focus({ preventScroll: true });
  }

  async save() {
    const blob = await drawSheet({
      title: this.title,
      rows: this.rows.map(({ label, tiles }) => ({
        label,
        pictures: tiles.map((tile) => (tile.dataset.state === "ready" ? tile.firstElementChild : null)),
      })),
    });
    const link = h("a", { href: URL.createObjectURL(blob), download: `${this.name}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }
}

/** A new seed, below 2^53 as those of the service. */
function drawn() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return ((BigInt(high & 0x1fffff) << 32n) | BigInt(low)).toString();
}

function chip(type, name, value, words, raw = value) {
  const box = h("input", { type, name, value });
  box.dataset.name = raw;
  return h("label", {}, box, h("span", {}, words));
}
