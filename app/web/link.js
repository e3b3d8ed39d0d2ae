/** The spec of an image as a link: this page makes the same image again from its query string. */

import { MAX_SEED } from "./api.js";
import { MAX_PINS } from "./pins.js";

const PINS = new RegExp(`^\\d{1,5},\\d{1,5}(;\\d{1,5},\\d{1,5}){0,${MAX_PINS - 1}}$`);

const page = () => new URL(".", document.baseURI);

/**
 * The link to image `k` of a job; without `k` to the job as a whole. `pins` are pixels of the image, "x,y;x,y";
 * "" or null leaves pins or layer out.
 */
export function linkTo({ spec }, k = null, { pins = null, layer = null } = {}) {
  const url = page();
  url.search = new URLSearchParams({
    model: spec.model,
    hash: spec.model_hash.slice(0, 12),
    class: spec.class_name,
    seed: spec.seed,
    count: spec.count,
    truncation: spec.truncation,
    ...(k === null ? {} : { image: k }),
    ...(layer ? { layer } : {}),
  });
  if (pins) url.search += `&pins=${pins}`; // as people read it: URLSearchParams would write %2C
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
  const pins = query.get("pins") ?? "";
  if (pins !== "" && !PINS.test(pins)) throw wrong("pins", pins, `x,y;x,y in pixels, ${MAX_PINS} points at most`);
  for (const key of ["pins", "layer"]) {
    if (query.get(key) && image === null) throw wrong(key, query.get(key), "given with image=0 or another one");
  }
  return {
    model: query.get("model"),
    hash: query.get("hash") ?? "",
    class_name: query.get("class"),
    seed: BigInt(seed).toString(),
    // image k depends on the seed and k alone: a longer job holds the same image
    count: Math.max(whole("count", 1, 1, 64), (image ?? 0) + 1),
    truncation,
    image,
    layer: query.get("layer") || null,
    pins: pins === "" ? [] : pins.split(";").map((pin) => pin.split(",").map(Number)),
  };
}

/**
 * The `pins` (x and y from 0 to 1) and the `layer` of a link that an image of `model` has, and `complaints`: in
 * words, those that it does not have.
 */
export function looked({ pins, layer }, model) {
  const size = model.resolution;
  const layers = model.attention.map(({ name }) => name);
  const outside = pins.filter((pin) => Math.max(...pin) >= size).map((pin) => pin.join(","));
  const unknown = layer !== null && !layers.includes(layer);
  const complaints = [];
  if (layers.length === 0 && (pins.length > 0 || unknown)) {
    complaints.push(`The model "${model.name}" has no attention layer: the link's pins and layer are left out.`);
    return { pins: [], layer: null, complaints };
  }
  if (outside.length > 0) {
    const which = outside.length === 1 ? `pin ${outside[0]} lies` : `pins ${outside.join(" and ")} lie`;
    complaints.push(`The link's ${which} outside the image, whose pixels go from 0 to ${size - 1}.`);
  }
  if (unknown) {
    const short = layer.slice(0, 40);
    complaints.push(`The link asks for the layer "${short}"; this model has ${layers.join(", ")}.`);
  }
  return {
    pins: pins.filter((pin) => Math.max(...pin) < size).map(([x, y]) => ({ x: (x + 0.5) / size, y: (y + 0.5) / size })),
    layer: unknown ? null : layer,
    complaints,
  };
}

const wrong = (key, value, must) =>
  new Error(`The link cannot be followed: its ${key} ${key === "pins" ? "are" : "is"} "${value.slice(0, 40)}", and must be ${must}.`);

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
