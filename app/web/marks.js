/** What is drawn over an image for one point: the heat of its map, its ring, and an arrow to its target. */

import { heat } from "./attention.js";

const QUIET = 0.65; // share of the overlay's opacity that cells without attention keep
const SHADOW = "rgb(0 0 0 / 0.55)"; // around each line: it stands out on any ground

/** The map of `point` over the whole canvas. `view` is "overlay", "heatmap" or "image", which has no heat. */
export function drawHeat(context, map, point, view, strength) {
  if (view === "image") return;
  const whole = view === "heatmap";
  context.globalAlpha = whole ? 1 : strength;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "low"; // bilinear: the fine points are dense enough
  const picture = heat(map.look(map.cell(point.x, point.y)), map.key_grid, whole ? 1 : QUIET);
  context.drawImage(picture, 0, 0, context.canvas.width, context.canvas.height);
  context.globalAlpha = 1;
}

/** The ring of `point`, the cell that it attends to most, and an arrow there. `radius` is in CSS pixels. */
export function drawMarks(context, map, point, colour, radius) {
  const scale = devicePixelRatio;
  const most = map.look(map.cell(point.x, point.y));
  const { width, height } = context.canvas;
  const [rows, columns] = map.key_grid;
  const cell = [(most.x - 0.5 / columns) * width, (most.y - 0.5 / rows) * height, width / columns, height / rows];
  for (const [style, thick] of [[SHADOW, 4], [colour, 2]]) {
    context.strokeStyle = style;
    context.lineWidth = thick * scale;
    context.lineJoin = context.lineCap = "round";
    context.strokeRect(...cell);
    drawArrow(context, point, most, scale);
  }
  drawRing(context, point, colour, radius);
}

export function drawRing(context, { x, y }, colour, radius) {
  const scale = devicePixelRatio;
  for (const [style, thick] of [[SHADOW, 5], [colour, 2.5]]) {
    context.strokeStyle = style;
    context.lineWidth = thick * scale;
    context.beginPath();
    context.arc(x * context.canvas.width, y * context.canvas.height, radius * scale, 0, 2 * Math.PI);
    context.stroke();
  }
}

function drawArrow(context, from, to, scale) {
  const { width, height } = context.canvas;
  const [x, y] = [to.x * width, to.y * height];
  const [dx, dy] = [x - from.x * width, y - from.y * height];
  const length = Math.hypot(dx, dy);
  if (length < 18 * scale) return; // it attends to itself: the ring and the cell say so
  const [ux, uy] = [dx / length, dy / length];
  const head = Math.min(9 * scale, length / 4);
  context.beginPath();
  context.moveTo(from.x * width + ux * 9 * scale, from.y * height + uy * 9 * scale);
  context.lineTo(x, y);
  context.moveTo(x - head * (ux + uy * 0.6), y - head * (uy - ux * 0.6));
  context.lineTo(x, y);
  context.lineTo(x - head * (ux - uy * 0.6), y - head * (uy + ux * 0.6));
  context.stroke();
}
