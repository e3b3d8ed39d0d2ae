/** A map as a whole: its mean over all queries, the flow between regions, and every query's map at once. */

import { colour, halfOf } from "./attention.js";
import { percent } from "./dom.js";
import { drawBent, drawLook, strokeTwice } from "./marks.js";

// As the service draws them (app/flows.py, app/overviews.py).
const REGIONS = 4; // along a side, at most
const TIMES = 2; // times its even share that a flow carries, at least; below, it means little
const LEAST = 0.1; // of its region's attention, at least
const MOST = 12; // flows
const LEGIBLE = 24; // CSS pixels of a small map's side, at least

/** The views of all queries, and what the service calls each. */
export const GLANCES = { mean: "mean", flow: "received", all: "all" };

const known = new WeakMap(); // by map: what was computed of it
const once = (map, what, compute) => {
  if (!known.has(map)) known.set(map, {});
  return (known.get(map)[what] ??= compute());
};

/** Draws a view of all queries over the whole canvas; `point` is the one under the pointer. */
export function drawGlance(context, map, point, view, strength) {
  if (view === "mean") drawMean(context, map, strength);
  else if (view === "flow") drawFlow(context, map, point, strength);
  else drawAll(context, map, point);
}

/** What a view of all queries shows, in words. `pixel(point)` is a point of the image as "x, y". */
export function tellGlance(map, point, view, pixel, side) {
  if (view === "mean") {
    const { most, x, y, half } = mean(map);
    return (
      `All ${map.peaks.length} points together attend most to ${pixel({ x, y })}: ${percent(most)} there, ` +
      `${times(most * map.keys)} an even spread. Half of it lies in ${half} of ${map.keys} cells.`
    );
  }
  if (view === "flow") return tellFlow(map, point);
  const step = stepOf(map, side);
  const which = step === 1 ? "each point" : step === 2 ? "every 2nd point" : `every ${step}th point`;
  const query = small(map, step, point);
  const look = map.look(query);
  const [height, width] = map.query_grid;
  const from = { x: (query.column + 0.5) / width, y: (query.row + 0.5) / height };
  return (
    `The map of ${which}, at its place, to its own peak. The one outlined, of pixel ${pixel(from)}, ` +
    `attends most to ${pixel(look)}: ${percent(look.most)} there.`
  );
}

const times = (even) => `${even < 10 ? even.toFixed(1) : Math.round(even)} times`;

// --- the mean -------------------------------------------------------------

/** Where all queries attend on average, in the form of a map's look. */
export function mean(map) {
  return once(map, "mean", () => {
    const sums = new Float64Array(map.keys);
    map.rows.forEach((levels, query) => {
      const unit = map.peaks[query] / 255;
      for (let key = 0; key < map.keys; key++) sums[key] += unit * levels[key];
    });
    // rounded rows do not quite sum to 1
    const all = sums.reduce((sum, value) => sum + value, 0);
    const top = sums.reduce((best, value, key) => (value > sums[best] ? key : best), 0);
    const levels = Uint8Array.from(sums, (value) => Math.round((255 * value) / sums[top]));
    const [height, width] = map.key_grid;
    return {
      levels,
      most: sums[top] / all,
      half: halfOf(levels),
      x: ((top % width) + 0.5) / width,
      y: (Math.floor(top / width) + 0.5) / height,
    };
  });
}

function drawMean(context, map, strength) {
  const look = mean(map);
  drawLook(context, map, look, strength);
  const { width, height } = context.canvas;
  const [rows, columns] = map.key_grid;
  strokeTwice(context, "#ffffff", () => context.strokeRect(
    (look.x - 0.5 / columns) * width, (look.y - 0.5 / rows) * height, width / columns, height / rows));
}

// --- the flow between regions ----------------------------------------------

/** Attention by regions: `share[from][to]`, `received[to]` and `even[to]`, and the strongest flows. */
export function flows(map) {
  return once(map, "flows", () => {
    const [lines, columns] = [0, 1].map((axis) => Math.min(REGIONS, map.query_grid[axis], map.key_grid[axis]));
    const regionsOf = ([height, width]) => Array.from({ length: height * width }, (_, cell) =>
      Math.floor((Math.floor(cell / width) * lines) / height) * columns + Math.floor(((cell % width) * columns) / width));
    const [ofQuery, ofKey] = [regionsOf(map.query_grid), regionsOf(map.key_grid)];
    const count = lines * columns;
    const share = Array.from({ length: count }, () => new Float64Array(count));
    const received = new Float64Array(count);
    const even = new Float64Array(count);
    for (const region of ofKey) even[region] += 1 / map.keys;
    map.rows.forEach((levels, query) => {
      const from = share[ofQuery[query]];
      for (let key = 0; key < map.keys; key++) from[ofKey[key]] += levels[key] * map.peaks[query];
    });
    const all = share.reduce((sum, row) => sum + row.reduce((part, value) => part + value, 0), 0);
    for (const row of share) {
      const sum = row.reduce((part, value) => part + value, 0);
      row.forEach((value, to) => {
        received[to] += value / all;
        row[to] = value / sum;
      });
    }
    const strong = share.flatMap((row, from) => Array.from(row, (part, to) => ({ from, to, part })))
      .filter(({ to, part }) => part >= Math.max(TIMES * even[to], LEAST))
      .sort((one, other) => other.part - one.part);
    return { lines, columns, share, received, even, strong };
  });
}

