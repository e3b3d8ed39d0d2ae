/** What a model makes: a picture of each class, in the place of the jobs while there is none. */

import { $, h, spoken } from "./dom.js";

const FEW = 24; // of them there is room for larger pictures

export class Wall {
  /** `chosen(id)` is called with the id of a class whose picture was pressed. */
  constructor(chosen) {
    this.chosen = chosen;
  }

  /** classes: [{id, name}], in the order of their ids; sheet: their pictures, null: there are none yet. */
  show(classes, sheet) {
    $("#wall").hidden = sheet === null;
    $("#wall").classList.toggle("few", classes.length <= FEW);
    $("#wall").replaceChildren(...(sheet === null ? [] : classes.map(({ id, name }) => h("li", {}, h(
      "button",
      { type: "button", title: `Make images: ${spoken(name)}`, onclick: () => this.chosen(id) },
      sheet.picture(id),
      h("span", {}, spoken(name)),
    )))));
  }

  /** Shows the classes for which `wanted(id)` holds. */
  filter(wanted) {
    [...$("#wall").children].forEach((item, id) => (item.hidden = !wanted(id)));
  }
}
