/** From the spec of a job to the request that makes its images again. */

import { getJobs } from "./api.js";
import { spoken } from "./dom.js";

/** Whether a served model makes the same images as the one of a spec. */
export const sameVersion = (spec, served) =>
  served.hash === spec.model_hash && (spec.precision === undefined || served.precision === spec.precision);

/**
 * The request for the images of a spec, from the model as it is served now. served: undefined where no worker has
 * it. Throws an Error in words.
 */
export function orderOf(spec, served) {
  const { model, class_id, class_name, seed, truncation, count, start = 0, class_weights, morph } = spec;
  if (!served) throw new Error(`No worker here has loaded ${spoken(model)} now. Start one, then make it again.`);
  if (morph) {
    const { ends, loop, weights, attention } = morph;
    const way = weights ? { weights } : { frames: count, loop };
    const layer = attention ? { attention: true, layer: attention } : {};
    const drawn = ends.map(({ class_weights, seed, index }) => ({ class_weights, seed, index }));
    return { model, ends: drawn, truncation, ...way, ...layer };
  }
  const rest = { model, count, seed, truncation, ...(start > 0 ? { start } : {}) };
  if (class_weights) return { class_weights, ...rest };
  // another version may have its classes in another order
  const known = [served.classes[class_id], ...served.classes].find((one) => one?.name === class_name);
  if (known === undefined) throw new Error(`The ${spoken(model)} served now has no class "${spoken(class_name)}".`);
  return { class_id: known.id, ...rest };
}

/** Queues the job of a request. Raises Problem. */
export function place(order) {
  const headers = { "Content-Type": "application/json" };
  return getJobs(order.ends ? "morph" : "generate", { method: "POST", headers, body: JSON.stringify(order) });
}
