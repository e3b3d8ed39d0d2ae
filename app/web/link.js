/** The spec of an image as a link: this page makes the same image again from its query string. */

import { MAX_SEED } from "./api.js";
import { MAX_PINS } from "./pins.js";

const PINS = new RegExp(`^\\d{1,5},\\d{1,5}(;\\d{1,5},\\d{1,5}){0,${MAX_PINS - 1}}$`);

const FURTHEST = 2 ** 53 - 1; // index of an image that a number holds

const page = () => new URL(".", document.baseURI);

/**
 * The link to image `k` of a job; without `k` to the job as a whole. `pins` are pixels of the image, "x,y;x,y";
 * "" or null leaves pins or layer out.
 */
export function linkTo({ spec }, k = null, { pins = null, layer = null } = {}) {
  const { morph, start } = spec;
  // of rows of weights the one of the image is enough
  const alone = k !== null && Boolean(morph?.weights);
  const made = {
    model: spec.model,
    hash: spec.model_hash.slice(0, 12),
    class: spec.class_name,
    ...(spec.class_weights ? { classes: mixed(spec.class_weights) } : {}),
    ...(morph ? wayOf(morph, alone ? k : null, spec.count) : { seed: spec.seed, count: spec.count }),
    ...(start > 0 && !morph ? { start } : {}),
    truncation: spec.truncation,
    ...(k === null ? {} : { image: alone ? 0 : k }),
    ...(layer ? { layer } : {}),
  };
  const url = page();
  url.search = readable(made);
  if (pins) url.search += `&pins=${pins}`;
  return url;
}

/** The link to Explore with these images, as `specIn` reads them, and a tool by its name. */
export function linkToExplore({ model, ends, truncation }, tool) {
  const url = page();
  const weighed = ends.map((end) => ({ ...end, class_weights: end.class_weights ?? { [end.class_id]: 1 } }));
  const made = { model: model.name, hash: model.hash.slice(0, 12), ...wayOf({ ends: weighed }), truncation, tool };
  url.search = readable(made);
  url.hash = "explore";
  return url;
}

const readable = (made) =>
  new URLSearchParams(made).toString().replace(/%2C/g, ",").replace(/%3B/g, ";").replace(/%40/g, "@");

const mixed = (weights) => Object.entries(weights).map(([id, weight]) => `${id}*${weight}`).join(",");

/** A morph as its link has it: `ends` are "classes@seed.index", each class "id*weight". */
function wayOf({ ends, loop, weights }, k, count) {
  const said = ends.map((end) => `${mixed(end.class_weights)}@${end.seed}.${end.index}`).join(";");
  if (!weights) return { ends: said, ...(count ? { frames: count } : {}), ...(loop ? { loop: 1 } : {}) };
  return { ends: said, weights: (k === null ? weights : [weights[k]]).map((row) => row.join(",")).join(";") };
}

/**
 * The spec in a query string, as the service tells one, with `image`, a number in its job or null; null without
 * a spec. Throws an Error that says which part of it cannot be.
 */
export function specIn(search) {
  const query = new URLSearchParams(search);
  if (!query.has("class") && !query.has("ends")) {
    if (!["classes", "model", "seed", "image"].some((key) => query.has(key))) return null;
    throw new Error("The link cannot be followed: it names no class. It may have been cut off when it was copied.");
  }
  const whole = (key, otherwise, least, most) => {
    if (!query.has(key)) return otherwise;
    const value = Number(query.get(key));
    if (Number.isInteger(value) && value >= least && value <= most) return value;
    throw wrong(key, query.get(key), `whole, from ${least} to ${most}`);
  };
  const morph = query.has("ends") ? morphIn(query, whole) : null;
  const seed = morph ? morph.ends[0].seed : seedOf(query.get("seed") ?? "");
  let [start, count, image] = [whole("start", 0, 0, FURTHEST), morph?.count ?? null, null];
  if (morph === null && (query.has("count") || !query.has("image"))) count = whole("count", 1, 1, 64);
  if (count !== null) image = whole("image", null, 0, count - 1);
  else {
    // an image alone, whatever job it was of
    start += whole("image", 0, 0, FURTHEST);
    [count, image] = [1, 0];
  }
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
    class_name: query.get("class") ?? "a morph",
    class_weights: query.has("classes") ? classesIn(query.get("classes")) : null,
    morph,
    seed,
    start,
    count,
    truncation,
    image,
    tool: query.get("tool"),
    layer: query.get("layer") || null,
    pins: pins === "" ? [] : pins.split(";").map((pin) => pin.split(",").map(Number)),
  };
}

function seedOf(seed) {
  if (/^\d{1,19}$/.test(seed) && BigInt(seed) <= MAX_SEED) return BigInt(seed).toString();
  throw wrong("seed", seed, `whole, from 0 to ${MAX_SEED}`);
}

function classesIn(text) {
  const parts = text.split(",").map((part) => /^(\d{1,9})(?:\*(\d[\de.+-]{0,30}))?$/.exec(part));
  if (parts.some((part) => part === null || !(Number(part[2] ?? 1) > 0))) {
    throw wrong("classes", text, "such as 3*0.7,5*0.3");
  }
  return Object.fromEntries(parts.map(([, id, weight]) => [id, Number(weight ?? 1)]));
}

function morphIn(query, whole) {
  const ends = query.get("ends").split(";").map((text) => {
    const [, classes, seed, index] = /^([^@]+)@(\d+)(?:\.(\d{1,16}))?$/.exec(text) ?? [];
    if (classes === undefined) throw wrong("ends", text, "such as 3@1.0;5@2.0: class, seed and index");
    return { class_weights: classesIn(classes), seed: seedOf(seed), index: Number(index ?? 0) };
  });
  if (!query.has("weights")) {
    return { ends, loop: query.get("loop") === "1", weights: null, count: whole("frames", 32, 2, 256) };
  }
  const weights = query.get("weights").split(";").map((row) => row.split(",").map(Number));
  if (weights.some((row) => row.length !== ends.length || row.some((weight) => !(weight >= 0)))) {
    throw wrong("weights", query.get("weights"), "a number for each of the ends, such as 1,0;0.5,0.5");
  }
  return { ends, loop: false, weights, count: weights.length };
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

/** Which image of a job is that of `asked`, a spec as `specIn` reads it; the job's first for all; null: none. */
export function placeIn({ spec, state }, asked) {
  const same =
    (asked.model === null || spec.model === asked.model) &&
    spec.model_hash.startsWith(asked.hash) &&
    (asked.morph !== null || spec.class_name === asked.class_name || String(spec.class_id) === asked.class_name) &&
    String(spec.seed) === asked.seed &&
    spec.truncation === asked.truncation &&
    JSON.stringify(spec.class_weights ?? null) === JSON.stringify(asked.class_weights) &&
    wayTo(spec.morph) === wayTo(asked.morph) &&
    state !== "failed" &&
    state !== "cancelled";
  if (!same) return null;
  const start = spec.morph ? 0 : (spec.start ?? 0);
  if (asked.image === null) return spec.count === asked.count && start === asked.start ? 0 : null;
  const place = asked.start + asked.image - start;
  return place >= 0 && place < spec.count && (!spec.morph || spec.count === asked.count) ? place : null;
}

function wayTo(morph) {
  if (!morph) return "";
  const ends = morph.ends.map(({ class_weights, seed, index }) => [class_weights, String(seed), index]);
  return JSON.stringify([ends, Boolean(morph.loop), morph.weights ?? null]);
}
