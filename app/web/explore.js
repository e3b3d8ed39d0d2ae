/** Explore: what lies between images, around one, and along the truncation. */

import { getJobs } from "./api.js";
import { $, announce, h, icon, spoken } from "./dom.js";
import { Morph, Truncation, inWords } from "./explorers.js";
import { toBeginWith } from "./form.js";
import { Live, Wanted, newSeed, paint } from "./frames.js";
import { linkToExplore } from "./link.js";
import { Neighbours } from "./neighbours.js";
import { Plane } from "./plane.js";
import { view, viewHash } from "./views.js";

const MOST = 6; // images to lie between
const KEEP = "sagan.explore"; // of sessionStorage

export class Explore {
  /** `modelsNow()` are the models of the service, `chosen()` the name of that in the form; `open(job, k)` looks in. */
  constructor({ modelsNow, chosen, open }) {
    this.root = $("#explore");
    this.modelsNow = modelsNow;
    this.chosen = chosen;
    this.open = open;
    this.ends = [];
    this.model = null;
    this.build();
  }

  build() {
    const value = h("output", {}, "0.7");
    this.truncation = h("input", {
      id: "explore-truncation", type: "range", min: "0.05", max: "1", step: "0.05", value: "0.7",
      oninput: () => (value.textContent = this.truncation.value),
      onchange: () => this.changed(),
    });
    this.truncationField = h("div", { class: "field" },
      h("label", { htmlFor: this.truncation.id }, "Truncation ", value), this.truncation);
    this.list = h("ol", { class: "ends" });
    this.addButton = h("button", { type: "button", onclick: () => this.add() },
      icon("add"), h("span", {}, "Another image"));
    this.problem = h("p", { class: "alert", role: "alert", hidden: true });
    this.modelSelect = h("select", { id: "explore-model", onchange: () => this.useModel(this.modelSelect.value) });
    this.modelField = h("div", { class: "field", hidden: true },
      h("label", { htmlFor: "explore-model" }, "Model"), this.modelSelect);
    this.tools = [Morph, Plane, Truncation, Neighbours].map((Tool) => new Tool(this));
    const radios = this.tools.map((tool, k) => {
      const onchange = () => this.choose(tool);
      const radio = h("input", { type: "radio", name: "explorer", value: tool.name, checked: k === 0, onchange });
      return h("label", {}, radio, h("span", {}, tool.title));
    });
    this.hint = h("p", { class: "hint" });
    this.place = h("div", { class: "explorer" });
    this.root.append(
      h("div", { class: "controls" },
        this.modelField,
        h("div", { class: "field" }, h("h2", {}, "Images"), this.list, this.addButton),
        this.truncationField),
      h("div", { class: "explorer-place" },
        h("fieldset", { class: "segments" }, h("legend", { class: "unseen" }, "What to explore"), ...radios),
        this.hint, this.problem, this.place),
    );
    this.choose(this.tools[0]);
  }

  /** What the tools read. */
  get state() {
    return { model: this.model, ends: this.ends, truncation: Number(this.truncation.value) };
  }

  /** The models that are served now. */
  async offer(models) {
    this.modelField.hidden = models.length < 2;
    this.modelSelect.replaceChildren(...models.map(({ name }) => h("option", { value: name }, spoken(name))));
    const model = models.find(({ name }) => name === this.model?.name);
    if (model !== undefined) this.modelSelect.value = model.name;
    if (this.model === null || model?.hash === this.model.hash) return;
    await this.useModel((model ?? models[0]).name, this.ends);
  }

  /** The view comes up. */
  async show() {
    if (this.model !== null) {
      this.tell();
      return this.tool.update();
    }
    if (this.modelsNow().length > 0) await this.useModel(kept()?.model ?? this.chosen(), kept()?.ends);
  }

  hide() {
    this.tool.rest();
    const left = new URL(".", document.baseURI);
    left.hash = viewHash();
    history.replaceState(null, "", left); // the query was of what is left
  }

  /** The address says what is explored: copied, kept or loaded again, it leads here. */
  tell() {
    if (view() !== "explore" || history.state?.looking) return;
    history.replaceState(null, "", linkToExplore(this.state, this.tool.name));
  }

  /** Takes a model, and ends of it; without ends, two of its classes. */
  async useModel(name, ends = []) {
    const models = this.modelsNow();
    this.model = models.find((model) => model.name === name) ?? models[0];
    this.modelSelect.value = this.model.name;
    this.classes = this.model.classes;
    this.ends = ends.filter((end) => this.unknownIn(end).length === 0);
    this.fill();
    this.changed();
  }

  /** Adds images until there are two: they give way to those that somebody chooses. */
  fill() {
    while (this.ends.length < 2) this.ends.push({ ...this.random(), unasked: true });
  }

  /** An image of a class that the model makes well, and that is not there yet. */
  random() {
    const { id } = toBeginWith(this.classes, this.model.metrics, this.ends.map(({ class_id }) => class_id));
    return { class_id: id, seed: newSeed(), index: 0 };
  }

  /** Adds an image of a job of the page; without one, a new image. */
  async add(job = null, k = 0) {
    if (job === null) this.ends.push(this.random());
    else {
      const end = endOf(job.spec, k);
      const other = this.model?.name !== job.spec.model;
      const same = (one) => JSON.stringify(placed(one)) === JSON.stringify(placed(end));
      if (other) await this.useModel(job.spec.model, [end]);
      else if (this.ends.some(same)) {
        this.ends = this.ends.map((one) => (same(one) ? end : one)); // asked for now
      } else this.ends = [...this.ends.filter(({ unasked }) => !unasked), end];
    }
    this.ends = this.ends.slice(-MOST);
    this.fill();
    this.changed();
    announce(`${this.ends.length} images to explore`);
  }

