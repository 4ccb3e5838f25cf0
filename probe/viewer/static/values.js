"use strict";
// The numbers by patch that are shown: {values, patches, signed, unit}, and their colours.

const FRACTION = "fraction of a query's attention";
const LIFT = "× an even spread of the same attention over the patches";
const tables = {}; // name of a colour table -> 256 CSS colours

function valuesOf(side, layer = state.layer) {
  if (state.quantity.startsWith("effect-")) return effectOf(Number(state.quantity.slice(7)));
  const stack = stackOf(side);
  if (!stack?.received) return null;
  const row = Math.min(layer, stack.layers - 1);
  const values = attentionOf(stack, row);
  const found = { values, patches: stack.patches, signed: false, unit: FRACTION };
  if (state.quantity === "no-sinks" && stack.sinks) {
    const sinks = layerOf(stack.sinks, row);
    return { ...found, values: values.map((value, key) => (sinks[key] ? NaN : value)) };
  }
  if (state.quantity !== "lift") return found;
  const even = meanOf(values);
  return { ...found, values: values.map((value) => value / even), unit: LIFT };
}

/** What is marked by layer and patch, of one layer. */
function layerOf({ shape: [, keys], data: marks }, layer) {
  return marks.subarray(layer * keys, (layer + 1) * keys);
}

/** Of the word, or of the queries; of the head, or as the mean over heads. */
function attentionOf(stack, layer) {
  const isWord = currentWord() >= 0 && currentWord() < stack.words.length;
  const last = isWord ? currentWord() : queryOf(stack);
  const single = isWord ? stack.maps_head : stack.received_head;
  const head = stack.chosen.indexOf(Number(state.head));
  if (state.head !== "mean" && head >= 0 && single) return rowOf(single, layer, head, last);
  return rowOf(isWord ? stack.maps : stack.received, layer, last);
}

/** An attribution: of the word, or of the whole answer. */
function effectOf(index) {
  const { values, by_token: byToken, tokens, patches, units } = data.attributions[index];
  const isWord = currentWord() >= 0 && byToken && currentWord() < tokens.length;
  const shownValues = isWord ? layerOf(byToken, currentWord()) : values.data;
  return { values: shownValues, patches, signed: true, unit: units };
}

/** B − A on A's patches. Where the patches differ, lifts are compared; NaN where B has none. */
function differenceOf(a, b) {
  if (!a || !b) return null;
  const match = state.quantity.startsWith("effect-") ? null : data.match[state.stack].data;
  const same = a.values.length === b.values.length;
  const [unitA, unitB] = same ? [1, 1] : [meanOf(a.values), meanOf(b.values)];
  const values = a.values.map((value, key) => {
    const other = match ? match[key] : key;
    return other < 0 ? NaN : b.values[other] / unitB - value / unitA;
  });
  return { ...a, values, signed: true, unit: same ? a.unit : "difference of lifts" };
}

/** A scale of colours from 0 (or −high) to high: `index(value)` is the number of the colour. */
function scaleOf(signed, largest) {
  const high = largest > 0 ? largest : 1;
  const index = (value) => {
    const part = Math.max(-1, Math.min(1, value / high));
    const bent = state.curve === "root" ? Math.sign(part) * Math.sqrt(Math.abs(part)) : part;
    return Math.round(signed ? (255 * (bent + 1)) / 2 : 255 * bent);
  };
  return { index, high, signed, table: tables[signed ? "signed" : "rising"] };
}

/** The end of the scale that A and B share: the largest value of these maps, or of all layers. */
function endOf(sides) {
  const layers = state.range === "layers" ? countTo(mainStack().layers) : [state.layer];
  const maps = sides.flatMap((side) => layers.map((layer) => valuesOf(side, layer)?.values ?? []));
  return Math.max(...maps.map(maxOf));
}
