/** The jobs on the page and in the browser's store: listed, found again, made again, hidden, cleared. */

import { cancel, ended, getJobs } from "./api.js";
import { $, announce, images, spoken } from "./dom.js";
import { Card } from "./gallery.js";
import { orderOf, place, sameVersion } from "./orders.js";
import { Store, found, revived } from "./store.js";
import { pictureOf, SHOWN, thumbOf } from "./thumbs.js";
import { toast } from "./toast.js";
import { onView, view } from "./views.js";

const PAGE = 12; // jobs at a time beside the form
const MANY = 24; // and in the history
const ALL = 100; // jobs in an answer where all are asked for
const LOOK_MS = 30_000; // between two looks whether images have expired

export class History {
  /**
   * `open(job, k)` looks into an image, `again(spec)` takes a spec back to the form, `grown(job, done)` hears the
   * news of a job, `complain(words)` tells of a problem. `modelOf(name)` is a model of the service or undefined,
   * and null before anything is known of models.
   */
  constructor(actions) {
    this.actions = actions;
    this.store = new Store();
    this.cards = new Map(); // by job id
    this.most = PAGE;
    this.forgetList();
    this.cardActions = {
      open: actions.open,
      again: actions.again,
      grown: (card) => this.grown(card),
      remake: (card) => this.remake(card),
      star: (card) => this.star(card),
      hide: (card) => this.hide(card),
      pictured: (card) => this.picture(card, card.firstPictures()),
      versionOf: (spec) => this.versionOf(spec),
      sites: actions.sites,
    };
    $("#older").addEventListener("click", () => this.further());
    $("#find-job").addEventListener("input", () => this.filter());
    for (const radio of document.querySelectorAll("[name=kept]")) {
      radio.addEventListener("change", () => this.filter());
    }
    $("#clear-history").addEventListener("click", () => this.clear());
    $("#cancel-waiting").addEventListener("click", () => this.cancelWaiting());
    onView((name) => {
      if (name === "history") this.readAll();
      else this.forgetFilter();
      this.most = name === "history" ? MANY : PAGE;
      this.render();
    });
    setInterval(() => this.expire(), LOOK_MS);
  }

  get all() {
    return [...this.cards.values()];
  }

  /** Opens what is kept for another caller, known by their key. */
  useKey(key) {
    for (const card of this.cards.values()) card.stop?.();
    this.cards.clear();
    this.forgetList();
    this.store.open(key);
    this.render();
  }

  forgetList() {
    this.older = undefined; // the cursor of the service's jobs not read yet; null: all are
    this.listed = new Set(); // ids of those read
    this.readTo = ""; // when the last of them was made
  }

  // --- jobs come in ------------------------------------------------------

  /** Keeps a job that this page ordered, and shows it on top. Returns its card. */
  add(job, marks = {}) {
    this.listed.add(job.id);
    if (!this.store.entries.has(job.id)) this.most += 1; // it pushes none of those shown away
    this.store.put(job, { mine: true, ...marks });
    this.render();
    return this.cards.get(job.id) ?? this.cardOf(this.store.get(job.id));
  }

  /** Reads the next page of the service's jobs. Raises Problem. */
  async read(limit = PAGE) {
    const query = new URLSearchParams({ limit, ...(this.older ? { cursor: this.older } : {}) });
    const page = await getJobs(`jobs?${query}`);
    for (const job of page.jobs) {
      this.listed.add(job.id);
      if (!this.store.wants(job)) continue;
      this.store.put(job);
      this.cards.get(job.id)?.told(job);
    }
    this.older = page.next ?? null;
    this.readTo = this.older === null ? "" : page.jobs.at(-1).created_at;
    this.render();
  }

  /** Reads all of the service's jobs that may be kept: who searches means all. */
  async readAll() {
    if (this.reading || this.older === null || this.older === undefined) return;
    this.reading = true;
    try {
      for (let pages = 0; this.older !== null && pages < 5; pages++) await this.read(ALL);
    } catch {
      // the service is away: what is kept is there all the same
    } finally {
      this.reading = false;
    }
  }

