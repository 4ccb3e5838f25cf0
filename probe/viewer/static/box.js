"use strict";
// A box on the picture, by pointer or keys: which words, layers and heads look there, ranked.

const RANKED = 8; // of each
const STEP = 0.05; // of the picture, for one arrow key
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const MISSING_LISTS = {
  words: "No single words in this record: measure with --maps, or maps=True.",
  heads: "No single heads of these rows: measure with --maps --heads, and view with --heads all.",
};

const isLarge = ([left, top, right, bottom]) => right - left > 0.01 && bottom - top > 0.01;

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
    if (!from) return pointAt(panel.part, placeOf(event));
    state.box = boxTo(placeOf(event));
    panels.forEach(drawMarks);
  });
  on("pointerup", (event) => {
    const box = from ? boxTo(placeOf(event)) : state.box;
    from = null;
    change({ box: box && isLarge(box) ? box : null });
  });
  on("pointerleave", () => pointAt(panel.part, null));
  on("keydown", moveBox);
}

/** The patch at a place, or the token that the encoder's patch there was merged into. */
function keyAt({ patches, keys, side, signed }, [x, y]) {
  const isOver = (boxes, i) => {
    const [left, top, right, bottom] = rowAt(boxes, i);
    return left <= x && x < right && top <= y && y < bottom;
  };
  const own = keys.findLast((key) => isOver(patches.box, key));
  if (own !== undefined || signed || !stackOf(side).merged) return own ?? -1;
  const { token, box, image } = stackOf(side).merged;
  const isHere = (patch) => image.data[patch] === state.image && isOver(box, patch);
  return token.data[countTo(token.data.length).find(isHere) ?? -1] ?? -1;
}

/** Marks the patch at a place in every panel, and says what is there; null ends it. */
function pointAt(part, place) {
  for (const panel of panels) {
    const key = place && panel.part === part ? keyAt(panel, place) : -1;
    if (panel.hoveredKey === key) continue;
    panel.hoveredKey = key;
    drawMarks(panel);
  }
  const told = panels.filter(({ hoveredKey }) => hoveredKey >= 0).map((panel) => {
    const { side, values, hoveredKey, unit, signed } = panel;
    const group = signed ? [] : mergedWith(stackOf(side), hoveredKey);
    const merged = group.length ? `; ${group.length} patches share this token` : "";
    const name = panels.length > 1 ? `${side}, ` : "";
    return `${name}${patchName(panel, hoveredKey)}: ${shown(values[hoveredKey])} ${unit}${merged}`;
  });
  if (told.length) at("readout").textContent = told.join(" · ");
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

/** 1 for each patch of the image whose middle is in the box, NOWHERE for what has no place; and
    what part of all patches that have one it is. */
function insideBox({ box: boxes, image }) {
  const [left, top, right, bottom] = state.box;
  const inside = Uint8Array.from(image.data, (owner, key) => {
    const [l, t, r, b] = rowAt(boxes, key);
    if (Number.isNaN(l)) return NOWHERE;
    const [x, y] = [(l + r) / 2, (t + b) / 2];
    return owner === state.image && left <= x && x <= right && top <= y && y <= bottom;
  });
  const countOf = (mark) => inside.filter((one) => one === mark).length;
  return { inside, share: countOf(1) / (inside.length - countOf(NOWHERE)) };
}

/** The ranked lists: {words, layers, heads}, each [{label, value, times, go}], best first.
    value: attention on the box; times: that, of what is on the picture, ÷ the box's part of it. */
function ranks() {
  const stack = mainStack();
  const { inside, share } = insideBox(stack.patches);
  const { maps, single, last } = mapsOf(stack, state.word);
  const layers = countTo(stack.layers);
  const entry = (label, sums, go) => {
    const value = meanOf(sums.map(([within]) => within));
    return { label, value, times: value / meanOf(sums.map(([, all]) => all)) / share, go };
  };
  const lists = {
    words: stack.words.map(({ text }, word) => {
      return entry(text, layers.map((layer) => sumsOf(stack.maps, inside, layer, word)), { word });
    }),
    layers: layers.map((layer) => {
      return entry(`layer ${layer + 1}`, [sumsOf(maps, inside, layer, last)], { layer });
    }),
    heads: !single ? [] : layers.flatMap((layer) => stack.chosen.map((head, i) => {
      const sums = sumsOf(single, inside, layer, i, last);
      return entry(`${layer + 1} · ${head + 1}`, [sums], { layer, head });
    })),
  };
  for (const list of Object.values(lists)) list.sort((a, b) => (b.value || 0) - (a.value || 0));
  return lists;
}

function drawBox() {
  const { received, words } = mainStack();
  at("box").hidden = !state.box || !received;
  if (at("box").hidden) return;
  const word = words[state.word];
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
