/** How a picture was made, read from its file: see imaging/spec.py, whose words these are. */

const LARGEST = 64 * 2 ** 20; // bytes of a file that is read

/** The text of the recipe in a file, or null without one. Throws an Error in words. */
export async function recipeText(file) {
  if (file.size > LARGEST) throw new Error("This file is too large to be a picture of this service.");
  const bytes = new Uint8Array(await file.arrayBuffer());
  const starts = (magic, at = 0) => latin(bytes, at, at + magic.length) === magic;
  if (starts("\x89PNG\r\n\x1a\n")) return ofPng(bytes);
  if (starts("RIFF") && starts("WEBP", 8)) return ofWebp(bytes);
  if (starts("\xff\xd8")) return ofJpeg(bytes);
  if (starts("GIF8")) return ofGif(bytes);
  if (starts("ftyp", 4)) return ofMp4(bytes);
  throw new Error("This is not a picture that can be read here: choose a PNG, WebP, JPEG, GIF or MP4 of this service.");
}

/**
 * The spec of a job, in the service's form, that makes what the file shows. Throws an Error in words.
 * An image is a job of one, which starts at its index.
 */
export function specOf(text) {
  let spec = null;
  try {
    // a seed may have more digits than a JavaScript number keeps
    spec = specFrom(JSON.parse(text.replace(/"seed":\s*(\d+)/g, '"seed":"$1"')));
  } catch {
    // no JSON, or of other shapes
  }
  if (spec === null) throw new Error("The recipe in this file cannot be read: it is damaged, or of a later version.");
  return spec;
}

function specFrom(told) {
  const whole = (value) => Number.isInteger(value) && value >= 0;
  const seeded = (value) => typeof value === "string" && /^\d{1,19}$/.test(value);
  const fits =
    typeof told.model === "string" &&
    typeof told.model_hash === "string" &&
    typeof told.class_name === "string" &&
    whole(told.class_id) &&
    seeded(told.seed) &&
    told.truncation > 0 &&
    told.truncation <= 1 &&
    whole(told.index ?? told.count) &&
    (told.ends ?? []).every((end) => seeded(end.seed) && whole(end.index));
  if (!fits) return null;
  const spec = { count: 1, class_weights: null, morph: null, start: told.index ?? told.start ?? 0 };
  for (const name of ["model", "model_hash", "precision", "class_id", "class_name", "seed", "truncation", "count"]) {
    if (told[name] !== undefined) spec[name] = told[name];
  }
  // of an image each end has a weight, of a job each image a row of weights
  const ends = (told.ends ?? []).map(({ class_weights, classes, name, seed, index }) => ({
    class_weights: class_weights ?? Object.fromEntries(classes),
    class_name: name ?? "",
    seed,
    index,
  }));
  if (ends.length === 1) {
    Object.assign(spec, { class_weights: ends[0].class_weights, seed: ends[0].seed });
    if (told.index !== undefined) spec.start = ends[0].index;
  } else if (ends.length > 1) {
    const weights = told.index === undefined ? told.weights : [told.ends.map(({ weight }) => weight)];
    spec.morph = { ends, loop: Boolean(told.loop), weights: weights?.length ? weights : null, attention: null };
  }
  return spec;
}

const latin = (bytes, from, to) => String.fromCharCode(...bytes.subarray(from, Math.min(to, from + 65_536)));
const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** Of a chunk: four bytes of length, four of name, the content, four of check sum. */
function ofPng(bytes) {
  for (let at = 8; at + 12 <= bytes.length; ) {
    const size = view(bytes).getUint32(at);
    const name = latin(bytes, at + 4, at + 8);
    const prefix = "sagan\0";
    if (name === "tEXt" && latin(bytes, at + 8, at + 8 + prefix.length) === prefix) {
      return latin(bytes, at + 8 + prefix.length, at + 8 + size);
    }
    at += 12 + size;
  }
  return null;
}

function ofWebp(bytes) {
  for (let at = 12; at + 8 <= bytes.length; ) {
    const size = view(bytes).getUint32(at + 4, true);
    if (latin(bytes, at, at + 4) === "EXIF") return ofExif(bytes.subarray(at + 8, at + 8 + size));
    at += 8 + size + (size % 2);
  }
  return null;
}

/** Of a segment: its marker, and a length that counts itself. */
function ofJpeg(bytes) {
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda; ) {
    const size = view(bytes).getUint16(at + 2);
    if (bytes[at + 1] === 0xe1 && latin(bytes, at + 4, at + 10) === "Exif\0\0") {
      return ofExif(bytes.subarray(at + 4, at + 2 + size));
    }
    at += 2 + size;
  }
  return null;
}

/** ImageDescription, the tag 270 of the first directory. */
function ofExif(given) {
  const bytes = latin(given, 0, 6) === "Exif\0\0" ? given.subarray(6) : given;
  const little = latin(bytes, 0, 2) === "II";
  const data = view(bytes);
  try {
    const directory = data.getUint32(4, little);
    for (let entry = 0; entry < data.getUint16(directory, little); entry++) {
      const at = directory + 2 + 12 * entry;
      if (data.getUint16(at, little) !== 270) continue;
      const [size, place] = [data.getUint32(at + 4, little), data.getUint32(at + 8, little)];
      const text = latin(bytes, place, place + size).replace(/\0+$/, "");
      return text.startsWith("{") ? text : null;
    }
  } catch {
    // it points beyond its end
  }
  return null;
}

/** The first comment that is a recipe; a comment is cut into blocks, each with its length before it. */
function ofGif(bytes) {
  for (let at = 0; (at = bytes.indexOf(0x21, at)) >= 0; at++) {
    if (bytes[at + 1] !== 0xfe) continue;
    let text = "";
    for (let block = at + 2; bytes[block] > 0 && text.length < 65_536; block += 1 + bytes[block]) {
      text += latin(bytes, block + 1, block + 1 + bytes[block]);
    }
    if (text.startsWith("{")) return text;
  }
  return null;
}

/** The comment atom: its name, the length and name of the atom within, eight bytes, then the text. */
function ofMp4(bytes) {
  for (let at = 4; (at = bytes.indexOf(0xa9, at)) >= 0; at++) {
    if (latin(bytes, at, at + 4) !== "\xa9cmt" || latin(bytes, at + 8, at + 12) !== "data") continue;
    const text = latin(bytes, at + 20, at - 4 + view(bytes).getUint32(at - 4));
    return text.startsWith("{") ? text : null;
  }
  return null;
}
