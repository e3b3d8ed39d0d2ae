/** What a model makes: a picture of each class, in the place of the jobs while there is none. */

import { $, h, spoken } from "./dom.js";

export class Wall {
  /** `chosen(id)` is called with the id of a class whose picture was pressed. */
  constructor(chosen) {
    this.chosen = chosen;
    this.root = $("#wall");
    this.list = $("ul", this.root);
  }

  /** sheet: the pictures of the model's classes; null: there are none yet. */
  show(model, sheet) {
    const { classes } = model;
    this.root.hidden = sheet === null;
    const typical = model.metrics.pretrained?.generated?.typical ?? [];
    const chosen = typical.length === classes.length && !typical.includes(null);
    $("p", this.root).textContent = chosen
      ? `The most typical image of each class, of some that ${spoken(model.name)} made. Press one for others of its class.`
      : `An image of each class, by ${spoken(model.name)}. Press one for others of its class.`;
    this.list.replaceChildren(...(sheet === null ? [] : classes.map(({ id, name }) => h("li", {}, h(
      "button",
      { type: "button", title: `Make images: ${spoken(name)}`, onclick: () => this.chosen(id) },
      sheet.picture(id),
      h("span", {}, spoken(name)),
    )))));
  }

  /** Shows the classes for which `wanted(id)` holds. */
  filter(wanted) {
    const items = [...this.list.children];
    items.forEach((item, id) => (item.hidden = !wanted(id)));
    $("p", this.root).hidden = items.every((item) => item.hidden);
  }
}