  async further() {
    this.most += view() === "history" ? MANY : PAGE;
    try {
      if (this.older && this.matching().length < this.most) await this.read();
    } catch (problem) {
      this.actions.complain(problem.message);
    }
    this.render();
  }

  // --- what is shown -----------------------------------------------------

  matching() {
    const words = $("#find-job").value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = $("[name=kept]:checked").value;
    return this.store.all.filter(
      (entry) =>
        Boolean(entry.hidden) === (kept === "hidden") &&
        (kept !== "favourites" || entry.favourite) &&
        (words.length === 0 || found(entry, words)),
    );
  }

  cardOf(entry) {
    let card = this.cards.get(entry.id);
    if (card === undefined) {
      card = new Card(revived(entry), this.cardActions, entry);
      this.cards.set(entry.id, card);
    }
    card.entry = this.store.get(entry.id) ?? entry;
    return card;
  }

  /** Shows the first of what matches. Cards that stay where they are keep the focus. */
  render() {
    const root = $("#jobs");
    const matching = this.matching();
    const roots = matching.slice(0, this.most).map((entry) => this.cardOf(entry).root);
    for (const child of [...root.children]) if (!roots.includes(child)) child.remove();
    for (const entry of matching.slice(0, this.most)) this.check(entry);
    roots.forEach((card, place) => {
      if (root.children[place] !== card) root.insertBefore(card, root.children[place] ?? null);
    });
    $("#older").hidden = matching.length <= this.most && !this.older;
    const some = this.store.entries.size > 0;
    const none = !some && this.older !== undefined;
    $("#empty").hidden = !none || view() === "history";
    $("#found").textContent = some ? `${matching.length} of ${this.store.entries.size}` : "";
    $("#none").hidden = some ? matching.length > 0 : !none || view() !== "history";
    $("#none").textContent = none ? "No images yet: Create makes some." : {
      favourites: "No favourites here. The star of a job makes it one; favourites are never cleared.",
      hidden: "Nothing here is hidden.",
      all: $("#find-job").value ? "No job here has all these words." : "All jobs are hidden.",
    }[$("[name=kept]:checked").value];
    $("#clear-history").hidden = !some;
    const waiting = this.waiting().length;
    $("#cancel-waiting").hidden = waiting === 0;
    $("#cancel-waiting span").textContent = `Cancel all waiting (${waiting})`;
  }

  /** A job that should be in the service's list, and is not, may be forgotten: a browser keeps its images longer. */
  check(entry) {
    if (this.older === undefined || this.listed.has(entry.id) || entry.created_at <= this.readTo) return;
    this.listed.add(entry.id); // once is enough
    const card = this.cards.get(entry.id);
    if (!card.gone && ended(card.job)) card.look();
  }

  filter() {
    this.most = MANY;
    this.render();
    announce(`${this.matching().length} found`, 500);
  }

  forgetFilter() {
    $("#find-job").value = "";
    $("[name=kept][value=all]").checked = true;
  }

  /** Models came or went: what can be made again is told anew. */
  refresh() {
    for (const card of this.cards.values()) if (card.expired) card.show();
  }

  /** How long images live, in words, before any is made. seconds: undefined before the service has said it. */
  tellLife(seconds) {
    const kept = this.store.lasting
      ? "What made them stays in this browser."
      : "This browser lets the page keep nothing: the list ends with this tab.";
    $("#life").textContent = seconds ? `Images are kept for ${lasting(seconds)}. ${kept}` : kept;
  }

  expire() {
    for (const card of this.cards.values()) card.lapse();
  }

  // --- what a person does with them --------------------------------------

  grown(card) {
    const entry = this.store.put(card.job);
    card.entry = entry;
    this.actions.grown(card);
    if (ended(card.job)) {
      const first = card.firstPictures(); // they may have come before the end
      if (first !== null) this.picture(card, first);
      else if (entry.mine && card.root.offsetParent === null) this.fetchPicture(card);
      this.render();
    }
  }

  picture(card, pictures) {
    if (card.entry.thumb || card.job.state !== "succeeded") return;
    try {
      this.store.mark(card.job.id, { thumb: thumbOf(pictures) });
    } catch {
      // a browser that lets no page read a canvas: the card does without
    }
  }

