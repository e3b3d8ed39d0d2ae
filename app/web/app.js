/** The page: the form makes jobs, the gallery shows them, the inspector looks into them. */

import { followKeyed, generate, get, keyNow, useKey } from "./api.js";
import { Comparison } from "./compare.js";
import { $, announce, images, spoken } from "./dom.js";
import { acceptFiles } from "./drop.js";
import { Explore } from "./explore.js";
import { Form } from "./form.js";
import { Grids } from "./grids.js";
import { History } from "./history.js";
import { Inspector } from "./inspector.js";
import { linkTo, looked, placeIn, specIn } from "./link.js";
import { orderOf, place, sameVersion } from "./orders.js";
import { goTo, onView, view, viewHash } from "./views.js";

const RETRY_MS = 2500; // while no worker has a model loaded
const LOOK_MS = 5000; // between two looks for what is served by then
const home = new URL(".", document.baseURI).href;

let models = [];
let served = null; // what the service told last; null: nothing yet
const modelOf = (name) => models.find((model) => model.name === name);

const past = new History({
  open: (job, k) => look(job, k),
  again,
  grown: (card) => {
    inspector.grown(card.job, card.done);
    grids.grown(card);
  },
  modelOf: (name) => served && served.find((model) => model.name === name),
  sites: (spec) => modelOf(spec.model)?.attention ?? [],
  complain,
});
past.useKey(keyNow());
const form = new Form(make);
const inspector = new Inspector({
  modelOf,
  moved: (job, k, sight) => history.replaceState({ looking: true }, "", linkTo(job, k, sight)),
  closed: () => {
    // the address of an open image is a step in the history, so that Back closes it
    if (!history.state?.looking) return;
    const held = document.activeElement;
    // a browser that comes to an address like #explore focuses what is called so
    addEventListener("popstate", () => setTimeout(() => held.focus({ preventScroll: true })), { once: true });
    history.back();
  },
});
const grids = new Grids({ keep: (job) => past.add(job), open: (job, k) => look(job, k) });
const comparison = new Comparison({ inspector, modelOf });

const explore = new Explore({
  modelsNow: () => models,
  chosen: () => form.model,
  // no card: it is one of the many that were made in passing
  open: (job, k) => {
    history.pushState({ looking: true }, "", linkTo(job, k));
    inspector.open(job, k, job.done);
  },
});

function service(state, words) {
  $("#service").dataset.state = state;
  $("#service span").textContent = words;
}

function complain(words) {
  const alert = $("#problem");
  // by the button of Create; elsewhere, where the form is not shown, above what is
  if (view() === "create") $("#generate").before(alert);
  else $("#views").after(alert);
  alert.hidden = words === null;
  alert.textContent = words ?? "";
  if (words !== null) alert.scrollIntoView({ block: "nearest" });
}

async function offer(found) {
  const versions = (list) => JSON.stringify(list.map(({ name, hash, precision }) => [name, hash, precision]));
  const changed = versions(found) !== versions(models);
  models = found;
  if (changed) {
    grids.offer(models);
    form.offer(models);
    await explore.offer(models);
  }
  service("ready", models.length === 1 ? "Ready" : `${models.length} models ready`);
}

async function whatIsServed() {
  const answer = await get("models");
  past.tellLife(answer.result_ttl);
  const changed = JSON.stringify(answer.models) !== JSON.stringify(served);
  served = answer.models;
  if (changed) past.refresh();
  return served;
}

/** Sees workers go and come, and models change, while somebody looks at the page. */
async function watch() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    if (document.hidden) continue;
    try {
      const found = await whatIsServed();
      if (found.length > 0) await offer(found);
      else service("away", "No worker is there any more");
    } catch (problem) {
      service("away", problem.message);
    }
  }
}

/** Asks for the models until there is one: a worker may still be loading. */
async function meet() {
  for (;;) {
    try {
      const found = await whatIsServed();
      if (found.length > 0) {
        await offer(found);
        complain(null);
        $("#key-field").hidden = true;
        return;
      }
      service("waiting", "No worker has loaded a model yet");
    } catch (problem) {
      service("away", problem.message);
      if (problem.status === 401) await askForKey();
    }
    await new Promise((resolve) => setTimeout(resolve, $("#key-field").hidden ? RETRY_MS : 0));
  }
}

/** Resolves when a person has entered a key. The next request shows whether it is valid. */
function askForKey() {
  $("#key-field").hidden = false;
  return new Promise((resolve) => {
    $("#key").addEventListener("change", () => {
      useKey($("#key").value.trim());
      past.useKey(keyNow());
      resolve();
    }, { once: true });
  });
}

