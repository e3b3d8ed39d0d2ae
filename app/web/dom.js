/** Small helpers over the DOM: elements by description, icons, and numbers in words. */

/** An element. Props named on… are listeners; class, role and names with a dash are attributes. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class" || key === "role" || key.includes("-")) element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An icon of the sprite in index.html, hidden from screen readers. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

export const $ = (selector, root = document) => root.querySelector(selector);

const LONG = 90; // letters of a name: a morph of many mixtures is called after them all

/** A class name for people: `Afghan_hound` is "Afghan hound". */
export const spoken = (name) => {
  const words = name.replaceAll("_", " ");
  return words.length > LONG ? `${words.slice(0, LONG - 1).trimEnd()}…` : words;
};

export const images = (count) => (count === 1 ? "1 image" : `${count} images`);

const percents = new Intl.NumberFormat("en", { style: "percent", maximumSignificantDigits: 2 });
export const percent = (share) => percents.format(share);

const ordinals = new Intl.PluralRules("en", { type: "ordinal" });
const endings = { one: "st", two: "nd", few: "rd", other: "th" };
export const ordinal = (n) => `${n}${endings[ordinals.select(n)]}`;

let announcer;
let announcement;
/** Says a sentence, or what a function then returns, to a screen reader after `after` ms, unless another follows. */
export function announce(sentence, after = 0) {
  announcer ??= $("#announcer");
  clearTimeout(announcement);
  announcement = setTimeout(() => {
    announcer.textContent = typeof sentence === "function" ? sentence() : sentence;
  }, after);
}

/** Copies text; by a selection where the clipboard API is missing (plain HTTP, not localhost). */
export async function copy(text, near = document.body) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = h("textarea", { value: text, class: "unseen" });
    near.append(field); // an open dialog lets only its own content be selected
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    if (!copied) throw new Error("This browser did not let the page copy.");
  }
}

/** Shows `words` on a button for a moment. */
export function flash(button, words) {
  const label = $("span", button);
  button.dataset.label ??= label.textContent;
  label.textContent = words;
  announce(words);
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = setTimeout(() => (label.textContent = button.dataset.label), 1800);
}
