"use strict";
// Layers × heads: each head coloured by a statistic, or, where the page has its maps, as a small
// picture of where it looks.

const COLOURED = 16; // pixels of a cell
const PICTURED = 26;
let headsKey = ""; // of what is drawn
let gridCells = []; // [layer][column] -> head

/** The maps of single heads: of the pinned word, or of the queries; null where there are none. */
function headMaps(stack) {
  if (state.word >= 0 && stack.maps_head) return { map: stack.maps_head, last: state.word };
  return stack.received_head ? { map: stack.received_head, last: queryOf(stack) } : null;
}

function drawHeads() {
  const stack = mainStack();
  const key = JSON.stringify({ ...state, box: null, light: 0, image: 0 });
  if (key === headsKey) return;
  headsKey = key;
  const statistic = stack.statistics[state.statistic];
  at("head-grid").hidden = statistic?.values.shape.length !== 3;
  if (at("head-grid").hidden) return;
  const valueOf = (layer, head) => statisticOf(stack, state.statistic, layer, queryOf(stack), head);
  gridCells = countTo(stack.layers).map((layer) => {
    const rank = (head) => valueOf(layer, head) || 0;
    const heads = countTo(stack.heads);
    return state.sorted ? heads.sort((a, b) => rank(b) - rank(a)) : heads;
  });
  const largest = maxOf(statistic.values.data) || 1;
  const maps = headMaps(stack);
  const size = maps ? PICTURED : COLOURED;
  const shapeOfGrid = { width: stack.heads * size, height: stack.layers * size };
  const grid = Object.assign(at("grid"), shapeOfGrid);
  grid.style.maxWidth = `${grid.width * (stack.heads < 12 ? 2 : 1)}px`;
  const context = grid.getContext("2d");
  Object.assign(context, { strokeStyle: "#56b4e9", lineWidth: 2 });
  const lookup = maps && patchOfPixel(stack, size - 2);
  gridCells.forEach((heads, layer) => heads.forEach((head, column) => {
    const [left, top] = [column * size, layer * size];
    const value = valueOf(layer, head);
    const place = stack.chosen.indexOf(head);
    if (maps && place >= 0) {
      const values = rowOf(maps.map, layer, place, maps.last);
      context.putImageData(smallPicture(lookup, values), left + 1, top + 1);
    } else if (!Number.isNaN(value)) {
      context.fillStyle = tables.rising[Math.round((255 * value) / largest)];
      context.fillRect(left, top, size - 1, size - 1);
    }
    const isHead = state.head === "mean" || Number(state.head) === head;
    if (layer === state.layer && isHead) context.strokeRect(left + 1, top + 1, size - 2, size - 2);
  }));
  const { label, units } = statistic;
  const count = `${stack.heads} heads in ${stack.layers} layers`;
  grid.ariaLabel = `${label} on vision, ${count}: at most ${shown(largest)} ${units}`;
  const order = state.sorted ? "heads, highest first" : "heads in their order";
  const scale = `colour from 0 to ${shown(largest)} (${units})`;
  const look = maps ? "each cell shows where the head looks, on its own scale" : scale;
  const note = `Rows: layers; columns: ${order}; ${look}. Click a head to go there.`;
  at("grid-note").textContent = note;
}

/** For each pixel of a small picture of the first view, the patch that it shows; -1 for none. */
function patchOfPixel({ patches }, size) {
  const lookup = new Int32Array(size * size).fill(-1);
  for (const key of patches.views[0]?.keys.data ?? []) {
    const [left, top, right, bottom] = pixelBox({ patches, width: size, height: size }, key);
    for (let start = top * size; start < bottom * size; start += size) {
      lookup.fill(key, start + left, start + right);
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
    const colour = 3 * Math.round((255 * values[key]) / largest);
    image.data.set(data.colours.rising.data.subarray(colour, colour + 3), 4 * pixel);
    image.data[4 * pixel + 3] = 255;
  });
  return image;
}

function prepareHeads() {
  const cellUnder = ({ clientX, clientY }) => {
    const { left, top, width, height } = at("grid").getBoundingClientRect();
    const column = Math.floor(((clientX - left) / width) * mainStack().heads);
    const layer = Math.floor(((clientY - top) / height) * mainStack().layers);
    return { layer, head: gridCells[layer]?.[column] };
  };
  at("grid").addEventListener("click", (event) => change(cellUnder(event)));
  at("grid").addEventListener("pointermove", (event) => {
    const { layer, head } = cellUnder(event);
    const value = statisticOf(mainStack(), state.statistic, layer, queryOf(mainStack()), head ?? 0);
    at("grid").title = `layer ${layer + 1}, head ${head + 1}: ${shown(value)}`;
  });
}
