/** A job on the page: a card with its place in the line, its progress and its images, and what is left of them. */

import { at, cancel, ended, follow, getJobs, source } from "./api.js";
import { widest } from "./attention.js";
import { announce, copy, flash, h, icon, images, ordinal, spoken } from "./dom.js";
import { linkTo } from "./link.js";
import { Painting } from "./painted.js";
import { expired } from "./store.js";
import { SHOWN, piecesOf } from "./thumbs.js";

const PAUSES_MS = [500, 3000]; // before each new try to fetch an image of a job that has ended

/**
 * A job on the page. Actions: `open(job, k)` looks into an image; `again(spec)` takes a spec back to the form;
 * `remake(card)` orders its images once more; `star(card)` and `hide(card)`; `grown(card)` hears the news of a job
 * and `pictured(card)` that its first images are loaded; `versionOf(spec)` is "same", "other" or "absent" as the
 * service has its model now, or null while that is not known; `sites(spec)` are the attention layers of its model.
 */
export class Card {
  /** entry: what the browser keeps of the job. */
  constructor(job, actions, entry) {
    this.job = job;
    this.actions = actions;
    this.entry = entry;
    this.gone = ended(job) && expired(job);
    this.waiting = []; // the promises of `ready`: [k, resolve, reject]
    const { spec } = job;
    const name = spoken(spec.class_name);
    const heading = h("h3", { id: `job-${job.id}` }, name);

    this.status = h("p", { class: "status" });
    this.bar = h("progress", { max: spec.count, "aria-label": `Images of ${name} finished` });
    this.cancelButton = this.button("close", "Cancel", () => this.cancel());
    this.paintButton = this.button("eye", "Attention", () => this.paint());
    this.paintButton.setAttribute("aria-pressed", "false");
    this.note = h("p", { class: "hint note", hidden: true });
    this.remakeButton = this.button("again", "Make again", () => actions.remake(this));
    this.linkButton = this.button("link", "Copy link", () => this.copyLink());
    this.gridLink = h("a", {
      class: "button",
      "data-keyed": "",
      href: at(job.links.grid),
      download: `${spec.class_name}-${spec.seed}-${spec.count === 1 ? 0 : "grid"}.png`,
    }, icon("download"), h("span", {}, spec.count === 1 ? "PNG" : "Grid"));
    this.starButton = this.mark("star", `Favourite: ${name}, seed ${spec.seed}`, () => actions.star(this));
    this.hideButton = this.mark("hide", `Hide: ${name}, seed ${spec.seed}`, () => actions.hide(this));
    this.tiles = [];
    this.box = h("div", { class: "tiles" });
    this.root = h(
      "article",
      { class: "job", "aria-labelledby": heading.id, tabIndex: -1 },
      h(
        "header",
        {},
        h("div", { class: "what" }, heading, this.facts(), this.status),
        h(
          "div",
          { class: "actions" },
          ...[this.cancelButton, this.remakeButton, this.paintButton, this.linkButton, this.gridLink],
          ...[this.starButton, this.hideButton],
        ),
      ),
      this.bar,
      this.note,
      this.box,
    );
    if (!this.gone) this.lay();
    this.show();
    if (!ended(job)) {
      this.stop = follow(job, (now) => this.changed(now), (problem) => this.lost(problem));
    }
  }

  /** Lays the tiles out, empty. */
  lay() {
    const { count } = this.job.spec;
    this.box.dataset.size = count <= 8 ? "large" : count <= 20 ? "medium" : "small";
    this.tiles = Array.from({ length: count }, (_, k) => this.tile(k));
    this.box.replaceChildren(...this.tiles);
  }

