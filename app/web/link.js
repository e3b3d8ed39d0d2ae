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

/** The spec in a query string; null without one. A number out of range becomes its default. */
export function specIn(search) {
  const query = new URLSearchParams(search);
  const [name, seed] = [query.get("class"), query.get("seed")];
  if (name === null || !/^\d{1,19}$/.test(seed ?? "") || BigInt(seed) > MAX_SEED) return null;
  const whole = (key, otherwise, least, most) => {
    const value = Number(query.get(key) ?? otherwise);
    return Number.isInteger(value) && value >= least && value <= most ? value : otherwise;
  };
  const image = query.has("image") ? whole("image", 0, 0, 63) : null;
  const truncation = Number(query.get("truncation") ?? 1);
  return {
    model: query.get("model"),
    hash: query.get("hash") ?? "",
    class_name: name,
    seed: BigInt(seed).toString(),
    // image k depends on the seed and k alone: a longer job holds the same image
    count: Math.max(whole("count", 1, 1, 64), (image ?? 0) + 1),
    truncation: truncation > 0 && truncation <= 1 ? truncation : 1,
    image,
  };
}

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
