/** The jobs on the page: a card for each, with its place in the line, its progress and its images. */

import { at, cancel, ended, follow, source } from "./api.js";
import { widest } from "./attention.js";
import { $, announce, copy, flash, h, icon, images, ordinal, spoken } from "./dom.js";
import { linkTo } from "./link.js";
import { Painting } from "./painted.js";

const PAUSES_MS = [500, 3000]; // before each new try to fetch an image of a job that has ended

export class Gallery {
  /**
   * `open(job, k)` looks into an image; `again(spec)` takes a spec back to the form; `grown(card)` hears the
   * news of a job; `sites(spec)` are the attention layers of its model.
   */
  constructor(actions) {
    this.root = $("#jobs");
    this.actions = actions;
    this.cards = new Map(); // by job id
  }

  get all() {
    return [...this.cards.values()];
  }

  /** Shows a job: on top with `first`, else at the end. */
  add(job, { first }) {
    if (this.cards.has(job.id)) return this.cards.get(job.id);
    const card = new Card(job, this.actions);
    this.cards.set(job.id, card);
    if (first) this.root.prepend(card.root);
    else this.root.append(card.root);
    $("#empty").hidden = true;
    return card;
  }
}

class Card {
  constructor(job, actions) {
    this.job = job;
    this.actions = actions;
    this.waiting = []; // the promises of `ready`: [k, resolve, reject]
    const { spec } = job;
    const name = spoken(spec.class_name);
    const heading = h("h3", { id: `job-${job.id}` }, name);
    const size = spec.count <= 8 ? "large" : spec.count <= 20 ? "medium" : "small";

    this.status = h("p", { class: "status" });
    this.bar = h("progress", { max: spec.count, "aria-label": `Images of ${name} finished` });
    this.cancelButton = this.button("close", "Cancel", () => this.cancel());
    this.paintButton = this.button("eye", "Attention", () => this.paint());
    this.paintButton.setAttribute("aria-pressed", "false");
    this.note = h("p", { class: "hint note", hidden: true });
    this.linkButton = this.button("link", "Copy link", () => this.copyLink());
    this.gridLink = h("a", {
      class: "button",
      "data-keyed": "",
      href: at(job.links.grid),
      download: `${spec.class_name}-${spec.seed}-${spec.count === 1 ? 0 : "grid"}.png`,
    }, icon("download"), h("span", {}, spec.count === 1 ? "PNG" : "Grid"));
    this.tiles = Array.from({ length: spec.count }, (_, k) => this.tile(k));
    this.root = h(
      "article",
      { class: "job", "aria-labelledby": heading.id },
      h(
        "header",
        {},
        h("div", { class: "what" }, heading, this.facts(), this.status),
        h("div", { class: "actions" }, this.cancelButton, this.paintButton, this.linkButton, this.gridLink),
      ),
      this.bar,
      this.note,
      h("div", { class: "tiles", "data-size": size }, ...this.tiles),
    );
    this.show();
    if (!ended(job)) {
      this.stop = follow(job, (now) => this.changed(now), (problem) => this.lost(problem));
    }
  }

  button(symbol, words, onclick) {
    return h("button", { type: "button", onclick }, icon(symbol), h("span", {}, words));
  }

  facts() {
    const { spec } = this.job;
    const seed = h(
      "button",
      { type: "button", class: "seed", title: "Use this spec again", onclick: () => this.actions.again(spec) },
      icon("again"),
      h("span", {}, `seed ${spec.seed}`),
    );
    const more = spec.truncation === 1 ? "" : ` · truncation ${spec.truncation}`;
    return h("p", { class: "facts" }, seed, h("span", {}, `${spoken(spec.model)}${more}`));
  }

  tile(k) {
    const label = `${spoken(this.job.spec.class_name)}, image ${k + 1} of ${this.job.spec.count}`;
    const picture = h("img", { alt: "", decoding: "async", loading: "lazy", draggable: false });
    const tile = h("button", {
      type: "button",
      class: "tile",
      disabled: true,
      "aria-label": label,
      onclick: () => this.actions.open(this.job, k),
    }, picture);
    tile.dataset.state = "waiting";
    picture.addEventListener("load", () => (tile.dataset.state = "ready"));
    const pauses = [...PAUSES_MS];
    picture.addEventListener("error", () => {
      if (!ended(this.job)) {
        // it is counted but not there: two forwards of a job may end in either order. The next news asks again
        tile.disabled = true;
        return;
      }
      // the service may be away for a moment; else the image has expired
      if (pauses.length > 0) {
        setTimeout(() => this.load(k), pauses.shift());
        return;
      }
      tile.dataset.state = "missing";
      tile.disabled = true;
      tile.setAttribute("aria-label", `${label}: no longer there, make it again from its seed`);
      this.show();
    });
    return tile;
  }

