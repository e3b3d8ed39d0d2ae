/** The client of the service: requests, problems in words, and jobs followed to their end. */

const base = new URL(".", document.baseURI);

// A browser opens six connections to an HTTP/1.1 server, and each event stream keeps one.
// Two streams leave four for images; further jobs are polled.
const MAX_STREAMS = 2;
const POLL_MS = 1200;
const ENDED = ["succeeded", "failed", "cancelled"];

const KEY = "sagan.key"; // of sessionStorage: the key lives as long as the tab

let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch {
  // storage may be forbidden: the page then asks for the key at each visit
}

/** Sends this key with every request from now on; "" sends none. */
export function useKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // as above
  }
}

export const keyNow = () => key;

export const MAX_SEED = 2n ** 63n - 1n;
export const ended = (job) => ENDED.includes(job.state);

/** A refusal of the service: `message` is the problem document's detail. */
export class Problem extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds; null: asking again will not help
  }
}

/** A link of the service as an absolute URL, with the path prefix of a proxy if there is one. */
export function at(link) {
  const url = new URL(link, base);
  const prefixed = url.origin !== base.origin || url.pathname.startsWith(base.pathname);
  return prefixed ? url : new URL(link.replace(/^\//, ""), base);
}

async function problem(response) {
  const retry = response.headers.get("Retry-After");
  let detail = `The service answered ${response.status} ${response.statusText}.`;
  try {
    const body = JSON.parse(await response.text());
    if (typeof body.detail === "string") detail = body.detail;
    else if (typeof body.title === "string") detail = body.title;
  } catch {
    // not a problem document but a proxy's page, say: the status line says enough
  }
  return new Problem(detail, response.status, retry === null ? null : Number(retry) || 1);
}

/** The address of a picture; with a key, which an address cannot carry, that of a blob. */
export async function source(link) {
  return key === "" ? at(link).href : URL.createObjectURL(await (await ask(link)).blob());
}

/** Follows a clicked link to the service with the key, which a plain link cannot send. */
export async function followKeyed(event) {
  const link = event.target.closest?.("a[data-keyed]");
  if (key === "" || !link || link.href.startsWith("blob:")) return;
  event.preventDefault();
  const opened = document.createElement("a");
  opened.href = await source(link.href);
  if (link.download) opened.download = link.download;
  else opened.target = "_blank";
  opened.click();
}

/** The response to a request. Throws a Problem for anything but a success. */
export async function ask(link, options = {}) {
  let response;
  try {
    const headers = { ...options.headers, ...(key === "" ? {} : { "X-API-Key": key }) };
    response = await fetch(at(link), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service cannot be reached. Is it still running?", 0, 2);
  }
  if (!response.ok) throw await problem(response);
  return response;
}

export const get = async (link, options) => (await ask(link, options)).json();

/**
 * What a route answers of jobs. Seeds go up to 2^63 - 1, beyond what a JavaScript number holds: they come as
 * strings of digits, and are sent as such.
 */
export async function getJobs(link, options) {
  const url = at(link);
  url.searchParams.set("seeds", "string");
  return get(url, options);
}

/** Queues a job of {model, class_id, count, truncation, seed: digits or null}. */
export function generate({ seed, ...rest }, options = {}) {
  // class_id is a number in the body: in a path it could also be the name of another class
  const body = JSON.stringify(seed === null ? rest : { ...rest, seed });
  const headers = { "Content-Type": "application/json" };
  return getJobs("generate", { method: "POST", headers, body, ...options });
}

export const cancel = (job) => getJobs(job.links.self, { method: "DELETE" });

/** The links of a job by its id, as the service gives them. */
export const linksOf = (id, count) => ({
  self: `jobs/${id}`,
  images: Array.from({ length: count }, (_, k) => `jobs/${id}/images/${k}`),
  grid: `jobs/${id}/grid`,
  events: `jobs/${id}/events`,
  attention: `attention/${id}`,
  cancel: `jobs/${id}`,
});

const streams = new Set();
// an EventSource cannot send a key
const mayStream = () => key === "" && streams.size < MAX_STREAMS;

/**
 * Follows a job to its end. Calls `changed(news)` with the job's new fields, the last time with a final state,
 * or `lost(problem)` when it can follow no further. Returns a function that stops it.
 */
export function follow(job, changed, lost) {
  let stream = null;
  let timer = null;
  let stopped = false;

  const stop = () => {
    stopped = true;
    clearTimeout(timer);
    stream?.close();
    streams.delete(stream);
  };

  const look = async () => {
    clearTimeout(timer);
    try {
      const now = await getJobs(job.links.self);
      if (stopped) return;
      changed(now);
      if (ended(now)) return stop();
      if (stream === null && mayStream()) return listen();
      // the place in the line moves without an event of this job: a queued job is polled beside its stream
      if (stream === null || now.state === "queued") timer = setTimeout(look, POLL_MS);
    } catch (error) {
      if (stopped) return;
      if (!(error instanceof Problem) || error.retryAfter === null) {
        stop();
        return lost(error);
      }
      timer = setTimeout(look, 1000 * Math.max(error.retryAfter, 1));
    }
  };

  const listen = () => {
    stream = new EventSource(at(job.links.events));
    streams.add(stream);
    const heard = (event) => {
      if (stopped || !event.data) return;
      const news = JSON.parse(event.data);
      if (ENDED.includes(news.state)) return look(); // the record has the times and the reason
      changed(news);
    };
    for (const name of ["progress", "end"]) stream.addEventListener(name, heard);
    stream.addEventListener("error", () => {
      if (stopped || stream.readyState !== EventSource.CLOSED) return; // it reconnects by itself
      streams.delete(stream);
      stream = null;
      timer = setTimeout(look, POLL_MS);
    });
    if (job.state === "queued") timer = setTimeout(look, POLL_MS);
  };

  if (mayStream()) listen();
  else timer = setTimeout(look, POLL_MS);
  return stop;
}
