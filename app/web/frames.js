/** Single images made while somebody drags: each once, kept for the visit, and given up when overtaken. */

import { ask, cancel, ended, follow, getJobs } from "./api.js";

const KEPT = 800; // pictures; some 10 KB each
const PATIENCE_MS = 400; // a request that takes longer is cancelled once another picture is wanted
const JSON_BODY = { "Content-Type": "application/json" };
const AT_ONCE = { ...JSON_BODY, Accept: "image/png", Prefer: "wait=30, on-disconnect=cancel" };

const kept = new Map(); // what was asked -> { bitmap, job: its address }

/** A seed below 2^32: short enough to read aloud. */
export const newSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0]);

/** A picture over the whole of a canvas, whose pixels then are the picture's. */
export function paint(canvas, bitmap) {
  if (canvas.width !== bitmap.width) canvas.width = bitmap.width;
  if (canvas.height !== bitmap.height) canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  canvas.dataset.painted = "";
}

/** An end as the service is asked for it. */
export const asked = ({ class_id, class_weights, seed, index }) =>
  class_weights === undefined ? { class_id, seed, index } : { class_weights, seed, index };

/** What one picture is made from: a key, and the request for it. */
export class Wanted {
  constructor(model, path, body) {
    this.path = path;
    this.body = { model: model.name, ...body, listed: false };
    this.key = JSON.stringify([model.hash, path, this.body]);
  }

  /** The image between ends, of which each has one of `weights`. */
  static between(model, ends, weights, truncation) {
    const used = ends.map((end, k) => [end, weights[k]]).filter(([, weight]) => weight > 0);
    if (used.length === 1) return Wanted.row(model, used[0][0], 1, truncation);
    const body = { ends: used.map(([end]) => asked(end)), weights: [used.map(([, weight]) => weight)], truncation };
    return new Wanted(model, "morph", body);
  }

  /** `count` images of an end's seed, from its own on, as one picture. */
  static row(model, end, count, truncation) {
    const { index: start, ...rest } = asked(end);
    return new Wanted(model, "generate", { ...rest, start, count, truncation });
  }

  request(signal) {
    return ask(this.path, { method: "POST", headers: AT_ONCE, body: JSON.stringify(this.body), signal });
  }

  /** The picture, if it was made before: { bitmap, job: its address, k: its number there }. */
  get made() {
    return kept.get(this.key);
  }

  keep(bitmap, job, k) {
    kept.set(this.key, { bitmap, job, k });
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
    return this.made;
  }
}

/** A picture that the service draws at an address. */
export class Drawn extends Wanted {
  constructor(link) {
    super({}, link, {});
  }

  request(signal) {
    return ask(this.path, { signal });
  }
}

/** One line of pictures, as of a slider: of those that are wanted meanwhile only the last is made. */
export class Live {
  /** `failed(problem)` is told of what could not be made; null: the last one could. */
  constructor(failed) {
    this.failed = failed;
    this.latest = null; // what was wanted last
    this.waiting = null;
    this.running = null;
  }

  /** Calls `show(picture)` with it, now or later; not if another one that is wanted meanwhile comes first. */
  want(wanted, show) {
    this.latest = wanted;
    this.waiting = null;
    if (wanted.made !== undefined) return show(wanted.made);
    this.waiting = { wanted, show };
    if (this.running === null) this.run();
    else if (performance.now() - this.running.since > PATIENCE_MS) this.running.stop.abort();
  }

  /** Gives up what runs and what waits. */
  drop() {
    this.latest = this.waiting = null;
    this.running?.stop.abort();
  }

  async run() {
    while (this.waiting !== null) {
      const { wanted, show } = this.waiting;
      this.waiting = null;
      this.running = { since: performance.now(), stop: new AbortController() };
      try {
        const made = await fetched(wanted, this.running.stop.signal);
        this.failed(null);
        // one that was overtaken is shown while the newer one is not there: a drag is seen as it goes
        if (this.latest === wanted || this.latest?.made === undefined) show(made);
      } catch (problem) {
        if (problem.name === "AbortError") continue;
        this.failed(problem);
        if (problem.retryAfter) await this.pause(problem.retryAfter);
        // over a limit, say: what is still wanted is asked for again
        if (problem.retryAfter && this.latest === wanted) this.waiting ??= { wanted, show };
      }
    }
    this.running = null;
  }