const regionAt = ({ lines, columns }, { x, y }) => Math.floor(y * lines) * columns + Math.floor(x * columns);
const centreOf = ({ lines, columns }, region) => ({
  x: ((region % columns) + 0.5) / columns,
  y: (Math.floor(region / columns) + 0.5) / lines,
});

function drawFlow(context, map, point, strength) {
  const found = flows(map);
  const { lines, columns, received, even, strong } = found;
  const { width, height } = context.canvas;
  const ratio = Array.from(received, (part, region) => part / even[region]);
  const hottest = Math.max(...ratio);
  const box = (region) => [
    ((region % columns) * width) / columns, (Math.floor(region / columns) * height) / lines,
    width / columns, height / lines,
  ];
  ratio.forEach((value, region) => {
    context.globalAlpha = strength * (0.65 + 0.35 * (value / hottest));
    context.fillStyle = colour(Math.round((255 * value) / hottest));
    context.fillRect(...box(region));
  });
  context.globalAlpha = 1;
  const here = regionAt(found, point);
  strokeTwice(context, "#ffffff", () => context.strokeRect(...box(here)));
  const own = strong.filter(({ from }) => from === here);
  const others = strong.filter(({ from, to }) => from !== here && from !== to).slice(0, MOST);
  for (const [some, ink, alpha] of [[others, "#56b4e9", 0.75], [own, "#ffffff", 1]]) {
    context.globalAlpha = alpha;
    for (const { from, to, part } of some.reverse()) {
      drawBent(context, centreOf(found, from), centreOf(found, to), 1 + 5 * part, ink, width / columns);
    }
  }
  context.globalAlpha = 1;
}

const place = ({ columns }, region) => `row ${Math.floor(region / columns) + 1}, column ${(region % columns) + 1}`;

function tellFlow(map, point) {
  const found = flows(map);
  const here = regionAt(found, point);
  const own = found.strong.filter(({ from }) => from === here);
  const sent = own.filter(({ to }) => to !== here).slice(0, 3)
    .map(({ to, part }) => `${percent(part)} to ${place(found, to)}`);
  const kept = own.filter(({ to }) => to === here).map(({ part }) => `keeps ${percent(part)}`);
  const does = [...kept, ...(sent.length > 0 ? [`sends ${sent.join(", ")}`] : [])].join(" and ");
  return (
    `The region at ${place(found, here)} receives ${times(found.received[here] / found.even[here])} its even share. ` +
    `Of its own attention it ${does || "sends no region much more than to others"}.`
  );
}

// --- every query ------------------------------------------------------------

/** Every how many-th query is shown, so that a small map is legible. */
export function stepOf(map, side) {
  const most = Math.max(...map.query_grid);
  let step = 1;
  while (step < most && side / Math.ceil(most / step) < LEGIBLE) step *= 2;
  return step;
}

/** The query whose small map lies under a point. */
function small(map, step, { x, y }) {
  const [height, width] = map.query_grid;
  const along = (value, size) =>
    Math.min(Math.floor(value * Math.ceil(size / step)) * step + Math.floor(step / 2), size - 1);
  return { row: along(y, height), column: along(x, width) };
}

/** A canvas with a pixel for each key of each query shown. */
function sheet(map, step) {
  return once(map, `sheet ${step}`, () => {
    const [lines, columns] = map.query_grid.map((size) => Math.ceil(size / step));
    const [height, width] = map.key_grid;
    const canvas = new OffscreenCanvas(columns * width, lines * height);
    const context = canvas.getContext("2d");
    for (let line = 0; line < lines; line++) {
      for (let column = 0; column < columns; column++) {
        const { levels } = map.look(small(map, step, { x: (column + 0.5) / columns, y: (line + 0.5) / lines }));
        const image = context.createImageData(width, height);
        const words = new Uint32Array(image.data.buffer);
        levels.forEach((level, key) => (words[key] = colour(level, true)));
        context.putImageData(image, column * width, line * height);
      }
    }
    return { canvas, lines, columns };
  });
}

function drawAll(context, map, point) {
  const { width, height } = context.canvas;
  const step = stepOf(map, width / devicePixelRatio);
  const { canvas, lines, columns } = sheet(map, step);
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, 0, 0, width, height);
  context.beginPath();
  for (let line = 1; line < lines; line++) {
    context.moveTo(0, Math.round((line * height) / lines) + 0.5);
    context.lineTo(width, Math.round((line * height) / lines) + 0.5);
  }
  for (let column = 1; column < columns; column++) {
    context.moveTo(Math.round((column * width) / columns) + 0.5, 0);
    context.lineTo(Math.round((column * width) / columns) + 0.5, height);
  }
  context.lineWidth = 1;
  context.strokeStyle = "rgb(255 255 255 / 0.7)";
  context.stroke();
  // each query's own place in its small map
  context.fillStyle = "#56b4e9";
  for (let line = 0; line < lines; line++) {
    for (let column = 0; column < columns; column++) {
      const { row, column: at } = small(map, step, { x: (column + 0.5) / columns, y: (line + 0.5) / lines });
      const inside = [(at + 0.5) / map.query_grid[1], (row + 0.5) / map.query_grid[0]];
      const radius = (width / columns) * 0.05;
      context.beginPath();
      context.arc(((column + inside[0]) * width) / columns, ((line + inside[1]) * height) / lines, radius, 0, 7);
      context.fill();
    }
  }
  const [left, top] = [Math.floor(point.x * columns), Math.floor(point.y * lines)];
  strokeTwice(context, "#ffffff", () =>
    context.strokeRect((left * width) / columns, (top * height) / lines, width / columns, height / lines));
}
