"use strict";
// What is shown now. The hash of the address holds what differs from the beginning.

const SIDES = ["A", "B", "A|B"];
let data; // the page's records, attributions and colours
let start; // the state at the beginning
let state;
let hovered = null; // a word under the pointer: shown, not pinned

const recordOf = (side) => data.records[side === "B" ? 1 : 0];
const stackOf = (side) => recordOf(side).stacks[state.stack];
const mainSide = () => (state.side === "B" ? "B" : "A");
const mainStack = () => stackOf(mainSide());
const currentWord = () => hovered ?? state.word;
const isWordOf = (stack) => currentWord() >= 0 && currentWord() < stack.words.length;
const queryOf = (stack) => Math.max(0, stack.queries.indexOf(state.query));

function firstState() {
  const { stacks } = data.records[0];
  const stack = "llm" in stacks ? "llm" : Object.keys(stacks)[0];
  return {
    side: data.records.length > 1 ? "A|B" : "A", stack, layer: Math.floor(stacks[stack].layers / 2),
    head: "mean", word: -1, query: stacks[stack].query, quantity: "attention", image: 0,
    box: null, curve: "linear", range: "map", light: 30, statistic: "mass", sorted: false,
    theme: "",
  };
}

/** What the lists offer for a stack: {name: [[value, label]]}. Attributions are of record A. */
function choicesOf(stacks, stack, side) {
  const isOffered = ([name]) => side !== "B" || !name.startsWith("effect-");
  return {
    quantity: data.quantities.filter(isOffered),
    query: stack.queries.map((name) => [name, name]),
    stack: Object.entries(stacks).map(([name, { short }]) => [name, short]),
    head: [["mean", "mean over heads"], ...stack.chosen.map((i) => [String(i), `head ${i + 1}`])],
    curve: [["linear", "linear"], ["root", "square root"]],
    range: [["map", "of this map"], ["layers", "of all layers"]],
    statistic: stack.by_head,
  };
}

/** Brings a state, which may come from a link, to what these records have. */
function repaired(asked) {
  const among = (name, values, otherwise = start[name]) => {
    return values.find((value) => String(value) === String(asked[name])) ?? otherwise;
  };
  const side = among("side", data.records.length > 1 ? SIDES : ["A"]);
  const { stacks } = recordOf(side);
  const wanted = [asked.stack, start.stack, ...Object.keys(stacks)];
  const stackName = wanted.find((name) => Object.hasOwn(stacks, name));
  const stack = stacks[stackName];
  const offered = Object.entries(choicesOf(stacks, stack, side)).map(([name, entries]) => {
    const values = entries.map(([value]) => value);
    return [name, among(name, values, name === "query" ? stack.query : values[0])];
  });
  const edges = (asked.box ?? []).map((edge) => Number(edge.toFixed(4)));
  return {
    side, ...Object.fromEntries(offered), stack: stackName,
    layer: Math.min(Math.max(0, Math.round(asked.layer) || 0), stack.layers - 1),
    word: among("word", countTo(stack.words.length), -1),
    image: among("image", stack.patches?.images ?? [0], stack.patches?.images[0] ?? 0),
    box: edges.length === 4 && edges.every(Number.isFinite) ? edges : null,
    light: among("light", countTo(101)),
    sorted: among("sorted", [true, false]),
    theme: among("theme", ["", "light", "dark"]),
  };
}

function stateOfHash(hash) {
  const given = textsOfHash(hash);
  return repaired({ ...start, ...given, box: given.box?.split(",").map(Number) });
}

function change(patch) {
  state = repaired({ ...state, ...patch });
  const hash = linkTo(state, start);
  if (window.parent !== window) window.parent.postMessage({ probe: hash }, "*");
  drawAll();
}

/** Shows a word while the pointer is on it; null ends it. */
function hover(word) {
  if (hovered === word) return;
  hovered = word;
  drawWord();
}