  /** Waits so many seconds, or until another picture is wanted. */
  pause(seconds) {
    this.running.since = -Infinity;
    return new Promise((resolve) => {
      setTimeout(resolve, 1000 * seconds);
      this.running.stop.signal.addEventListener("abort", resolve);
    });
  }
}

/** The picture of `wanted`, made by the service unless it was before. */
export async function fetched(wanted, signal) {
  if (wanted.made !== undefined) return wanted.made;
  const response = await wanted.request(signal);
  if (response.status === 202) throw new Error("The service is busy: the picture did not come in time.");
  return wanted.keep(await createImageBitmap(await response.blob()), response.headers.get("Location"), 0);
}

/** Many pictures as one job: each is shown as it comes. */
export class Prefill {
  /** `came(k)` is called for each picture, `ended(problem or null)` at the end. */
  constructor(came, ended) {
    this.came = came;
    this.ended = ended;
    this.job = null;
  }

  /** Orders a job whose image `k` is `wanted[k]`, in place of the one before. `body`: beside its ends. */
  async start(model, ends, body, wanted) {
    this.drop();
    const turn = (this.turn = new AbortController());
    this.wanted = wanted;
    // whoever ordered them has drawn those that are there
    turn.told = new Set([...wanted.keys()].filter((k) => wanted[k].made !== undefined));
    const named = { model: model.name, ends: ends.map(asked), ...body, listed: false };
    const options = { method: "POST", headers: JSON_BODY, body: JSON.stringify(named) };
    try {
      const job = await getJobs("morph", options);
      if (turn.signal.aborted) return void cancel(job).catch(() => {});
      this.job = job;
      this.stop = follow(job, (news) => this.grown({ ...this.job, ...news }), (problem) => this.ended(problem));
    } catch (problem) {
      if (!turn.signal.aborted) this.ended(problem);
    }
  }

  drop() {
    this.turn?.abort();
    this.stop?.();
    if (this.job !== null && !ended(this.job)) cancel(this.job).catch(() => {}); // it may have ended meanwhile
    this.job = null;
  }

  /** Fetches what is made by now. */
  async grown(job) {
    this.job = job;
    const { turn } = this; // an earlier one may still be fetching: its news are not these
    turn.news = true;
    if (turn.fetching) return;
    turn.fetching = true;
    const { signal } = turn;
    try {
      while (turn.news && !signal.aborted) {
        turn.news = false;
        await this.fetchAll(signal);
      }
      if (!signal.aborted && ended(this.job)) this.ended(null);
    } catch (problem) {
      if (!signal.aborted) this.ended(problem);
    } finally {
      turn.fetching = false;
    }
  }

  async fetchAll(signal) {
    for (let k = 0; k < this.wanted.length && !signal.aborted; k++) {
      if (this.wanted[k].made !== undefined) {
        this.tell(k); // it may have been fetched elsewhere meanwhile, as the thumbnail of an end
        continue;
      }
      if (k >= this.job.done && !ended(this.job)) return;
      try {
        await this.fetch(k, signal);
      } catch (problem) {
        // the images that `done` counts need not be the first: the next news asks again, not each of the others now
        if (problem.status !== 409 || ended(this.job)) throw problem;
        return;
      }
    }
  }

  async fetch(k, signal) {
    const response = await ask(this.job.links.images[k], { signal });
    this.wanted[k].keep(await createImageBitmap(await response.blob()), this.job.links.self, k);
    if (!signal.aborted) this.tell(k);
  }

  /** That picture `k` has come, once. */
  tell(k) {
    if (this.turn.told.has(k)) return;
    this.turn.told.add(k);
    this.came(k);
  }
}
