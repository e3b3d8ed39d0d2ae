/** An attention map in the browser: read once, then any point of it drawn without asking again. */

import { ask } from "./api.js";

// Inferno (matplotlib, CC0) at nine stops; between them a straight line in sRGB.
const STOPS = [
  [0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85],
  [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164],
];
const COLOURS = Array.from({ length: 256 }, (_, level) => {
  const place = (level / 255) * (STOPS.length - 1);
  const low = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[low].map((value, i) => Math.round(value + (STOPS[low + 1][i] - value) * (place - low)));
});

const FINE = 96; // a heat map is drawn on FINE × FINE points, then scaled by the browser

/** One layer's attention for one image: rows are queries and sum to 1, both grids row by row. */
export class AttentionMap {
  /** `values`: float32 [queries · keys]; grids are [height, width]. */
  constructor({ layer, query_grid, key_grid, gamma, share, values }) {
    Object.assign(this, { layer, query_grid, key_grid, gamma, share, values });
    this.keys = key_grid[0] * key_grid[1];
    if (values.length !== this.keys * query_grid[0] * query_grid[1]) {
      throw new Error("The map does not have the shape its grids say.");
    }
  }

  /** The cell of the query grid under a point; x and y from 0 to 1. */
  cell(x, y) {
    const [height, width] = this.query_grid;
    const within = (value, size) => Math.min(Math.max(Math.floor(value * size), 0), size - 1);
    return { column: within(x, width), row: within(y, height) };
  }

  /** What that cell attends to: its row of the map, the peak of it, and how widely it spreads. */
  look({ column, row }) {
    const query = row * this.query_grid[1] + column;
    const weights = this.values.subarray(query * this.keys, (query + 1) * this.keys);
    let peak = 0;
    for (let key = 1; key < weights.length; key++) if (weights[key] > weights[peak]) peak = key;
    const [height, width] = this.key_grid;
    const sorted = Float32Array.from(weights).sort().reverse();
    let half = 0;
    for (let sum = 0; sum < 0.5 && half < sorted.length; half++) sum += sorted[half];
    return {
      weights,
      most: weights[peak],
      half, // the fewest cells that hold half of the attention
      x: ((peak % width) + 0.5) / width,
      y: (Math.floor(peak / width) + 0.5) / height,
    };
  }
}

/** Fetches the map of one image of a job. Raises Problem. */
export async function fetchMap(link, signal) {
  const response = await ask(link, { headers: { Accept: "application/x-npy" }, signal });
  const said = (name) => response.headers.get(`X-Attention-${name}`);
  return new AttentionMap({
    layer: said("Layer"),
    query_grid: said("Query-Grid").split("x").map(Number),
    key_grid: said("Key-Grid").split("x").map(Number),
    gamma: Number(said("Gamma")),
    share: Number(said("Share")),
    values: readHalves(await response.arrayBuffer()),
  });
}

/** The values of a .npy file of little-endian float16 in C order, as float32. */
function readHalves(buffer) {
  const view = new DataView(buffer);
  const wide = view.getUint8(6) > 1; // version 1 writes the header's length in two bytes, later ones in four
  const start = wide ? 12 + view.getUint32(8, true) : 10 + view.getUint16(8, true);
  const header = new TextDecoder().decode(buffer.slice(0, start));
  if (!header.includes("'<f2'") || !header.includes("'fortran_order': False")) {
    throw new Error("The map is not float16 in C order, which is all this page reads.");
  }
  // a table, since DataView.getFloat16 is younger than many browsers
  HALVES ??= Float32Array.from({ length: 65536 }, (_, bits) => {
    const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, (bits & 1023) / 1024];
    if (exponent === 0) return sign * fraction * 2 ** -14;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction) * 2 ** (exponent - 15);
  });
  return Float32Array.from(new Uint16Array(buffer.slice(start)), (bits) => HALVES[bits]);
}
let HALVES;

let fine = null;

/**
 * A canvas with one look drawn from 0 to its own peak, bilinear between key cells; its opacity goes from
 * `quiet` at 0 to 1 at the peak. The canvas is the same one at each call.
 */
export function heat({ weights, most }, [height, width], quiet) {
  fine ??= new OffscreenCanvas(FINE, FINE);
  const context = fine.getContext("2d");
  const image = context.createImageData(FINE, FINE);
  const across = steps(width);
  const down = steps(height);
  for (let row = 0, at = 0; row < FINE; row++) {
    const [top, bottom, below] = down[row];
    for (let column = 0; column < FINE; column++, at += 4) {
      const [left, right, beside] = across[column];
      const upper = weights[top * width + left] * (1 - beside) + weights[top * width + right] * beside;
      const lower = weights[bottom * width + left] * (1 - beside) + weights[bottom * width + right] * beside;
      const level = (upper * (1 - below) + lower * below) / (most || 1);
      const [red, green, blue] = COLOURS[Math.round(level * 255)];
      image.data[at] = red;
      image.data[at + 1] = green;
      image.data[at + 2] = blue;
      image.data[at + 3] = 255 * (quiet + (1 - quiet) * level);
    }
  }
  context.putImageData(image, 0, 0);
  return fine;
}

const known = new Map();
/** For each fine point along an axis of `size` cells: the two cells it lies between, and how far along. */
function steps(size) {
  if (!known.has(size)) {
    known.set(size, Array.from({ length: FINE }, (_, point) => {
      const place = Math.min(Math.max(((point + 0.5) / FINE) * size - 0.5, 0), size - 1);
      const low = Math.floor(place);
      return [low, Math.min(low + 1, size - 1), place - low];
    }));
  }
  return known.get(size);
}
