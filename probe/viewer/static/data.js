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
  const header = JSON.parse(document.getElementById("header").textContent);
  return revived(header, await unpacked(document.getElementById("numbers").textContent));
}

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

/** Sums of a row over the patches inside (marked by 1), and over all. */
function sumsOf(map, inside, ...places) {
  const { levels, unit, keys } = levelsOf(map, places);
  let within = 0;
  let all = 0;
  for (let i = 0; i < levels.length; i++) {
    if (levels[i] === MISSING) continue;
    all += levels[i];
    if (inside[keys ? keys[i] : i]) within += levels[i];
  }
  return [within * unit, all * unit];
}

const countTo = (length) => Array.from({ length }, (_, i) => i);
const maxOf = (numbers) => numbers.reduce((most, one) => Math.max(most, Math.abs(one) || 0), 0);

/** The mean over the numbers that are there. */
function meanOf(numbers) {
  const there = numbers.filter((number) => !Number.isNaN(number));
  return there.length ? there.reduce((sum, number) => sum + number, 0) / there.length : NaN;
}

/** A statistic at a layer and query type, of one head or as the mean over heads. */
function statisticOf(stack, name, layer, query, head = "mean") {
  if (!stack.statistics[name]) return NaN;
  const { shape, data: values } = stack.statistics[name].values;
  if (shape.length === 2) return values[layer * shape[1] + query];
  const at = (each) => values[(layer * shape[1] + each) * shape[2] + query];
  return head === "mean" ? meanOf(countTo(shape[1]).map(at)) : at(head);
}

/** A number as a person reads it: three digits, no long tail of zeros. */
function shown(number) {
  if (Number.isNaN(number)) return "–";
  const small = number !== 0 && Math.abs(number) < 0.001;
  return small ? number.toExponential(1) : String(Number(number.toPrecision(3)));
}

/** An element; texts among the children stay text, whatever is in them. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** An element of a drawing (SVG). */
function shape(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A line with gaps where there is no number. */
function pathOf(values, x, y) {
  const steps = values.map((value, i) => {
    if (Number.isNaN(value)) return "";
    const place = `${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    return i && !Number.isNaN(values[i - 1]) ? `L${place}` : `M${place}h0`; // h0: a dot
  });
  return steps.join("");
}

const at = (id) => document.getElementById(id);