  /** The thumbnail of a job that nobody looks at: its images are fetched for it. */
  async fetchPicture(card) {
    if (card.job.state !== "succeeded" || card.entry.thumb) return;
    const wanted = Array.from({ length: Math.min(SHOWN, card.job.spec.count) }, (_, k) => pictureOf(card.job, k));
    const pictures = await Promise.allSettled(wanted);
    if (pictures.every(({ value }) => value)) this.picture(card, pictures.map(({ value }) => value));
  }

  versionOf(spec) {
    const served = this.actions.modelOf(spec.model);
    if (served === null) return null;
    if (served === undefined) return "absent";
    return sameVersion(spec, served) ? "same" : "other";
  }

  /** Orders the images of a card once more. The new card takes the place of the old one, if they are the same. */
  async remake(card) {
    const { job } = card;
    const button = card.remakeButton;
    if (button.getAttribute("aria-disabled") === "true") return;
    button.setAttribute("aria-disabled", "true");
    try {
      const again = await place(orderOf(job.spec, this.actions.modelOf(job.spec.model)));
      const { favourite, thumb } = card.entry;
      const same = again.spec.model_hash === job.spec.model_hash && again.spec.precision === job.spec.precision;
      if (same) this.store.remove(job.id);
      const made = this.add(again, same ? { favourite, thumb } : {});
      if (same) this.cards.delete(job.id);
      announce(`Queued: ${images(job.spec.count)} of ${spoken(job.spec.class_name)}.`);
      made.root.focus({ preventScroll: true });
      made.root.scrollIntoView({ block: "nearest" });
    } catch (problem) {
      card.status.textContent = problem.message;
      announce(problem.message);
    } finally {
      button.removeAttribute("aria-disabled");
    }
  }

  star(card) {
    const favourite = !card.entry.favourite;
    this.store.mark(card.job.id, { favourite });
    announce(favourite ? "A favourite now" : "No favourite any more");
    card.show();
    if (!favourite && $("[name=kept]:checked").value === "favourites") this.filter();
  }

  hide(card) {
    const hidden = !card.entry.hidden;
    const turn = (to) => {
      this.store.mark(card.job.id, { hidden: to });
      card.show();
      this.render();
    };
    turn(hidden);
    const name = spoken(card.job.spec.class_name);
    toast(hidden ? `Hidden: ${name}` : `Shown again: ${name}`, "Undo", () => {
      turn(!hidden);
      card.root.focus();
    });
  }

  clear() {
    const cleared = this.store.clear();
    for (const { id } of cleared.gone) this.cards.delete(id);
    this.render();
    const favourites = this.store.all.some(({ favourite }) => favourite) ? " Favourites stay." : "";
    const count = cleared.gone.length === 1 ? "1 job" : `${cleared.gone.length} jobs`;
    toast(`Cleared: ${count}.${favourites}`, "Undo", () => {
      this.store.restore(cleared);
      this.render();
      $("#clear-history").focus();
    });
  }

  waiting() {
    return this.all.filter((card) => card.state === "queued");
  }

  async cancelWaiting() {
    const waiting = this.waiting();
    const told = await Promise.allSettled(waiting.map(async (card) => card.told(await cancel(card.job))));
    const failed = told.find(({ reason }) => reason);
    if (failed) this.actions.complain(failed.reason.message);
    announce(`${told.filter(({ reason }) => !reason).length} jobs cancelled`);
    this.render();
    if ($("#cancel-waiting").hidden) $("#images").focus({ preventScroll: true });
  }
}

function lasting(seconds) {
  for (const [unit, size] of [["day", 86_400], ["hour", 3600], ["minute", 60]]) {
    const many = Math.round(seconds / size);
    if (seconds >= size && (many > 1 || seconds < 1.5 * size)) {
      return unit === "day" && many === 1 ? "24 hours" : `${many} ${unit}${many === 1 ? "" : "s"}`;
    }
  }
  return `${seconds} second${seconds === 1 ? "" : "s"}`;
}
