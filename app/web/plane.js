/** The plane of three images, as a tool of Explore. */

import { announce, h } from "./dom.js";
import { Tool, inWords } from "./explorers.js";
import { Wanted, paint } from "./frames.js";

const SIDE = 10; // steps along a side of the plane
const CORNERS = [[0.5, 0.08], [0.06, 0.88], [0.94, 0.88]]; // of the plane's triangle, in shares of its side

/** The plane of three images: what is made lies on it as a map. */
export class Plane extends Tool {
  name = "plane";
  title = "Plane";
  words = "Drag over the triangle: each corner is an image, the middle is as much of each.";
  used = 3;

  constructor(explore) {
    super(explore);
    const third = Math.floor(SIDE / 3);
    this.at = [SIDE - 2 * third, third, third];
    this.canvas = h("canvas", { class: "picture", role: "img", width: 64, height: 64 });
    this.readout = h("p", { class: "readout" });
    this.lookAt = this.lookButton();
    this.pad = h("canvas", { class: "pad", width: 640, height: 640, tabIndex: 0, role: "application",
      "aria-roledescription": "plane of three images", "aria-label": "Plane of three images: move by the arrow keys",
      onpointerdown: (event) => {
        this.pad.setPointerCapture(event.pointerId);
        this.drag(event);
      },
      onpointermove: (event) => this.pad.hasPointerCapture(event.pointerId) && this.drag(event),
      onkeydown: (event) => this.key(event) });
    this.root = h("div", { class: "plane" }, h("div", { class: "frame" }, this.pad, this.bar),
      h("div", {}, this.canvas, this.readout, h("div", { class: "doing" }, this.lookAt)));
  }

  update() {
    const { model, ends, truncation } = this.state;
    if (ends.length < 3) return void this.explore.add();
    this.three = ends.slice(0, 3);
    this.cells = [];
    for (let a = SIDE; a >= 0; a--) for (let b = SIDE - a; b >= 0; b--) this.cells.push([a, b, SIDE - a - b]);
    const shares = this.cells.map((cell) => cell.map((part) => part / SIDE));
    const wanted = shares.map((weights) => Wanted.between(model, this.three, weights, truncation));
    this.fill(this.three, { weights: shares }, wanted);
    this.draw();
  }

  came(k) {
    super.came(k);
    this.drawPad();
  }

  /** Where a cell lies on the pad, in shares of its side. */
  placeOf(cell) {
    return [0, 1].map((axis) => CORNERS.reduce((sum, corner, k) => sum + (corner[axis] * cell[k]) / SIDE, 0));
  }

  drag(event) {
    const box = this.pad.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const far = (cell) => {
      const [cx, cy] = this.placeOf(cell);
      return (cx - x) ** 2 + (cy - y) ** 2;
    };
    this.moveTo(this.cells.reduce((best, cell) => (far(cell) < far(best) ? cell : best)));
  }

  key(event) {
    const by = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, 1], ArrowRight: [0, -1] }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    let [top, left, right] = this.at;
    if (by[0] !== 0) {
      // a row up or down, straight to the corner or from it
      top = Math.min(Math.max(top + by[0], 0), SIDE);
      const rest = SIDE - top;
      left = Math.round((left / (left + right || 1)) * rest);
      right = rest - left;
    } else {
      const step = Math.min(Math.max(by[1], -left), right);
      [left, right] = [left + step, right - step];
    }
    this.moveTo([top, left, right]);
    announce(this.readout.textContent, 300);
  }

  moveTo(cell) {
    this.at = cell;
    this.draw();
  }

  draw() {
    const weights = this.at.map((part) => part / SIDE);
    const words = inWords(this.explore, this.three, weights);
    const shares = weights.map((share) => `${Math.round(100 * share)}`).join(" : ");
    this.readout.textContent = `${words} (${shares})`;
    this.canvas.setAttribute("aria-label", words);
    const k = this.cells.findIndex((cell) => cell.every((part, place) => part === this.at[place]));
    this.live.want(this.wanted[k], (made) => {
      this.shown = made;
      this.lookAt.disabled = false;
      paint(this.canvas, made.bitmap);
      this.drawPad();
    });
    this.drawPad();
  }

  /** Draws with the next frame: once a frame, however fast the pointer moves. */
  drawPad() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      const context = this.pad.getContext("2d");
      const { width } = this.pad;
      const step = (width * (CORNERS[2][0] - CORNERS[1][0])) / SIDE;
      context.clearRect(0, 0, width, width);
      this.cells.forEach((cell, k) => {
        const [x, y] = this.placeOf(cell).map((part) => part * width);
        const made = this.wanted[k].made;
        if (made === undefined) {
          context.fillStyle = "rgb(128 128 128 / 0.3)";
          context.fillRect(x - step / 8, y - step / 8, step / 4, step / 4);
        } else context.drawImage(made.bitmap, x - step * 0.47, y - step * 0.47, step * 0.94, step * 0.94);
      });
      const [x, y] = this.placeOf(this.at).map((part) => part * width);
      for (const [style, wide] of [["rgb(0 0 0 / 0.6)", 9], ["#fff", 5]]) {
        Object.assign(context, { strokeStyle: style, lineWidth: wide });
        context.strokeRect(x - step / 2, y - step / 2, step, step);
      }
    });
  }
}
