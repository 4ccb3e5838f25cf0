"use strict";
// A box on the picture, by pointer or keys: which words, layers and heads look there, ranked.

const RANKED = 8; // of each
const STEP = 0.05; // of the picture, for one arrow key
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const MISSING_LISTS = {
  words: "No single words in this record: measure with maps=True.",
  heads: "No single heads in this page: measure with received_head=True, view with --heads.",
};

const isLarge = ([left, top, right, bottom]) => right - left > 0.01 && bottom - top > 0.01;
const clipped = (edges) => edges.map((edge) => Math.max(0, Math.min(1, edge)));

function followPointer(panel) {
  let from = null;
  const placeOf = ({ clientX, clientY }) => {
    const { left, top, width, height } = panel.frame.getBoundingClientRect();
    return clipped([(clientX - left) / width, (clientY - top) / height]);
  };
  const boxTo = ([x, y]) => {
    const [u, v] = from;
    return [Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)];
  };
  const on = (name, act) => panel.frame.addEventListener(name, act);
  on("pointerdown", (event) => {
    from = placeOf(event);
    panel.frame.setPointerCapture(event.pointerId);
  });
  on("pointermove", (event) => {
    if (!from) return pointAt(panel, keyAt(panel, placeOf(event)));
    state.box = boxTo(placeOf(event));
    panels.forEach(drawMarks);
  });
  on("pointerup", (event) => {
    const box = from ? boxTo(placeOf(event)) : state.box;
    from = null;
    change({ box: box && isLarge(box) ? box : null });
  });
  on("pointerleave", () => pointAt(panel, -1));
  on("keydown", moveBox);
}

/** The patch at a place, or the token that the encoder's patch there was merged into. */
function keyAt({ patches, keys, side }, [x, y]) {
  const isOver = ({ data: box }, k) => {
    return box[4 * k] <= x && x < box[4 * k + 2] && box[4 * k + 1] <= y && y < box[4 * k + 3];
  };
  const own = keys.findLast((key) => isOver(patches.box, key));
  if (own !== undefined || side === DIFFERENCE || !stackOf(side).merged) return own ?? -1;
  const { token, box, image } = stackOf(side).merged;
  const isHere = (patch) => image.data[patch] === state.image && isOver(box, patch);
  return token.data[countTo(token.data.length).find(isHere) ?? -1] ?? -1;
}

function pointAt(panel, key) {
  if (panel.hoveredKey === key) return;
  panel.hoveredKey = key;
  drawMarks(panel);
  if (key < 0) return;
  const group = panel.side === DIFFERENCE ? [] : mergedWith(stackOf(panel.side), key);
  const merged = group.length ? `; ${group.length} patches share this token` : "";
  const value = `${shown(panel.values[key])} ${panel.unit}`;
  at("readout").textContent = `${patchName(panel, key)}: ${value}${merged}`;
}

function moveBox(event) {
  if (!(event.key in MOVES)) return;
  event.preventDefault();
  event.stopPropagation();
  const [x, y] = MOVES[event.key].map((step) => step * STEP);
  const [left, top, right, bottom] = state.box ?? [0.375, 0.375, 0.625, 0.625];
  const first = event.shiftKey ? [left, top] : [left + x, top + y];
  const box = clipped([...first, right + x, bottom + y]);
  if (isLarge(box)) change({ box });
}

/** 1 for each patch of the image whose middle is in the box; and what part of all patches it is. */
function insideBox({ box: { data: box }, image }) {
  const [left, top, right, bottom] = state.box;
  const inside = Uint8Array.from(image.data, (owner, key) => {
    const x = (box[4 * key] + box[4 * key + 2]) / 2;
    const y = (box[4 * key + 1] + box[4 * key + 3]) / 2;
    return owner === state.image && left <= x && x <= right && top <= y && y <= bottom;
  });
  const placed = image.data.filter((_, key) => !Number.isNaN(box[4 * key])).length;
  return { inside, share: inside.reduce((sum, one) => sum + one, 0) / placed };
}

/** The ranked lists: {words, layers, heads}, each [{label, value, times, go}], best first.
    value: attention on the box; times: that, of what is on the picture, ÷ the box's part of it. */
function ranks() {
  const stack = mainStack();
  const { inside, share } = insideBox(stack.patches);
  const isWord = state.word >= 0;
  const last = isWord ? state.word : queryOf(stack);
  const layers = countTo(stack.layers);
  const entry = (label, sums, go) => {
    const value = meanOf(sums.map(([within]) => within));
    return { label, value, times: value / meanOf(sums.map(([, all]) => all)) / share, go };
  };
  const words = stack.words.map(({ text }, word) => {
    return entry(text, layers.map((layer) => sumsOf(stack.maps, inside, layer, word)), { word });
  });
  const ofLayer = (layer) => sumsOf(isWord ? stack.maps : stack.received, inside, layer, last);
  const byLayer = layers.map((layer) => entry(`layer ${layer + 1}`, [ofLayer(layer)], { layer }));
  const single = isWord ? stack.maps_head : stack.received_head;
  const heads = !single ? [] : layers.flatMap((layer) => stack.chosen.map((head, i) => {
    const sums = sumsOf(single, inside, layer, i, last);
    return entry(`${layer + 1} · ${head + 1}`, [sums], { layer, head });
  }));
  const lists = { words, layers: byLayer, heads };
  for (const list of Object.values(lists)) list.sort((a, b) => (b.value || 0) - (a.value || 0));
  return lists;
}

function drawBox() {
  at("box").hidden = !state.box || !mainStack().received;
  if (at("box").hidden) return;
  const word = mainStack().words[state.word];
  const who = word ? `predicting “${word.text}”` : `${state.query} tokens`;
  const heads = `Layer · head, ${who}`;
  const titles = { words: "Words, mean over layers", layers: `Layers, ${who}`, heads };
  const lists = Object.entries(ranks()).map(([name, entries]) => {
    const best = entries.slice(0, RANKED);
    const list = make("ol", {}, ...best.map((one) => rankItem(one, best[0])));
    list.dataset.rank = name;
    const none = make("p", { className: "quiet" }, MISSING_LISTS[name] ?? "");
    return make("div", {}, make("h3", {}, titles[name]), entries.length ? list : none);
  });
  at("ranks").replaceChildren(...lists);
}

function rankItem({ label, value, times, go }, first) {
  const fill = make("span", { className: "fill" });
  fill.style.width = `${(100 * value) / (first.value || 1)}%`;
  const number = make("span", { className: "number" }, `${shown(value)} · ${shown(times)}×`);
  const name = make("bdi", { className: "name" }, label);
  const button = make("button", { className: "rank", title: label }, fill, name, number);
  button.dataset.value = value;
  button.addEventListener("click", () => change(go));
  return make("li", {}, button);
}
