/** A table of pictures as one labelled PNG. */

const SMALLEST = 96; // pixels of a cell's side, at least
const MARGIN = 24;
const GAP = 6;
const TEXT = '16px system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif';
const [PAPER, INK, MUTED, EMPTY] = ["#ffffff", "#211e1a", "#6a635a", "#efebe4"];

/** rows: [{label, pictures: loaded images, or null where one is missing}]. Resolves with a Blob. */
export function drawSheet({ title, rows }) {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const some = rows.flatMap(({ pictures }) => pictures).find((picture) => picture !== null);
  // a whole multiple of the image: its pixels stay even
  const side = some.naturalWidth * Math.ceil(SMALLEST / some.naturalWidth);
  const columns = rows[0].pictures.length;
  context.font = TEXT;
  const labels = Math.ceil(Math.max(...rows.map(({ label }) => context.measureText(label).width)));
  const left = MARGIN + labels + 16;
  const top = MARGIN + 60;
  const width = left + columns * (side + GAP) - GAP + MARGIN;
  canvas.width = Math.ceil(Math.max(width, context.measureText(title).width + 2 * MARGIN));
  canvas.height = top + rows.length * (side + GAP) - GAP + MARGIN;
  context.fillStyle = PAPER;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.font = TEXT; // a new size forgets it
  context.textBaseline = "middle";
  context.fillStyle = INK;
  context.fillText(title, MARGIN, MARGIN + 8);
  context.textAlign = "center";
  context.fillStyle = MUTED;
  for (let k = 0; k < columns; k++) context.fillText(String(k + 1), left + k * (side + GAP) + side / 2, top - 18);
  context.imageSmoothingEnabled = document.body.dataset.pixels !== "sharp";
  context.imageSmoothingQuality = "high";
  rows.forEach(({ label, pictures }, row) => {
    const y = top + row * (side + GAP);
    context.fillStyle = INK;
    context.textAlign = "right";
    context.fillText(label, left - 16, y + side / 2);
    pictures.forEach((picture, k) => {
      const x = left + k * (side + GAP);
      context.fillStyle = EMPTY;
      if (picture === null) context.fillRect(x, y, side, side);
      else context.drawImage(picture, x, y, side, side);
    });
  });
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
