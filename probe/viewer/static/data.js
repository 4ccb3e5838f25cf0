"use strict";
// What the page holds: texts, and arrays of numbers in the place of their references.

const LEVELS = 254; // of the largest value in a row of a map
const MISSING = 255; // the level of NaN
const TYPES = { u1: Uint8Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array };

/** The bytes of base64-coded gzip. */
async function unpacked(coded) {
  const packed = Uint8Array.from(atob(coded), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function revived(value, buffer) {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map((part) => revived(part, buffer));
  if (value.array in TYPES) {
    const length = value.shape.reduce((product, size) => product * size, 1);
    return { shape: value.shape, data: new TYPES[value.array](buffer, value.offset, length) };
  }
  const parts = Object.entries(value).map(([name, part]) => [name, revived(part, buffer)]);
  return Object.fromEntries(parts);
}

async function readData() {
  const header = JSON.parse(at("header").textContent);
  return revived(header, await unpacked(at("numbers").textContent));
}

/** One row of an array of rows. */
const rowAt = ({ shape: [, width], data: all }, row) => all.subarray(row * width, (row + 1) * width);

/** The levels of a row, what a level is worth, and which patches they are of (undefined: all). */
function levelsOf(map, places) {
  const row = places.reduce((sum, place, axis) => sum * map.peak.shape[axis] + place, 0);
  const width = map.levels.shape.at(-1);
  const part = (array) => array?.data.subarray(row * width, (row + 1) * width);
  return { levels: part(map.levels), unit: map.peak.data[row] / LEVELS, keys: part(map.places) };
}

/** The values of a row for all patches; where only the largest were kept, the others are 0. */
function rowOf(map, ...places) {
  const { levels, unit, keys } = levelsOf(map, places);
  const values = new Float32Array(keys ? map.keys : levels.length);
  levels.forEach((level, i) => {
    values[keys ? keys[i] : i] = level === MISSING ? NaN : level * unit;
  });
  return values;
}

const NOWHERE = 2; // marks a token that lies at no place of the picture, such as a row's end

/** Sums of a row over the patches inside (marked by 1), and over all but those marked NOWHERE. */
function sumsOf(map, inside, ...places) {
  const { levels, unit, keys } = levelsOf(map, places);
  let within = 0;
  let all = 0;
  for (let i = 0; i < levels.length; i++) {
    const mark = inside[keys ? keys[i] : i];
    if (levels[i] === MISSING || mark === NOWHERE) continue;
    all += levels[i];
    if (mark) within += levels[i];
  }
  return [within * unit, all * unit];
}

const countTo = (length) => Array.from({ length }, (_, i) => i);

/** The largest magnitude of the numbers that are there; NaN where there are none. */
function maxOf(numbers) {
  let most = NaN;
  for (const number of numbers) {
    const size = Math.abs(number);
    if (!Number.isNaN(size) && !(size <= most)) most = size;
  }
  return most;
}

/** The mean over the numbers that are there. */
function meanOf(numbers) {
  const there = numbers.filter((number) => !Number.isNaN(number));
  return there.length ? there.reduce((sum, number) => sum + number, 0) / there.length : NaN;
}