  mark(symbol, words, onclick) {
    return h("button", { type: "button", class: "mark", "aria-label": words, title: words.split(":")[0], onclick },
      icon(symbol));
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
    const first = spec.start > 0 && !spec.morph ? ` · ${spec.count === 1 ? "" : "from "}index ${spec.start}` : "";
    const more = `${first}${spec.truncation === 1 ? "" : ` · truncation ${spec.truncation}`}`;
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
    picture.addEventListener("load", () => {
      tile.dataset.state = "ready";
      if (k < SHOWN && ended(this.job) && this.firstPictures() !== null) this.actions.pictured(this);
    });
    const pauses = [...PAUSES_MS];
    picture.addEventListener("error", () => {
      if (!ended(this.job)) {
        // it is counted but not there: two forwards of a job may end in either order. The next news asks again
        tile.disabled = true;
        return;
      }
      // the service may be away for a moment; else it has forgotten the job
      if (pauses.length > 0) {
        setTimeout(() => !this.gone && this.load(k), pauses.shift());
        this.look();
        return;
      }
      tile.dataset.state = "missing";
      tile.disabled = true;
      tile.setAttribute("aria-label", `${label}: cannot be had now`);
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

  /** The first images, loaded; null before all of them are. */
  firstPictures() {
    const first = this.tiles.slice(0, SHOWN);
    const loaded = first.length > 0 && first.every((tile) => tile.dataset.state === "ready");
    return loaded ? first.map((tile) => tile.firstElementChild) : null;
  }

  /** Asks the service whether it still has the job, once. */
  look() {
    this.looking ??= getJobs(this.job.links.self).then(
      () => (this.looking = undefined),
      (problem) => {
        if (isGone(problem)) this.goes();
        else this.looking = undefined;
      },
    );
  }

  /** The images are gone: what the browser kept of them is shown. */
  goes() {
    this.gone = true;
    this.show();
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

  /** The service says how the job is, unasked. */
  told(job) {
    if (this.gone || ended(this.job)) return;
    if (ended(job)) this.stop?.();
    this.changed(job);
  }

  /** Looks whether its time has run out. */
  lapse() {
    if (!this.gone && ended(this.job) && expired(this.job)) this.goes();
  }

  lost(problem) {
    if (isGone(problem)) return this.goes();
    this.problem = problem;
    this.show();
  }

  /** Images made so far. They need not be the first ones. */
  get done() {
    return this.job.state === "succeeded" ? this.job.spec.count : (this.job.done ?? 0);
  }

  get expired() {
    return this.gone || (this.tiles.length > 0 && this.tiles.every((tile) => tile.dataset.state === "missing"));
  }

  /** What the card shows: the state of its job, or "lost", or "expired". */
  get state() {
    if (this.gone && !["failed", "cancelled"].includes(this.job.state)) return "expired";
    return this.problem === undefined ? this.job.state : "lost";
  }

  show() {
    const { entry, job, state } = this;
    this.root.dataset.state = state;
    const busy = state === "queued" || state === "running";
    this.cancelButton.hidden = !busy;
    this.remakeButton.hidden = !(this.expired || state === "failed" || state === "cancelled");
    this.linkButton.hidden = state !== "succeeded";
    this.paintButton.hidden =
      state !== "succeeded" || this.expired || this.actions.sites(job.spec).length === 0;
    this.gridLink.hidden = state !== "succeeded" || this.expired;
    this.hideButton.hidden = busy;
    this.starButton.setAttribute("aria-pressed", String(Boolean(entry.favourite)));
    this.hideButton.lastChild.replaceWith(icon(entry.hidden ? "again" : "hide"));
    this.hideButton.title = entry.hidden ? "Show again" : "Hide";
    const hides = this.hideButton.getAttribute("aria-label").replace(/^[^:]*/, this.hideButton.title);
    this.hideButton.setAttribute("aria-label", hides);
    this.bar.hidden = !busy;
    if (state === "running" || this.done > 0) this.bar.value = this.done;
    else this.bar.removeAttribute("value");
    this.status.textContent = this.words(state);
    if (this.gone) this.showRest();
    else this.showTiles(busy);
    this.settle();
  }

  showTiles(busy) {
    for (let k = 0; k < this.done; k++) {
      const tile = this.tiles[k];
      if (tile.dataset.state !== "waiting" || !tile.disabled) continue;
      tile.disabled = false;
      this.load(k);
    }
    if (!busy) for (const tile of this.tiles.slice(this.done)) tile.dataset.state = "never";
  }

  /** What is left of the images: those that are loaded, else the thumbnail. */
  showRest() {
    if (this.tiles.some((tile) => tile.dataset.state === "ready")) return;
    const { count } = this.job.spec;
    this.tiles = [];
    this.box.dataset.size = "pieces";
    const made = this.job.state === "succeeded";
    const pieces = made ? piecesOf(this.entry.thumb, count) : [];
    const more = count > pieces.length && made ? h("span", {}, `and ${count - pieces.length} more`) : null;
    this.box.replaceChildren(...pieces, ...(more === null ? [] : [more]));
  }

  words(state) {
    const { job } = this;
    const { count, model } = job.spec;
    switch (state) {
      case "lost":
        return this.problem.message;
      case "expired":
        return {
          other: `Its images have expired. The ${spoken(model)} served now is another version: it will not make the same.`,
          absent: `Its images have expired, and no worker here has loaded ${spoken(model)} now.`,
        }[this.actions.versionOf(job.spec)] ?? "Its images have expired; the same spec makes the same ones again.";
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
        const kept = job.expires_at ? ` · kept until ${clock(job.expires_at)}` : "";
        const words = `${images(count)} in ${took < 10 ? took.toFixed(1) : Math.round(took)} s`;
        return this.expired
          ? `${words}, which cannot be had now. The same spec makes the same ones again.`
          : `${words} · ${clock(job.finished_at)}${kept}`;
      }
    }
  }

  settle() {
    const over = ended(this.job) || this.problem !== undefined || this.gone;
    this.waiting = this.waiting.filter(([k, resolve, reject]) => {
      if (k < this.done) resolve();
      else if (over) reject(new Error(this.words(this.state)));
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

/** Whether the service has forgotten the job, or its images. */
const isGone = (problem) => problem.status === 404 || problem.status === 410;

/** A time for people: with the day, unless it is today. */
function clock(time) {
  const [when, now] = [new Date(time), new Date()];
  const day = when.toDateString() === now.toDateString() ? {} : { day: "numeric", month: "short" };
  return when.toLocaleString([], { ...day, hour: "2-digit", minute: "2-digit" });
}