/** Queues a job and shows its card. order: as the form reads it, or any request for a job. Resolves with null on a problem. */
async function make(order) {
  const button = $("#generate");
  // not `disabled`: a button that is loses the focus
  if (button.getAttribute("aria-disabled") === "true") return null;
  complain(null);
  button.setAttribute("aria-disabled", "true");
  try {
    const job = await (order.ends ? place(order) : generate(order));
    announce(`Queued: ${images(job.spec.count)} of ${spoken(job.spec.class_name)}.`);
    const pressed = $("#wall").contains(document.activeElement); // it is hidden now, and would lose the focus
    const card = past.add(job);
    if (pressed) card.root.focus({ preventScroll: true });
    const { top } = card.root.getBoundingClientRect();
    if (top < 0 || top > innerHeight * 0.8) {
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      $("#images").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
    }
    return card;
  } catch (problem) {
    complain(problem.message);
    return null;
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

async function again(spec) {
  // what lies between images is no class of the form
  if (spec.morph || spec.class_weights) {
    await explore.take(spec);
    return goTo("explore");
  }
  goTo("create");
  form.fill(spec);
  $("#form").scrollIntoView({ block: "nearest" });
  $("#generate").focus();
}

/** Opens an image. sight: its `notice`, `pins` and `layer`, as the inspector takes them. */
function look(job, k, sight = {}) {
  if (comparison.takes(job, k)) return;
  if (!history.state?.looking) history.pushState({ looking: true }, "", linkTo(job, k));
  const card = past.cards.get(job.id) ?? past.add(job);
  inspector.open(card.job, k, card.done, sight);
  if (sight.pins !== undefined) inspector.tell();
}

/** Makes what a file shows, by its spec, and opens it. */
async function restore(spec) {
  goTo("create");
  if (spec.class_weights === null && spec.morph === null) form.fill({ ...spec, class_name: spec.class_name });
  const model = modelOf(spec.model);
  const card = await make(orderOf(spec, model));
  if (card === null) return;
  const notice = sameVersion(spec, model)
    ? null
    : `This file was made with another version of the model "${spec.model}": the image is not the same.`;
  if (notice !== null) complain(notice);
  if (spec.count > 1) return;
  await card.ready(0);
  look(card.job, 0, { notice });
}

/** The spec of a link and its model; null where there is none, or none that can be followed: that is told. */
function linked(search) {
  try {
    const spec = specIn(search);
    if (spec === null) return null;
    const model = spec.model === null ? models[0] : modelOf(spec.model);
    if (model !== undefined) return { spec, model };
    complain(`The link asks for the model "${spec.model}", which no worker here has loaded.`);
  } catch (wrong) {
    complain(wrong.message);
  }
  return null;
}

/** Takes what a link to Explore has: its images, truncation and tool. */
async function exploreLink(search) {
  const { spec, model } = linked(search) ?? {};
  if (!spec?.morph) return;
  const unknown = await explore.take({ ...spec, model: model.name }, spec.tool);
  const said = [
    explore.tool.name === spec.tool ? "" : `There is no tool "${spec.tool.slice(0, 40)}" to explore with.`,
    model.hash.startsWith(spec.hash) ? "" : otherVersion(model),
    unknown.length === 0 ? "" : `The model "${model.name}" has no class ${unknown[0]}: such images are left out.`,
  ];
  if (said.some(Boolean)) complain(said.filter(Boolean).join(" "));
}

const otherVersion = ({ name }) =>
  `This link was made with another version of the model "${name}": what it makes is not the same.`;

/** Finds the job of a link among those shown, or makes it, and opens its image. */
async function followLink(search) {
  const { spec, model } = linked(search) ?? {};
  if (spec === undefined) return;
  const wanted = { ...spec, hash: model.hash };
  let card = past.all.find((one) => placeIn(one.job, wanted) !== null && !one.expired);
  if (card === undefined) {
    const plain = spec.class_weights === null && spec.morph === null;
    const known = model.classes.find(
      ({ id, name }) => name === spec.class_name || String(id) === spec.class_name,
    );
    if (plain && known === undefined) return complain(`The model "${model.name}" has no class "${spec.class_name}".`);
    const named = { ...spec, model: model.name, ...(plain ? { class_id: known.id, class_name: known.name } : {}) };
    if (plain) form.fill(named);
    card = await make(orderOf(named, model));
    if (card === null) return;
  }
  const notice = model.hash.startsWith(spec.hash) ? [] : [otherVersion(model)];
  const { pins, layer, complaints } = looked(spec, model);
  const said = [...notice, ...complaints].join(" ");
  if (said !== "") complain(said);
  if (spec.image === null) {
    card.root.scrollIntoView({ block: "nearest" }); // it may be one of the older jobs
    return;
  }
  try {
    const place = placeIn(card.job, wanted) ?? 0;
    await card.ready(place);
    look(card.job, place, { notice: said || null, pins, layer });
  } catch (problem) {
    complain(problem.message);
  }
}

/** Reads the service's jobs, as soon as it can be reached. */
async function recent() {
  for (;;) {
    try {
      return await past.read();
    } catch (problem) {
      if (problem.retryAfter === null && problem.status !== 401) return complain(problem.message);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

function pixels(kind) {
  document.body.dataset.pixels = kind;
  $(`[name=pixels][value=${kind}]`).checked = true;
  try {
    localStorage.setItem("sagan.pixels", kind);
  } catch {
    // storage may be forbidden: the choice then lasts as long as the page
  }
}

for (const radio of document.querySelectorAll("[name=pixels]")) {
  radio.addEventListener("change", () => pixels(radio.value));
}
try {
  pixels(localStorage.getItem("sagan.pixels") === "sharp" ? "sharp" : "smooth");
} catch {
  pixels("smooth");
}
document.addEventListener("click", (event) => {
  followKeyed(event).catch((problem) => complain(problem.message));
});
acceptFiles({ restore, complain });
addEventListener("popstate", () => {
  if (history.state?.looking) followLink(location.search);
  else if (inspector.dialog.open) inspector.dialog.close();
});

const asked = location.search;
history.replaceState(null, "", home + viewHash());
past.tellLife();
const listed = recent(); // with no worker there, too
await meet();
const explored = view() === "explore" && new URLSearchParams(asked).has("tool");
if (explored) await exploreLink(asked);
onView((name, before) => {
  if (before !== null) complain(null); // it was about what is left now
  if (name === "explore") explore.show();
  else if (before === "explore") explore.hide();
});
$("#to-explore").addEventListener("click", async () => {
  const { job, k } = inspector;
  // the address of the image is left first: that of Explore would be one beside it
  const left = history.state?.looking
    ? new Promise((resolve) => addEventListener("popstate", resolve, { once: true }))
    : null;
  inspector.dialog.close();
  await left;
  await explore.add(job, k);
  goTo("explore");
});
await listed;
if (!explored) await followLink(asked);
watch();
