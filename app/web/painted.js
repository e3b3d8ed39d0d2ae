/** The tiles of a job painted with where the network looked: one picture of all, a part of it on each. */

import { Problem, ask, at } from "./api.js";
import { h } from "./dom.js";
import { NEARLY_SHUT } from "./gate.js";

const GAP = 2; // pixels between the images of the service's grid
const PATIENCE = 40; // more tries while maps are being made
const NOTE =
  "The heat shows what all points of an image attend to on average; the ring is where most of it goes. " +
  "Open an image to look around in it.";
const SHUT = "The gate is nearly shut here: attention hardly changes these images. ";

export class Painting {
  /** `layer` of the network, or undefined. `say(words)` tells of the progress; null: there is none to tell. */
  constructor(job, tiles, layer, say) {
    Object.assign(this, { job, tiles, layer, say });
    this.shown = false;
  }

  /** Paints the tiles, or takes the paint off. Throws a Problem where there is nothing to paint with. */
  async toggle() {
    this.shown = !this.shown;
    if (this.shown && this.picture === undefined) {
      try {
        this.picture = await this.fetch();
      } catch (problem) {
        this.shown = false;
        throw problem;
      }
      this.lay();
    }
    for (const tile of this.tiles) tile.classList.toggle("painted", this.shown);
  }

  async fetch() {
    const link = at(this.job.links.attention_grid);
    // as many pixels as a tile has on this screen
    const side = this.tiles[0].clientWidth * devicePixelRatio;
    this.size = Math.min(Math.max(Math.ceil(side / 32) * 32, 64), 256);
    link.search = new URLSearchParams({ size: this.size, ...(this.layer ? { layer: this.layer } : {}) });
    for (let attempt = 0; ; attempt++) {
      try {
        const response = await ask(link);
        const shares = (response.headers.get("X-Attention-Share") ?? "").split(",").map(Number);
        this.note = (shares.every((share) => share >= NEARLY_SHUT) ? "" : SHUT) + NOTE;
        const picture = new Image();
        picture.src = URL.createObjectURL(await response.blob());
        await picture.decode();
        return picture;
      } catch (error) {
        // the maps are made a few at a time, and those that are made stay
        if (!(error instanceof Problem) || error.retryAfter === null || attempt === PATIENCE) throw error;
        this.say(error.message);
        await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
      }
    }
  }

  /** Puts its part of the picture over each tile. */
  lay() {
    const { picture, size, tiles } = this;
    const columns = Math.ceil(Math.sqrt(tiles.length));
    const part = (index, whole) => (whole === size ? 0 : (100 * index * (size + GAP)) / (whole - size));
    tiles.forEach((tile, k) => {
      const paint = h("i", { class: "paint", "aria-hidden": "true" });
      const [row, column] = [Math.floor(k / columns), k % columns];
      paint.style.backgroundImage = `url(${picture.src})`;
      paint.style.backgroundSize =
        `${(100 * picture.naturalWidth) / size}% ${(100 * picture.naturalHeight) / size}%`;
      paint.style.backgroundPosition =
        `${part(column, picture.naturalWidth)}% ${part(row, picture.naturalHeight)}%`;
      tile.append(paint);
    });
  }
}
