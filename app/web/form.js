/** The form: model, class, count, seed and truncation. It knows nothing of jobs. */

import { MAX_SEED } from "./api.js";
import { $, h, spoken } from "./dom.js";
import { showPreviews } from "./previews.js";
import { Wall } from "./wall.js";

const MANY = 24; // a model with more classes gets a search field
const PICTURES = 4; // of what a model makes, beside its name
const KEEP = "sagan.form"; // of sessionStorage: the last choices, for a reload

export class Form {
  /** `submitted(spec)` is called with {model, class_id, count, truncation, seed: digits or null}. */
  constructor(submitted) {
    this.root = $("#form");
    this.models = [];
    this.used = undefined; // the version whose classes are listed
    this.wall = new Wall((id) => {
      if ($("#generate").getAttribute("aria-disabled") === "true") return; // the one pressed before is on its way
      this.choose(id);
      this.root.requestSubmit();
    });
    this.root.addEventListener("submit", (event) => {
      event.preventDefault();
      const spec = this.read();
      if (spec !== null) submitted(spec);
    });
    this.root.addEventListener("input", () => this.show());
    $("#models").addEventListener("change", () => this.useModel());
    $("#filter").addEventListener("input", () => this.filter());
    $("#filter").addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault(); // Enter takes the first class found and does not generate yet
      const first = $("#classes label:not([hidden]) input");
      if (first !== null) this.choose(first.value, true);
    });
    $("#clear-seed").addEventListener("click", () => {
      $("#seed").value = "";
      $("#seed").focus();
      this.show();
    });
    this.kept = remembered();
    for (const key of ["count", "seed", "truncation"]) if (this.kept[key]) $(`#${key}`).value = this.kept[key];
    this.show();
  }

  /** Offers the models that are served now. The choice made so far stays if it is among them. */
  offer(models) {
    this.models = models;
    const chosen = this.model ?? this.kept.model;
    $("#models").replaceChildren(...models.map((model) => {
      const radio = h("input", { type: "radio", name: "model", value: model.name });
      const some = h("i", { class: "some", "aria-hidden": "true" });
      const words = h("span", {}, h("b", {}, spoken(model.name)), h("small", {}, facts(model)));
      showPreviews(model, (sheet) => some.replaceChildren(...sheet.some(PICTURES)));
      return h("label", {}, radio, some, words);
    }));
    this.model = models.some(({ name }) => name === chosen) ? chosen : models[0].name;
    // another model came or went: who looks at this one keeps filter, place and focus
    if (versionOf(models.find(({ name }) => name === this.model)) !== this.used) this.useModel();
    $("#generate").disabled = false;
  }

  /** The name of the chosen model; undefined before there is one. */
  get model() {
    return $("#models input:checked")?.value;
  }

  set model(name) {
    for (const radio of $("#models").querySelectorAll("input")) radio.checked = radio.value === name;
  }

  useModel() {
    const model = this.models.find(({ name }) => name === this.model);
    $("#licence").textContent = model.licence && `Data of ${spoken(model.name)}: ${model.licence}`;
    const chosen = this.chosen ?? this.kept.class_name;
    const { classes } = model;
    this.used = versionOf(model);
    this.wall.show(model, null);
    const many = classes.length > MANY;
    $("#filter-field").hidden = !many;
    $("#filter").value = "";
    $("#classes").classList.toggle("many", many);
    $("#classes").classList.remove("pictured");
    $("#classes").replaceChildren(...classes.map(({ id, name }) => {
      const radio = h("input", { type: "radio", name: "class", value: String(id) });
      radio.dataset.name = name;
      return h("label", {}, radio, h("span", {}, spoken(name)));
    }));
    showPreviews(model, (sheet) => {
      if (this.model !== model.name) return;
      this.wall.show(model, sheet);
      this.filter();
      for (const label of $("#classes").children) {
        $("span", label).prepend(sheet.picture(Number($("input", label).value)));
      }
      $("#classes").classList.add("pictured");
      this.reveal();
    });
    const same = classes.find(({ name }) => name === chosen) ?? toBeginWith(classes, model.metrics);
    this.choose(String(same.id));
    this.filter();
  }

  get chosen() {
    return $("#classes input:checked")?.dataset.name;
  }

  choose(id, focus = false) {
    const radio = $(`#classes input[value="${id}"]`);
    radio.checked = true;
    if (focus) radio.focus();
    this.reveal();
    this.show();
  }

  /** Scrolls the list to the chosen class. */
  reveal() {
    // scrollIntoView would scroll the page too: on a phone the form would jump away
    const box = $("#classes");
    const { offsetTop, offsetHeight } = $("input:checked", box).parentElement;
    box.scrollTop = offsetTop - (box.clientHeight - offsetHeight) / 2;
  }

  filter() {
    const words = $("#filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const labels = [...$("#classes").children];
    for (const label of labels) {
      const text = label.textContent.toLowerCase();
      label.hidden = !words.every((word) => text.includes(word));
    }
    this.wall.filter((id) => !labels[id].hidden);
    const found = labels.filter((label) => !label.hidden);
    $("#filter-count").textContent = words.length ? `${found.length} of ${labels.length}` : `${labels.length}`;
    $("#no-class").hidden = found.length > 0;
    // what is made is what is seen: a class that the words leave out is not chosen any more
    if (found.length > 0 && !found.some((label) => $("input", label).checked)) {
      this.choose($("input", found[0]).value);
    }
  }

  /** Fills the form with a spec, to make its images again or vary them. */
  fill({ model, class_name, count, seed, truncation, start = 0 }) {
    if (this.models.some(({ name }) => name === model) && this.model !== model) {
      this.model = model;
      this.useModel();
    }
    const radio = [...$("#classes").querySelectorAll("input")].find((input) => input.dataset.name === class_name);
    if (radio !== undefined) this.choose(radio.value);
    $("#count").value = count;
    $("#seed").value = seed;
    $("#start").value = start || "";
    $("#truncation").value = truncation;
    this.show();
  }

  show() {
    $("#count-value").textContent = $("#count").value;
    $("#truncation-value").textContent = $("#truncation").value;
    $("#clear-seed").disabled = $("#seed").value === "";
    const fault = faultOf($("#seed").value.trim());
    $("#seed").setAttribute("aria-invalid", String(fault !== null));
    $("#seed-hint").textContent = fault ?? "The same seed makes the same images again.";
  }

  read() {
    const seed = $("#seed").value.trim();
    if (faultOf(seed) !== null) {
      $("#seed").focus();
      return null;
    }
    if (!$("#start").validity.valid) {
      $("#start").focus();
      return null;
    }
    if (!$("#no-class").hidden) {
      $("#filter").focus();
      return null;
    }
    const spec = {
      model: this.model,
      class_id: Number($("#classes input:checked").value),
      count: Number($("#count").value),
      truncation: Number($("#truncation").value),
      seed: seed === "" ? null : BigInt(seed).toString(),
      start: Number($("#start").value),
    };
    remember({ ...spec, class_name: this.chosen, seed });
    return spec;
  }
}

