/** A picture dropped on the page, or chosen: its recipe is read, and its image made again. */

import { $ } from "./dom.js";
import { recipeText, specOf } from "./recipe.js";

/** `restore(spec)` is called with the spec of a job; `complain(words)` tells of a file that has none. */
export function acceptFiles({ restore, complain }) {
  const zone = $("#drop");
  const chooser = $("#file");

  const take = async (file) => {
    complain(null);
    try {
      const text = await recipeText(file);
      if (text === null) {
        throw new Error(
          `${file.name} does not say how it was made: it was not made here, or it was saved again without its recipe.`,
        );
      }
      await restore(specOf(text));
    } catch (error) {
      complain(error.message);
    }
  };

  $("#open-file").addEventListener("click", () => chooser.click());
  chooser.addEventListener("change", () => {
    if (chooser.files.length > 0) take(chooser.files[0]);
    chooser.value = ""; // the same file may be chosen again
  });

  const carries = (event) => event.dataTransfer?.types.includes("Files") && !$("dialog[open]");
  addEventListener("dragenter", (event) => {
    if (carries(event)) zone.hidden = false;
  });
  addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    zone.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) zone.hidden = true; // out of the window
  });
  addEventListener("drop", (event) => {
    zone.hidden = true;
    if (!carries(event)) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) take(file);
  });
}
