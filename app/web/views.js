/** The views of the page: one is shown at a time, and the address says which (#explore). */

import { $ } from "./dom.js";

const FIRST = "create"; // shown where the address names none

const links = [...document.querySelectorAll("#views a")];
const names = links.map((link) => link.hash.slice(1));
const hearers = [];

/** The view that is shown. */
export const view = () => $("main").dataset.view;

/** Calls `hear(name, before)` when a view comes up, and now with the one that is there. */
export function onView(hear) {
  hearers.push(hear);
  hear(view(), null);
}

/** Goes to a view, as a press on its link does. */
export function goTo(name) {
  if (view() === name) return;
  location.hash = name;
  show(false); // now, not with the event: who calls may want to use what comes up
}

/** The part of the address that names the view; "" for the first one. */
export const viewHash = () => (view() === FIRST ? "" : `#${view()}`);

/** The part of the page that the view is about. */
const main = () => $("main [data-views][tabindex]:not([hidden])");

function show(focus) {
  const asked = location.hash.slice(1) || FIRST;
  const before = view() ?? null;
  // another fragment is a place on the page
  if (asked === before || (!names.includes(asked) && before !== null)) return;
  const name = names.includes(asked) ? asked : FIRST;
  $("main").dataset.view = name;
  for (const link of links) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const part of document.querySelectorAll("[data-views]")) {
    part.hidden = !part.dataset.views.split(" ").includes(name);
  }
  $(".skip").hash = main().id;
  const title = links[names.indexOf(name)].textContent;
  document.title = name === FIRST ? "Sagan" : `${title} · Sagan`;
  for (const hear of hearers) hear(name, before);
  if (focus && !$("dialog[open]")) {
    // a screen reader goes on from what came up, not from the link
    main().focus({ preventScroll: true });
    scrollTo({ top: 0, behavior: "instant" });
  }
}

$(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // its address would be that of another view
  main().focus();
  main().scrollIntoView({ block: "start" });
});
addEventListener("hashchange", ({ oldURL, newURL }) => {
  // Back from an open image, or on to one, is no step from view to view
  const [from, to] = [oldURL, newURL].map((url) => new URL(url).searchParams.has("image"));
  show(from === to);
});
show(false);
