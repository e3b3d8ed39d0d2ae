/** What the gate of an attention layer says: how much the layer adds to the image. */

import { $, percent } from "./dom.js";

// Under these shares a vivid map may mean little, and the page says so.
export const NEARLY_SHUT = 0.01; // the figure of the service warns below the same share
const WEAK = 0.1;

/** A number in three digits. */
export const round = (value) => String(Number(value.toPrecision(3))).replace("-", "−");

/** Shows the gate of a map, and how much its map means. */
export function showGate({ gamma, share, query_grid: queries, key_grid: keys }) {
  $("#gate").hidden = false;
  $("#gamma").textContent = round(gamma);
  $("#share").textContent = percent(share);
  // a share that is no number counts as shut
  const state = share >= WEAK ? "open" : share >= NEARLY_SHUT ? "weak" : "shut";
  $("#gate").dataset.state = state;
  const means =
    "γ is the gate the network learned for this layer; " +
    "the share compares what attention adds with what was there already.";
  const grids = `It looks from ${queries[1]} × ${queries[0]} places at ${keys[1]} × ${keys[0]}.`;
  $("#gate-words").textContent = {
    shut:
      "The gate is nearly shut: attention adds so little here that this map says next to nothing " +
      `about how the image came about. ${means}`,
    weak:
      "Attention adds a little here: the map shows where it looked, but most of the image came about " +
      `without it. ${means}`,
    open: `${means} ${grids}`,
  }[state];
}