function faultOf(seed) {
  if (seed === "" || (/^\d{1,19}$/.test(seed) && BigInt(seed) <= MAX_SEED)) return null;
  return `A seed is a whole number from 0 to ${MAX_SEED}.`;
}

/**
 * One of the tenth of the classes that the model makes right most often, or the first where that was not measured;
 * none of those `taken`, ids of classes, where there is another.
 */
export function toBeginWith(classes, metrics, taken = []) {
  const right = Object(metrics.pretrained?.generated?.probe_accuracy_by_class);
  const free = classes.filter(({ id }) => !taken.includes(id));
  const known = free.filter(({ name }) => name in right).sort((a, b) => right[b.name] - right[a.name]);
  const best = Math.floor((Math.random() * known.length) / 10);
  return known[best] ?? free[0] ?? classes[0];
}

const versionOf = ({ name, hash, precision }) => `${name} ${hash} ${precision}`;

function facts({ resolution, attention, metrics }) {
  const said = [`${resolution} px`];
  if (attention.length === 0) said.push("no attention");
  else said.push(`attention at ${attention.map((site) => site.resolution).join(", ")} px`);
  const fid = metrics.inception?.generated?.fid;
  if (typeof fid === "number") said.push(`FID ${fid.toFixed(1)}`);
  return said.join(" · ");
}

function remembered() {
  try {
    return JSON.parse(sessionStorage.getItem(KEEP)) ?? {};
  } catch {
    return {}; // storage may be forbidden, or hold an older page's data
  }
}

function remember(choices) {
  try {
    sessionStorage.setItem(KEEP, JSON.stringify(choices));
  } catch {
    // without storage a reload starts from the defaults
  }
}