  /** Takes the ends of a job, in place of those that are there, and a tool; ids of classes that the model does not have. */
  async take(spec, toolName = null) {
    const ends = (spec.morph ? spec.morph.ends.map(endFrom) : [endOf(spec, 0)]).slice(0, MOST);
    this.truncation.value = String(spec.truncation);
    this.truncation.dispatchEvent(new Event("input"));
    const tool = this.tools.find(({ name }) => name === toolName);
    if (tool !== undefined) {
      $(`[value=${tool.name}]`, this.root).checked = true;
      this.choose(tool);
    }
    await this.useModel(spec.model, ends);
    return ends.flatMap((end) => this.unknownIn(end));
  }

  /** Ids of an end's classes that the model does not have. */
  unknownIn({ class_id, class_weights }) {
    return Object.keys(class_weights ?? { [class_id]: 1 }).filter((id) => Number(id) >= this.classes.length);
  }

  choose(tool) {
    this.tool?.rest();
    this.tool = tool;
    this.place.replaceChildren(tool.root);
    this.hint.textContent = tool.words;
    this.truncationField.hidden = tool.ownTruncation === true; // not two sliders of one name
    if (this.model !== null) this.changed();
  }

  /** As its slider would, without a new drawing of the tool. */
  setTruncation(value) {
    this.truncation.value = value;
    this.truncation.dispatchEvent(new Event("input"));
    this.tell();
    this.drawEnds();
  }

  changed() {
    if (this.model === null) return;
    keep({ model: this.model.name, ends: this.ends });
    this.tell();
    this.drawEnds();
    this.tool.update();
  }

  drawEnds() {
    const { used } = this.tool;
    this.addButton.hidden = this.ends.length >= MOST;
    this.thumbs?.forEach((live) => live.drop());
    this.thumbs = this.ends.map(() => new Live((problem) => this.complain(problem)));
    this.list.replaceChildren(...this.ends.map((end, k) => {
      const picture = h("canvas", { width: 128, height: 128, "aria-hidden": "true" });
      const wanted = Wanted.row(this.model, end, 1, this.state.truncation);
      this.thumbs[k].want(wanted, ({ bitmap }) => paint(picture, bitmap));
      const select = h("select", { "aria-label": `Class of image ${k + 1}`, onchange: () => {
        this.ends[k] = { ...end, class_id: Number(select.value), class_weights: undefined, unasked: false };
        this.changed();
      } }, ...this.classes.map(({ id, name }) => h("option", { value: String(id) }, spoken(name))));
      select.value = String(end.class_id);
      const again = this.button("dice", `Another image ${k + 1}`, () => {
        this.ends[k] = { ...end, seed: newSeed(), index: 0, unasked: false };
        this.changed();
        $("button", this.list.children[k]).focus();
      });
      const away = this.button("close", `Remove image ${k + 1}`, () => {
        this.ends.splice(k, 1);
        this.changed();
        $("button", this.list.children[Math.min(k, this.ends.length - 1)]).focus();
      });
      away.disabled = this.ends.length <= 1;
      const mixed = end.class_weights ? `${inWords(this, [end], [1])}, ` : "";
      const from = h("p", { class: "hint" }, `${mixed}seed ${end.seed}${end.index ? `, image ${end.index}` : ""}`);
      return h("li", { class: k < used ? null : "unused" }, picture, h("div", {}, select, from), again, away);
    }));
  }

  button(symbol, words, onclick) {
    return h("button", { type: "button", title: words, "aria-label": words, onclick }, icon(symbol));
  }

  complain(problem) {
    this.problem.hidden = problem === null;
    this.problem.textContent = problem?.message ?? "";
  }

  /** Looks into a picture: what the network attended to while it made it. */
  async look({ job, k }) {
    try {
      this.open(await getJobs(job), k);
    } catch (problem) {
      this.complain(problem);
    }
  }
}

/** Image `k` of a job as an end; of a morph its nearest one. */
function endOf(spec, k) {
  if (spec.morph === null || spec.morph === undefined) {
    const mixed = spec.class_weights ? { class_weights: spec.class_weights } : {};
    return { class_id: spec.class_id, ...mixed, seed: spec.seed, index: (spec.start ?? 0) + k };
  }
  const { ends } = spec.morph;
  return endFrom(ends[Math.min(Math.round((k * (ends.length - 1)) / Math.max(spec.count - 1, 1)), ends.length - 1)]);
}

/** An end as the service tells of it. */
function endFrom({ class_weights, seed, index }) {
  const classes = Object.entries(class_weights).sort((a, b) => b[1] - a[1]);
  return { class_id: Number(classes[0][0]), ...(classes.length > 1 ? { class_weights } : {}), seed, index };
}

/** What makes an end the image that it is. */
function placed({ class_id, class_weights, seed, index }) {
  return [class_weights ?? class_id, String(seed), index];
}

function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(KEEP));
  } catch {
    return null; // storage may be forbidden, or hold an older page's data
  }
}

function keep(state) {
  try {
    sessionStorage.setItem(KEEP, JSON.stringify(state));
  } catch {
    // without storage each visit begins anew
  }
}
