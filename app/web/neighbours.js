/** Small steps around an image, as a tool of Explore. */

import { announce, h, icon } from "./dom.js";
import { Tool } from "./explorers.js";
import { Wanted, newSeed, paint } from "./frames.js";

const AROUND = 8; // neighbours
const MOST_PARTS = 12; // of a neighbour's blend: the faintest are left out

/** Nine small variations of an image; the one that is pressed is the next middle. */
export class Neighbours extends Tool {
  name = "neighbours";
  title = "Neighbours";
  words = "Small steps from the image in the middle, each another way. Press one to go on from there.";
  used = 1;

  constructor(explore) {
    super(explore);
    this.steps = []; // the middles before this one
    this.far = h("input", {
      type: "range", min: "0.05", max: "0.6", step: "0.05", value: "0.25", onchange: () => this.spread(),
    });
    this.backButton = h("button", { type: "button", disabled: true, onclick: () => this.back() },
      icon("previous"), h("span", {}, "Back"));
    this.lookAt = this.lookButton();
    this.tiles = Array.from({ length: AROUND + 1 }, (_, k) => {
      const canvas = h("canvas", { width: 64, height: 64, "aria-hidden": "true" });
      const words = k === 0 ? "The image in the middle" : `Variation ${k}: go on from here`;
      return h("button", { type: "button", class: "tile", "aria-label": words, onclick: () => this.goTo(k) }, canvas);
    });
    const [middle, ...others] = this.tiles;
    this.root = h("div", { class: "neighbours" },
      h("div", { class: "frame" },
        h("div", { class: "nine" }, ...others.slice(0, 4), middle, ...others.slice(4)), this.bar),
      h("label", {}, "How far", this.far), h("div", { class: "doing" }, this.backButton, this.lookAt));
  }

  update() {
    const [end] = this.state.ends;
    const key = JSON.stringify([this.state.model.hash, end]);
    if (key !== this.key) {
      this.key = key;
      this.middle = { ends: [end], weights: [1] };
      this.steps = [];
      this.turn();
    } else this.spread();
  }

  /** New directions. */
  turn() {
    const { ends, weights } = this.middle;
    // the class stays what it is: only the noise moves
    const classes = {};
    ends.forEach((end, k) => {
      for (const [id, share] of Object.entries(end.class_weights ?? { [end.class_id]: 1 })) {
        classes[id] = (classes[id] ?? 0) + share * weights[k];
      }
    });
    const { class_id } = ends[0];
    const mixed = Object.keys(classes).length > 1 ? { class_weights: classes } : {};
    this.others = Array.from({ length: AROUND }, () => ({ class_id, ...mixed, seed: newSeed(), index: 0 }));
    this.spread();
  }

  spread() {
    const { ends, weights } = this.middle;
    const all = [...ends, ...this.others];
    const share = Number(this.far.value);
    const around = this.others.map((_, k) => [
      ...weights.map((weight) => weight * (1 - share)), ...this.others.map((__, other) => (other === k ? share : 0))]);
    this.rows = [[...weights, ...this.others.map(() => 0)], ...around];
    const { model, truncation } = this.state;
    this.fill(all, { weights: this.rows }, this.rows.map((row) => Wanted.between(model, all, row, truncation)));
    this.backButton.disabled = this.steps.length === 0;
    this.tiles.forEach((tile, k) => {
      if (this.wanted[k].made === undefined) delete tile.dataset.state;
      else this.drawTile(k);
    });
  }

  came(k) {
    super.came(k);
    this.drawTile(k);
  }

  drawTile(k) {
    const { made } = this.wanted[k];
    paint(this.tiles[k].firstElementChild, made.bitmap);
    this.tiles[k].dataset.state = "ready";
    if (k > 0) return;
    this.shown = made;
    this.lookAt.disabled = false;
  }

  goTo(k) {
    if (k === 0) return void (this.shown && this.explore.look(this.shown));
    this.steps.push({ middle: this.middle, others: this.others });
    const all = [...this.middle.ends, ...this.others];
    let parts = this.rows[k].map((weight, place) => [all[place], weight]).filter(([, weight]) => weight > 0);
    while (parts.length > MOST_PARTS) {
      const faintest = parts.reduce((least, part) => (part[1] < least[1] ? part : least));
      parts = parts.filter((part) => part !== faintest);
    }
    const total = parts.reduce((sum, [, weight]) => sum + weight, 0);
    this.middle = { ends: parts.map(([end]) => end), weights: parts.map(([, weight]) => weight / total) };
    announce(`Variation ${k} is in the middle`);
    this.turn();
  }

  back() {
    Object.assign(this, this.steps.pop());
    this.spread();
    if (this.steps.length === 0) this.tiles[0].focus();
  }
}
