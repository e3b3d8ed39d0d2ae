/** Small pictures of what a model makes: one a class, from the one sheet that its worker made. */

import { ask } from "./api.js";
import { h } from "./dom.js";

const TRIES = 8; // for a sheet that is not made yet; its workers may be busy
const LONGEST = 60; // seconds between two tries

const sheets = new Map(); // by hash and precision: each is fetched once

class Sheet {
  /** address: of the picture; count: of the classes. */
  constructor(address, count) {
    this.address = address;
    this.count = count;
    this.columns = Math.ceil(Math.sqrt(count));
    this.rows = Math.ceil(count / this.columns);
  }

  /** The picture of class `id`. */
  picture(id) {
    const element = h("i", { class: "preview", "aria-hidden": "true" });
    const along = (place, places) => (places === 1 ? 0 : (100 * place) / (places - 1));
    Object.assign(element.style, {
      backgroundImage: `url("${this.address}")`,
      backgroundSize: `${100 * this.columns}% ${100 * this.rows}%`,
      backgroundPosition:
        `${along(id % this.columns, this.columns)}% ${along(Math.floor(id / this.columns), this.rows)}%`,
    });
    return element;
  }

  /** Pictures of `most` classes, spread over all. */
  some(most) {
    const count = Math.min(most, this.count);
    return Array.from({ length: count }, (_, k) => this.picture(Math.floor(((k + 0.5) * this.count) / count)));
  }
}

/** Calls `show(sheet)` once the pictures of a model are there; never where there are none. */
export async function showPreviews(model, show) {
  const version = `${model.hash} ${model.precision}`;
  if (!sheets.has(version)) sheets.set(version, fetched(model));
  const sheet = await sheets.get(version);
  if (sheet === null) sheets.delete(version); // whoever looks again tries again
  else show(sheet);
}

async function fetched(model) {
  try {
    for (let wait = 0, tries = 0; tries < TRIES; tries++) {
      const response = await ask(`models/${encodeURIComponent(model.name)}/previews`);
      if (response.status === 200) {
        return new Sheet(URL.createObjectURL(await response.blob()), model.classes.length);
      }
      wait = Math.min(LONGEST, Math.max(2 * wait, Number(response.headers.get("Retry-After")) || 1));
      await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
    }
  } catch {
    // the names do without pictures
  }
  return null;
}
