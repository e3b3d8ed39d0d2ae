/** The spec of an image as a link: this page makes the same image again from its query string. */

import { MAX_SEED } from "./api.js";

const page = () => new URL(".", document.baseURI);

/** The link to image `k` of a job; without `k` to the job as a whole. */
export function linkTo({ spec }, k = null) {
  const url = page();
  url.search = new URLSearchParams({
    model: spec.model,
    hash: spec.model_hash.slice(0, 12),
    class: spec.class_name,
    seed: spec.seed,
    count: spec.count,
    truncation: spec.truncation,
    ...(k === null ? {} : { image: k }),
  });
  return url;
}

/** The spec in a query string; null without one. Throws an Error that says which part of it cannot be. */
export function specIn(search) {
  const query = new URLSearchParams(search);
  if (!query.has("class")) return null;
  const seed = query.get("seed") ?? "";
  if (!/^\d{1,19}$/.test(seed) || BigInt(seed) > MAX_SEED) throw wrong("seed", seed, `whole, from 0 to ${MAX_SEED}`);
  const whole = (key, otherwise, least, most) => {
    if (!query.has(key)) return otherwise;
    const value = Number(query.get(key));
    if (Number.isInteger(value) && value >= least && value <= most) return value;
    throw wrong(key, query.get(key), `whole, from ${least} to ${most}`);
  };
  const image = whole("image", null, 0, 63);
  const truncation = Number(query.get("truncation") ?? 1);
  if (!(truncation > 0 && truncation <= 1)) throw wrong("truncation", query.get("truncation"), "above 0 and at most 1");
  return {
    model: query.get("model"),
    hash: query.get("hash") ?? "",
    class_name: query.get("class"),
    seed: BigInt(seed).toString(),
    // image k depends on the seed and k alone: a longer job holds the same image
    count: Math.max(whole("count", 1, 1, 64), (image ?? 0) + 1),
    truncation,
    image,
  };
}

const wrong = (key, value, must) =>
  new Error(`The link cannot be followed: its ${key} is "${value.slice(0, 40)}", and must be ${must}.`);

/** Whether a job makes, or made, the images of `asked`, which is a spec as `specIn` reads it. */
export function makes({ spec, state }, asked) {
  return (
    (asked.model === null || spec.model === asked.model) &&
    spec.model_hash.startsWith(asked.hash) &&
    (spec.class_name === asked.class_name || String(spec.class_id) === asked.class_name) &&
    spec.seed === asked.seed &&
    spec.truncation === asked.truncation &&
    (asked.image === null ? spec.count === asked.count : spec.count > asked.image) &&
    state !== "failed" &&
    state !== "cancelled"
  );
}
