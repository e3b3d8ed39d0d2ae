/**
 * What the browser keeps of the jobs: their specs, a thumbnail, and what a person thinks of them. It outlives the
 * images. Where storage is forbidden, it lasts as long as the page.
 */

import { linksOf } from "./api.js";

const MOST = 500; // jobs kept; the oldest that are nobody's favourite go first
const PLACE = "sagan.history"; // of localStorage: before the service's path and the caller's mark

const FIELDS = ["id", "state", "created_at", "started_at", "finished_at", "expires_at", "error", "done", "spec"];
const OURS = ["favourite", "hidden", "mine", "thumb"]; // what the service does not know

export class Store {
  constructor() {
    this.open("");
  }

  /** Opens what is kept for a caller, known by the access key; "": without one. */
  open(key) {
    const caller = key === "" ? "" : ` ${mark(key)}`;
    this.place = `${PLACE} ${new URL(".", document.baseURI).pathname}${caller} `;
    this.entries = new Map(); // by job id
    this.lasting = true;
    this.cleared = ""; // jobs made up to this time are not taken from the service again
    try {
      for (const name of Object.keys(localStorage).filter((key) => key.startsWith(this.place))) this.read(name);
    } catch {
      this.lasting = false;
    }
  }

  read(name) {
    const id = name.slice(this.place.length);
    try {
      const value = JSON.parse(localStorage.getItem(name));
      if (id === "cleared") this.cleared = String(value);
      else if (value?.spec?.class_name && value.id === id && value.created_at) this.entries.set(id, value);
    } catch {
      // an older page's data, or somebody's hand: it is as if it were not there
    }
  }

  /** All entries, the newest first. */
  get all() {
    return [...this.entries.values()].sort((a, b) => (a.created_at < b.created_at ? 1 : -1));
  }

  get(id) {
    return this.entries.get(id);
  }

  /** Whether a job of the service's list belongs here: not one that was cleared away. */
  wants(job) {
    return this.entries.has(job.id) || job.created_at > this.cleared;
  }

  /** Keeps a job as it is now; marks: what else is known of it. Returns its entry. */
  put(job, marks = {}) {
    const before = this.entries.get(job.id) ?? {};
    const entry = { ...before, ...marks };
    for (const field of FIELDS) if (job[field] !== undefined) entry[field] = job[field];
    this.entries.set(job.id, entry);
    if (JSON.stringify(entry) !== JSON.stringify(before)) this.write(entry);
    this.shorten();
    return entry;
  }

  /** Changes marks of an entry: favourite, hidden, thumb. */
  mark(id, marks) {
    const entry = this.entries.get(id);
    if (entry !== undefined) this.write(Object.assign(entry, marks));
  }

  remove(id) {
    this.entries.delete(id);
    this.try(() => localStorage.removeItem(this.place + id));
  }

  /** Takes away all entries but favourites and jobs that have not ended. Returns them, for `restore`. */
  clear() {
    const gone = this.all.filter(({ favourite, finished_at }) => !favourite && finished_at);
    const before = this.cleared;
    for (const { id, created_at } of gone) {
      this.remove(id);
      if (created_at > this.cleared) this.cleared = created_at;
    }
    this.try(() => localStorage.setItem(`${this.place}cleared`, JSON.stringify(this.cleared)));
    return { gone, before };
  }

  restore({ gone, before }) {
    this.cleared = before;
    this.try(() => localStorage.setItem(`${this.place}cleared`, JSON.stringify(before)));
    for (const entry of gone) {
      this.entries.set(entry.id, entry);
      this.write(entry);
    }
  }

  shorten() {
    const over = this.entries.size - MOST;
    if (over > 0) for (const { id } of this.expendable().slice(0, over)) this.remove(id);
  }

  /** The entries in the order in which they can be done without. */
  expendable() {
    const worth = ({ favourite, mine }) => (favourite ? 2 : mine ? 1 : 0);
    return this.all.reverse().sort((a, b) => worth(a) - worth(b));
  }

  write(entry) {
    const kept = {};
    for (const field of [...FIELDS, ...OURS]) if (entry[field] !== undefined) kept[field] = entry[field];
    const text = JSON.stringify(kept);
    for (const { id } of [{}, ...this.expendable()]) {
      if (id !== undefined && id !== entry.id) this.remove(id); // the storage is full: the oldest make room
      if (this.try(() => localStorage.setItem(this.place + entry.id, text)) !== "QuotaExceededError") return;
    }
  }

  /** Does it where storage is allowed. Returns the name of what went wrong, or null. */
  try(what) {
    if (!this.lasting) return null;
    try {
      what();
      return null;
    } catch (error) {
      if (error.name !== "QuotaExceededError") this.lasting = false;
      return error.name;
    }
  }
}

/** A job in the form that the service gives it, from what is kept. */
export const revived = (entry) => ({
  ...Object.fromEntries(FIELDS.map((field) => [field, entry[field] ?? null])),
  position: null,
  done: entry.done ?? 0,
  links: linksOf(entry.id, entry.spec.count),
});

/** Whether the images of a job are gone by now. */
export const expired = ({ expires_at }) => Boolean(expires_at) && new Date(expires_at) <= new Date();

/**
 * Whether a job has all words: of its class, model or seed; a number is how a seed begins. "cat 42" finds seeds
 * 42 and 427 of cats.
 */
export function found({ spec }, words) {
  const text = `${spec.class_name} ${spec.class_name.replaceAll("_", " ")} ${spec.model}`.toLowerCase();
  return words.every((word) => text.includes(word) || String(spec.seed).startsWith(word));
}

/** A short mark of a key, from which nobody gets the key back (FNV-1a, 32 bits). */
function mark(key) {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(key)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return hash.toString(36);
}
