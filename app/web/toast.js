/** A short message at the foot of the page, with one thing to do about it. It stays until the next, or a press. */

import { $, h, icon } from "./dom.js";

let left = null; // what to do when the message goes without its button being pressed

/**
 * Shows words, and a button called `label` that calls `act`. focus: the button gets the focus. `passed` is called
 * when the message goes in another way.
 */
export function toast(words, label, act, { focus = true, passed = null } = {}) {
  dismiss();
  const box = $("#toast");
  const doing = h("button", {
    type: "button",
    onclick: () => {
      left = null;
      dismiss();
      act();
    },
  }, label);
  const close = h("button", { type: "button", class: "mark", "aria-label": "Dismiss", onclick: dismiss }, icon("close"));
  left = passed;
  box.replaceChildren(h("p", {}, words), doing, close);
  box.hidden = false;
  // what was pressed is often gone by now
  if (focus) doing.focus();
}

export function dismiss() {
  const box = $("#toast");
  const held = box.contains(document.activeElement);
  box.hidden = true;
  if (held) $("main [data-views][tabindex='-1']:not([hidden])")?.focus({ preventScroll: true });
  const passing = left;
  left = null;
  passing?.();
}
