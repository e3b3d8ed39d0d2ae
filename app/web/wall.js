/** What a model makes: a picture of each class, in the place of the jobs while there is none. */

import { $, h, spoken } from "./dom.js";

const FEW = 24; // of them there is room for larger pictures

export class Wall {
  /** `chosen(id)` is called with the id of a class whose picture was pressed. */
  constructor(chosen) {
    this.chosen = chosen;
    this.root = $("#wall");
    this.list = $("ul", this.root);
  }

  /** classes: [{id, name}], in the order of their ids; sheet: their pictures, null: there are none yet. */
  show(model, classes, sheet) {
    this.root.hidden = sheet === null;
    this.root.classList.toggle("few", classes.length <= FEW);
    const typical = model.metrics.pretrained?.generated?.typical;
    $("p", this.root).textContent = typical
      ? `Of each class the most typical image among some that ${spoken(model.name)} made.`
      : `An image of each class, by ${spoken(model.name)}.`;
    this.list.replaceChildren(...(sheet === null ? [] : classes.map(({ id, name }) => h("li", {}, h(
      "button",
      { type: "button", title: `Make images: ${spoken(name)}`, onclick: () => this.chosen(id) },
      sheet.picture(id),
      h("span", {}, spoken(name)),
    )))));
  }

  /** Shows the classes for which `wanted(id)` holds. */
  filter(wanted) {
    [...this.list.children].forEach((item, id) => (item.hidden = !wanted(id)));
  }
}