  load(k) {
    const picture = this.tiles[k].firstElementChild;
    source(this.job.links.images[k]).then(
      (address) => (picture.src = address),
      () => picture.dispatchEvent(new Event("error")),
    );
  }

  /** Resolves once more than `k` images are made; rejects when the job ends before. */
  ready(k) {
    return new Promise((resolve, reject) => {
      this.waiting.push([k, resolve, reject]);
      this.settle();
    });
  }

  changed(news) {
    const before = this.job.state;
    const job = (this.job = { ...this.job, ...news });
    this.show();
    this.actions.grown(this);
    const what = `${images(job.spec.count)} of ${spoken(job.spec.class_name)}`;
    if (job.state !== before) {
      const words = { running: "Making", succeeded: "Finished", failed: "Failed", cancelled: "Cancelled" };
      announce(`${words[job.state] ?? "Waiting"}: ${what}.`);
    }
  }

  lost(problem) {
    this.problem = problem;
    this.show();
  }

  /** Images made so far. They need not be the first ones. */
  get done() {
    return this.job.state === "succeeded" ? this.job.spec.count : (this.job.done ?? 0);
  }

  get expired() {
    return this.tiles.every((tile) => tile.dataset.state === "missing");
  }

  show() {
    const { job } = this;
    const state = this.problem === undefined ? job.state : "lost";
    this.root.dataset.state = state;
    const busy = state === "queued" || state === "running";
    this.cancelButton.hidden = !busy;
    this.linkButton.hidden = state !== "succeeded";
    this.paintButton.hidden =
      state !== "succeeded" || this.expired || this.actions.sites(job.spec).length === 0;
    this.gridLink.hidden = state !== "succeeded" || this.expired;
    this.bar.hidden = !busy;
    if (state === "running" || this.done > 0) this.bar.value = this.done;
    else this.bar.removeAttribute("value");
    this.status.textContent = this.words(this.expired && !busy ? "expired" : state);
    for (let k = 0; k < this.done; k++) {
      const tile = this.tiles[k];
      if (tile.dataset.state !== "waiting" || !tile.disabled) continue;
      tile.disabled = false;
      this.load(k);
    }
    if (!busy) for (const tile of this.tiles.slice(this.done)) tile.dataset.state = "never";
    this.settle();
  }

  words(state) {
    const { job } = this;
    const { count } = job.spec;
    switch (state) {
      case "lost":
        return this.problem.message;
      case "expired":
        return "Its images have expired. The same seed makes the same ones again.";
      case "queued":
        if (typeof job.position !== "number") return "Waiting";
        return job.position === 0 ? "Next in line" : `${ordinal(job.position + 1)} in line`;
      case "running":
        return count === 1 ? "Making it" : `${this.done} of ${count}`;
      case "failed":
        return job.error ?? "It failed, and the service did not say why.";
      case "cancelled":
        return this.done === 0 ? "Cancelled" : `Cancelled after ${images(this.done)}`;
      default: {
        const took = (new Date(job.finished_at) - new Date(job.started_at)) / 1000;
        const clock = new Date(job.finished_at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
        return `${images(count)} in ${took < 10 ? took.toFixed(1) : Math.round(took)} s · ${clock}`;
      }
    }
  }

  settle() {
    const over = ended(this.job) || this.problem !== undefined;
    this.waiting = this.waiting.filter(([k, resolve, reject]) => {
      if (k < this.done) resolve();
      else if (over) reject(new Error(this.words(this.problem === undefined ? this.job.state : "lost")));
      else return true;
      return false;
    });
  }

  async cancel() {
    this.cancelButton.disabled = true;
    try {
      const job = await cancel(this.job);
      if (ended(job)) this.stop();
      this.changed(job);
    } catch (problem) {
      this.status.textContent = problem.message;
      this.cancelButton.disabled = false;
    }
  }

  /** Shows where the network looked, over all images at once, or the images alone again. */
  async paint() {
    if (this.painting?.busy) return;
    const layer = widest(this.actions.sites(this.job.spec))?.name;
    this.painting ??= new Painting(this.job, this.tiles, layer, (words) => this.noted(words));
    this.painting.busy = true;
    this.noted("Looking at what they attended to…");
    try {
      await this.painting.toggle();
      this.noted(this.painting.shown ? this.painting.note : null);
    } catch (problem) {
      this.noted(problem.message);
    }
    this.painting.busy = false;
    this.paintButton.setAttribute("aria-pressed", String(this.painting.shown));
  }

  noted(words) {
    this.note.hidden = words === null;
    this.note.textContent = words ?? "";
    if (words !== null) announce(words, 400);
  }

  async copyLink() {
    try {
      await copy(linkTo(this.job).href);
      flash(this.linkButton, "Copied");
    } catch (problem) {
      flash(this.linkButton, problem.message);
    }
  }
}
