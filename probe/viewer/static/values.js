"use strict";
// The numbers by patch that are shown: {values, patches, signed, unit}, and their colours.

const FRACTION = "fraction of a query's attention";
const LIFT = "× an even spread of the same attention over the patches";
const tables = {}; // name of a colour table -> 256 CSS colours

function valuesOf(side, layer = state.layer) {
  if (shownEffect() >= 0) return side === "B" ? null : effectOf(data.attributions[shownEffect()]);
  const stack = stackOf(side);
  if (!stack?.received) return null;
  const row = Math.min(layer, stack.layers - 1);
  const values = attentionOf(stack, row);
  const found = { values, patches: stack.patches, signed: false, unit: FRACTION };
  if (state.quantity === "no-sinks" && stack.sinks) {
    const sinks = rowAt(stack.sinks, row);
    return { ...found, values: values.map((value, key) => (sinks[key] ? NaN : value)) };
  }
  if (state.quantity !== "lift") return found;
  const even = meanOf(values);
  return { ...found, values: values.map((value) => value / even), unit: LIFT };
}

/** Of a word, or of the queries: {maps: [layer, last], single: [layer, head, last], last}. */
function mapsOf(stack, word) {
  if (word < 0) return { maps: stack.received, single: stack.received_head, last: queryOf(stack) };
  return { maps: stack.maps, single: stack.maps_head, last: word };
}

/** Of the word, or of the queries; of the head, or as the mean over heads. */
function attentionOf(stack, layer) {
  const { maps, single, last } = mapsOf(stack, isWordOf(stack) ? currentWord() : -1);
  const head = stack.chosen.indexOf(Number(state.head));
  const isHead = state.head !== "mean" && head >= 0 && single;
  return isHead ? rowOf(single, layer, head, last) : rowOf(maps, layer, last);
}

/** Which attribution is shown; NaN for none. */
const shownEffect = () => Number(state.quantity.match(/^effect-(\d+)$/)?.[1]);

/** The current word, where an attribution has it on its own. */
function wordOf({ by_token: byToken, tokens }) {
  const word = mainStack().words[currentWord()];
  return byToken && word?.text === tokens[currentWord()] ? word : undefined;
}

/** An attribution, which is of the first record: of the word, or of the whole answer. */
function effectOf(effect) {
  const { values, by_token: byToken, patches, units } = effect;
  const shownValues = wordOf(effect) ? rowAt(byToken, currentWord()) : values.data;
  return { values: shownValues, patches, signed: true, unit: units };
}

/** B − A on A's patches. Where the patches differ, lifts are compared; NaN where B has none. */
function differenceOf(a, b) {
  const match = shownEffect() >= 0 ? null : data.match[state.stack].data;
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
  const high = largest || 1;
  const index = (value) => {
    const part = Math.max(-1, Math.min(1, value / high));
    const bent = state.curve === "root" ? Math.sign(part) * Math.sqrt(Math.abs(part)) : part;
    return Math.round(signed ? (255 * (bent + 1)) / 2 : 255 * bent);
  };
  return { index, high, largest, signed, table: tables[signed ? "signed" : "rising"] };
}

/** The end of the scale that A and B share: the largest value of these maps, or of all layers. */
function endOf(sides) {
  const layers = state.range === "layers" ? countTo(mainStack().layers) : [state.layer];
  const maps = sides.flatMap((side) => layers.map((layer) => valuesOf(side, layer)?.values ?? []));
  return maxOf(maps.map(maxOf));
}
