/** What is drawn over an image for one point: the heat of its map, its ring, and an arrow to its target. */

import { heat } from "./attention.js";

const QUIET = 0.65; // share of the overlay's opacity that cells without attention keep
const SHADOW = "rgb(0 0 0 / 0.55)"; // around each line: it stands out on any ground

/** The map of `point` over the whole canvas. `view` is "overlay", "heatmap" or "image", which has no heat. */
export function drawHeat(context, map, point, view, strength) {
  if (view !== "image") drawLook(context, map, map.look(map.cell(point.x, point.y)), view === "heatmap" ? 1 : strength);
}

/** A row of a map over the whole canvas; with strength 1 nothing is seen through it. */
export function drawLook(context, map, look, strength) {
  context.globalAlpha = strength;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "low"; // bilinear: the fine points are dense enough
  const picture = heat(look, map.key_grid, strength === 1 ? 1 : QUIET);
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
  strokeTwice(context, colour, () => {
    context.strokeRect(...cell);
    drawArrow(context, point, most, scale);
  });
  drawRing(context, point, colour, radius);
}

/** Strokes what `draw` draws, in a shadow and then in a colour. `thick` is in CSS pixels. */
export function strokeTwice(context, colour, draw, thick = 2) {
  context.lineJoin = context.lineCap = "round";
  for (const [style, width] of [[SHADOW, thick + 2], [colour, thick]]) {
    context.strokeStyle = style;
    context.lineWidth = width * devicePixelRatio;
    draw();
  }
}

/** An arrow between the centres of two regions that bends to its right; a ring where they are one. */
export function drawBent(context, from, to, thick, colour, region) {
  const { width, height } = context.canvas;
  const [x0, y0, x1, y1] = [from.x * width, from.y * height, to.x * width, to.y * height];
  if (x0 === x1 && y0 === y1) {
    strokeTwice(context, colour, () => {
      context.beginPath();
      context.arc(x0, y0, region * 0.2, 0, 2 * Math.PI);
      context.stroke();
    }, thick);
    return;
  }
  const [cx, cy] = [(x0 + x1) / 2 - (y1 - y0) * 0.16, (y0 + y1) / 2 + (x1 - x0) * 0.16];
  // it ends short of the centre, so that many heads have room around it
  const out = Math.hypot(x1 - cx, y1 - cy);
  const [ux, uy] = [(x1 - cx) / out, (y1 - cy) / out];
  const [tx, ty] = [x1 - ux * region * 0.3, y1 - uy * region * 0.3];
  const head = region * 0.14;
  strokeTwice(context, colour, () => {
    context.beginPath();
    context.moveTo(x0 + (cx - x0) * 0.1, y0 + (cy - y0) * 0.1);
    context.quadraticCurveTo(cx, cy, tx, ty);
    context.moveTo(tx - head * (ux + uy * 0.6), ty - head * (uy - ux * 0.6));
    context.lineTo(tx, ty);
    context.lineTo(tx - head * (ux - uy * 0.6), ty - head * (uy + ux * 0.6));
    context.stroke();
  }, thick);
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
