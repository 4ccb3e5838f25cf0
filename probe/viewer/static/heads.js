"use strict";
// Layers × heads: each head coloured by a statistic, or, where the page has its maps, as a small
// picture of where it looks.

const COLOURED = 16; // pixels of a cell
const PICTURED = 26;
const NARROW = 320; // pixels that the longer side of a grid of few heads fills
let headsKey = ""; // of what is drawn
let gridCells = []; // [layer][column] -> head

function drawHeads() {
  const stack = mainStack();
  const key = JSON.stringify({ ...state, box: null, light: 0, image: 0 });
  if (key === headsKey) return;
  headsKey = key;
  const statistic = stack.statistics[state.statistic];
  at("head-grid").hidden = statistic?.values.shape.length !== 3;
  if (at("head-grid").hidden) return;
  const valueOf = (layer, head) => statisticOf(stack, state.statistic, layer, head);
  gridCells = countTo(stack.layers).map((layer) => {
    const rank = (head) => valueOf(layer, head) || 0;
    const heads = countTo(stack.heads);
    return state.sorted ? heads.sort((a, b) => rank(b) - rank(a)) : heads;
  });
  const scale = scaleOf(false, maxOf(statistic.values.data));
  const { single, last } = mapsOf(stack, stack.maps_head ? state.word : -1);
  const size = single ? PICTURED : COLOURED;
  const width = stack.heads * size;
  const height = stack.layers * size;
  const grid = Object.assign(at("grid"), { width, height });
  grid.style.maxWidth = `${Math.max(width, (NARROW * width) / Math.max(width, height))}px`;
  const context = grid.getContext("2d");
  const lookup = single && patchOfPixel(stack, size - 2);
  gridCells.forEach((heads, layer) => heads.forEach((head, column) => {
    const value = valueOf(layer, head);
    const place = stack.chosen.indexOf(head);
    if (single && place >= 0) {
      const picture = smallPicture(lookup, rowOf(single, layer, place, last));
      context.putImageData(picture, column * size + 1, layer * size + 1);
    } else if (!Number.isNaN(value)) {
      context.fillStyle = scale.table[scale.index(value)];
      context.fillRect(column * size, layer * size, size - 1, size - 1);
    }
  }));
  Object.assign(context, { strokeStyle: "#56b4e9", lineWidth: 2 });
  const column = gridCells[state.layer].indexOf(Number(state.head));
  const [left, across] = column < 0 ? [0, width] : [column * size, size];
  context.strokeRect(left + 1, state.layer * size + 1, across - 2, size - 2);
  const { label, units } = statistic;
  const count = `${stack.heads} heads in ${stack.layers} layers`;
  grid.ariaLabel = `${label} on vision, ${count}: at most ${shown(scale.largest)} ${units}`;
  const order = state.sorted ? "heads, highest first" : "heads in their order";
  const colours = `colour from 0 to ${shown(scale.largest)} (${units})`;
  const look = single ? "each cell shows where the head looks, on its own scale" : colours;
  at("grid-note").textContent = `Rows: layers, the first on top; columns: ${order}; ${look}.`;
}

/** For each pixel of a small picture of the first view, the patch that it shows; -1 for none. */
function patchOfPixel({ patches }, size) {
  const lookup = new Int32Array(size * size).fill(-1);
  for (const key of patches.views[0]?.keys.data ?? []) {
    const [left, top, right, bottom] = inPixels(rowAt(patches.box, key), size, size);
    for (let row = top * size; row < bottom * size; row += size) {
      lookup.fill(key, row + left, row + right);
    }
  }
  return lookup;
}

function smallPicture(lookup, values) {
  const size = Math.sqrt(lookup.length);
  const image = new ImageData(size, size);
  const largest = maxOf(values) || 1;
  lookup.forEach((key, pixel) => {
    if (key < 0 || Number.isNaN(values[key])) return;
    const colour = rowAt(data.colours.rising, Math.round((255 * values[key]) / largest));
    image.data.set(colour, 4 * pixel);
    image.data[4 * pixel + 3] = 255;
  });
  return image;
}

function prepareHeads() {
  const cellUnder = ({ clientX, clientY }) => {
    const { left, top, width, height } = at("grid").getBoundingClientRect();
    const column = Math.floor(((clientX - left) / width) * mainStack().heads);
    const layer = Math.floor(((clientY - top) / height) * mainStack().layers);
    return { layer, head: gridCells[layer]?.[column] ?? 0 };
  };
  at("grid").addEventListener("click", (event) => change(cellUnder(event)));
  at("grid").addEventListener("pointermove", (event) => {
    const { layer, head } = cellUnder(event);
    const value = shown(statisticOf(mainStack(), state.statistic, layer, head));
    at("cell").textContent = `layer ${layer + 1}, head ${head + 1}: ${value}`;
  });
}
