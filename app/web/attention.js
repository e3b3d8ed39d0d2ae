/** An attention map in the browser: read once, then any point of it drawn without asking again. */

import { ask } from "./api.js";

// Inferno (matplotlib, CC0) at nine stops; between them a straight line in sRGB.
const STOPS = [
  [0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85],
  [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164],
];

const FINE = 96; // side of a heat map, points; the browser scales it

/**
 * One layer's attention for one image. Rows are queries and sum to 1; both grids go row by row. A row is its
 * peak and a byte a key, 255 at the peak: 256 colours can show no more.
 */
export class AttentionMap {
  /** Grids are [height, width]. A query has one of `peaks`, one of `tops` (the peak's key), [keys] `levels`. */
  constructor({ layer, query_grid, key_grid, gamma, share, peaks, tops, levels }) {
    Object.assign(this, { layer, query_grid, key_grid, gamma, share, peaks, tops });
    this.keys = key_grid[0] * key_grid[1];
    const queries = query_grid[0] * query_grid[1];
    if (peaks.length !== queries || levels.length !== this.keys * queries) {
      throw new Error("The map does not have the shape its grids say.");
    }
    this.rows = Array.from({ length: queries }, (_, query) =>
      levels.subarray(query * this.keys, (query + 1) * this.keys));
    this.looks = new Map(); // by query
  }

  /** The cell of the query grid under a point, whose x and y go from 0 to 1. */
  cell(x, y) {
    const [height, width] = this.query_grid;
    const within = (value, size) => Math.min(Math.max(Math.floor(value * size), 0), size - 1);
    return { column: within(x, width), row: within(y, height) };
  }

  /** The row of a query cell: its levels, its peak and the peak's place, and how widely it spreads. */
  look({ column, row }) {
    const query = row * this.query_grid[1] + column;
    let look = this.looks.get(query);
    if (look === undefined) {
      const [height, width] = this.key_grid;
      const [levels, top] = [this.rows[query], this.tops[query]];
      look = {
        levels,
        most: this.peaks[query],
        half: halfOf(levels),
        x: ((top % width) + 0.5) / width,
        y: (Math.floor(top / width) + 0.5) / height,
      };
      this.looks.set(query, look);
    }
    return look;
  }
}

const counts = new Uint32Array(256);
/** The fewest cells that hold half of all attention. */
export function halfOf(levels) {
  counts.fill(0);
  let left = 0;
  for (const level of levels) {
    counts[level]++;
    left += level / 2;
  }
  let cells = 0;
  for (let level = 255; level > 0; level--) {
    if (counts[level] * level >= left) return cells + Math.ceil(left / level);
    left -= counts[level] * level;
    cells += counts[level];
  }
  return cells;
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
    ...readRows(await response.arrayBuffer()),
  });
}

/** The rows of a .npy file of records: the service's answer to `rounded=true`. */
function readRows(buffer) {
  const view = new DataView(buffer);
  const wide = view.getUint8(6) > 1; // the header's length has two bytes in version 1, four in later ones
  const start = wide ? 12 + view.getUint32(8, true) : 10 + view.getUint16(8, true);
  const header = new TextDecoder().decode(buffer.slice(0, start));
  const found = /\[\('peak', '<f4'\), \('at', '<u4'\), \('levels', '\|u1', \((\d+),\)\)\]/.exec(header);
  if (found === null) throw new Error("The map is not in the one form that this page reads.");
  const keys = Number(found[1]);
  const queries = (buffer.byteLength - start) / (8 + keys);
  const rows = { peaks: new Float32Array(queries), tops: new Uint32Array(queries) };
  rows.levels = new Uint8Array(queries * keys);
  for (let query = 0; query < queries; query++) {
    const at = start + query * (8 + keys);
    rows.peaks[query] = view.getFloat32(at, true);
    rows.tops[query] = view.getUint32(at + 4, true);
    rows.levels.set(new Uint8Array(buffer, at + 8, keys), query * keys);
  }
  return rows;
}

// The buffers of a heat map, made once: a moving pointer must not make garbage.
let fine;
let across = new Float32Array(); // the rows of keys, each stretched to FINE points

/**
 * A canvas with a row's levels as colours, bilinear between key cells. Its opacity goes from `quiet` at level 0
 * to 1 at the peak. Every call returns the same canvas.
 */
export function heat({ levels }, [height, width], quiet) {
  fine ??= makeFine();
  if (fine.levels === levels && fine.quiet === quiet) return fine.canvas;
  const { words } = fine;
  const colours = palette(quiet);
  const [columns, rows] = [steps(width), steps(height)];
  if (across.length !== height * FINE) across = new Float32Array(height * FINE);
  for (let row = 0, at = 0; row < height; row++) {
    for (let point = 0; point < FINE; point++, at++) {
      const left = levels[row * width + columns.low[point]];
      across[at] = left + (levels[row * width + columns.high[point]] - left) * columns.part[point];
    }
  }
  for (let point = 0, at = 0; point < FINE; point++) {
    const [top, bottom, part] = [rows.low[point] * FINE, rows.high[point] * FINE, rows.part[point]];
    for (let column = 0; column < FINE; column++, at++) {
      const upper = across[top + column];
      words[at] = colours[(upper + (across[bottom + column] - upper) * part + 0.5) | 0];
    }
  }
  fine.context.putImageData(fine.image, 0, 0);
  Object.assign(fine, { levels, quiet });
  return fine.canvas;
}

function makeFine() {
  const canvas = new OffscreenCanvas(FINE, FINE);
  // kept in the CPU's memory, where each move writes and reads it
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(FINE, FINE);
  return { canvas, context, image, words: new Uint32Array(image.data.buffer) };
}

const palettes = new Map();
/** The colours of the 256 levels as pixels of ImageData. */
function palette(quiet) {
  if (!palettes.has(quiet)) {
    const colours = new Uint8ClampedArray(4 * 256);
    for (let level = 0; level < 256; level++) {
      const place = (level / 255) * (STOPS.length - 1);
      const low = Math.min(Math.floor(place), STOPS.length - 2);
      const mixed = STOPS[low].map((value, i) => value + (STOPS[low + 1][i] - value) * (place - low));
      colours.set([...mixed, 255 * (quiet + ((1 - quiet) * level) / 255)], 4 * level);
    }
    palettes.set(quiet, new Uint32Array(colours.buffer));
  }
  return palettes.get(quiet);
}

/** The colour of a level; as a pixel of ImageData with `word`. */
export function colour(level, word = false) {
  const pixel = palette(1)[level];
  return word ? pixel : `rgb(${pixel & 255} ${(pixel >> 8) & 255} ${(pixel >> 16) & 255})`;
}

/** The site whose gate is widest open, which says most; undefined where there is none. */
export const widest = (sites) => [...sites].sort((a, b) => Math.abs(b.gamma) - Math.abs(a.gamma))[0];

const known = new Map();
/** Each fine point along an axis of `size` cells: the two cells around it, and how far it is from the first. */
function steps(size) {
  if (!known.has(size)) {
    const axis = { low: new Uint16Array(FINE), high: new Uint16Array(FINE), part: new Float32Array(FINE) };
    for (let point = 0; point < FINE; point++) {
      const place = Math.min(Math.max(((point + 0.5) / FINE) * size - 0.5, 0), size - 1);
      axis.low[point] = Math.floor(place);
      axis.high[point] = Math.min(axis.low[point] + 1, size - 1);
      axis.part[point] = place - axis.low[point];
    }
    known.set(size, axis);
  }
  return known.get(size);
}
