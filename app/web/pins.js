/** The pinned points of an image: up to five, each with a colour and a small picture of its map. */

import { $, h } from "./dom.js";
import { drawHeat, drawMarks } from "./marks.js";

// The colours of the service's figure (app/overlay.py), which the colour-blind can tell apart (Okabe, Ito 2008).
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#f0e442"];
const THUMB = 88; // CSS pixels

export const MAX_PINS = COLOURS.length;

export class Pins {
  /** `show(point)` is called when a small picture is pressed. A point's x and y go from 0 to 1. */
  constructor(show) {
    this.show = show;
    this.all = [];
  }

  set(points) {
    this.all = points.slice(0, MAX_PINS).map(({ x, y }, number) => ({ x, y, colour: COLOURS[number] }));
  }

  /** Pins a point, or removes the pin in its cell. Returns what was done, in words. */
  toggle(map, point) {
    const cellOf = ({ x, y }) => Object.values(map.cell(x, y)).join();
    const here = this.all.findIndex((pin) => cellOf(pin) === cellOf(point));
    if (here >= 0) this.all.splice(here, 1);
    else {
      const free = COLOURS.find((colour) => this.all.every((pin) => pin.colour !== colour));
      // a sixth pin replaces the first
      const colour = free ?? this.all.shift().colour;
      this.all.push({ ...point, colour });
    }
    return here >= 0 ? "Pin removed" : `Pinned, ${this.all.length} of ${MAX_PINS}`;
  }

  /** The points in pixels of an image of that size: "x,y;x,y". */
  inPixels(size) {
    return this.all.map(({ x, y }) => `${Math.floor(x * size)},${Math.floor(y * size)}`).join(";");
  }

  /** Shows the small pictures; none without a map. */
  draw(map, picture, view, strength) {
    $("#pins-field").hidden = this.all.length === 0;
    $("#pins").replaceChildren(...(map === null ? [] : this.all).map((pin, number) => {
      const scale = devicePixelRatio;
      const canvas = h("canvas", { width: THUMB * scale, height: THUMB * scale });
      const context = canvas.getContext("2d");
      if (picture.complete && picture.naturalWidth > 0) {
        context.imageSmoothingEnabled = document.body.dataset.pixels !== "sharp";
        context.drawImage(picture, 0, 0, canvas.width, canvas.height);
      }
      drawHeat(context, map, pin, view, strength);
      drawMarks(context, map, pin, pin.colour, 4);
      const button = h("button", {
        type: "button",
        "aria-label": `Show pinned point ${number + 1}`,
        title: "Show this point",
        onclick: () => this.show({ x: pin.x, y: pin.y }),
      }, canvas);
      button.style.setProperty("--pin", pin.colour);
      return button;
    }));
  }
}
