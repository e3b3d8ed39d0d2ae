/** A recipe as a link: the query string from which this page makes the same image again. */

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

/** The recipe in a query string, or null where there is none; numbers out of range fall back to their defaults. */
export function recipeIn(search) {
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
    // image k depends on the seed and k alone, so that a longer job holds the same image
    count: Math.max(whole("count", 1, 1, 64), (image ?? 0) + 1),
    truncation: truncation > 0 && truncation <= 1 ? truncation : 1,
    image,
  };
}

/** Whether a job made (or makes) exactly what the recipe asks for. */
export function makes({ spec, state }, recipe) {
  return (
    (recipe.model === null || spec.model === recipe.model) &&
    spec.model_hash.startsWith(recipe.hash) &&
    (spec.class_name === recipe.class_name || String(spec.class_id) === recipe.class_name) &&
    spec.seed === recipe.seed &&
    spec.truncation === recipe.truncation &&
    (recipe.image === null ? spec.count === recipe.count : spec.count > recipe.image) &&
    state !== "failed" &&
    state !== "cancelled"
  );
}
