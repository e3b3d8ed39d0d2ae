/** A job's first images in a few kilobytes, for the time after the images have expired. */

import { source } from "./api.js";
import { h } from "./dom.js";

export const SHOWN = 4; // images in a thumbnail, side by side
const SIDE = 48; // pixels of each

/** A data URL of loaded pictures. */
export function thumbOf(pictures) {
  const canvas = h("canvas", { width: pictures.length * SIDE, height: SIDE });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  pictures.forEach((picture, k) => context.drawImage(picture, k * SIDE, 0, SIDE, SIDE));
  const webp = canvas.toDataURL("image/webp", 0.75);
  return webp.startsWith("data:image/webp") ? webp : canvas.toDataURL("image/jpeg", 0.75);
}

/** An image of a job, loaded. Rejects where it cannot be had. */
export async function pictureOf(job, k) {
  const picture = new Image();
  picture.src = await source(job.links.images[k]);
  await picture.decode();
  return picture;
}

/** Small pictures from a thumbnail, one an image that is in it; empty places without one. */
export function piecesOf(thumb, count) {
  const shown = Math.min(SHOWN, count);
  return Array.from({ length: shown }, (_, k) => {
    const piece = h("i", { class: "piece", "aria-hidden": "true" });
    if (thumb) {
      piece.style.backgroundImage = `url("${thumb}")`;
      piece.style.backgroundSize = `${100 * shown}% 100%`;
      piece.style.backgroundPosition = shown === 1 ? "0 0" : `${(100 * k) / (shown - 1)}% 0`;
    }
    return piece;
  });
}
