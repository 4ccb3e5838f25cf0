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

/** What can be shown by patch: [[name, label]]. */
function quantities() {
  const sinks = data.records.some(({ stacks }) => Object.values(stacks).some((s) => s.sinks));
  return [
    ["attention", "attention"],
    ...(sinks ? [["no-sinks", "attention, sinks removed"]] : []),
    ["lift", "lift over an even spread"],
    ...data.attributions.map(({ label }, i) => [`effect-${i}`, label]),
  ];
}

/** Brings a state, which may come from a link, to what these records have. */
function repaired(asked) {
  const among = (name, values) => (values.includes(asked[name]) ? asked[name] : start[name]);
  const within = (name, low, high, otherwise) => {
    const value = Math.round(Number(asked[name]));
    return value >= low && value <= high ? value : otherwise;
  };
  const side = among("side", data.records.length > 1 ? SIDES : ["A"]);
  const { stacks } = recordOf(side);
  const wanted = [asked.stack, start.stack, Object.keys(stacks)[0]];
  const stackName = wanted.find((name) => Object.hasOwn(stacks, name));
  const stack = stacks[stackName];
  const images = stack.patches?.images ?? [0];
  const heads = ["mean", ...stack.chosen.map(String)];
  const box = asked.box?.length === 4 && asked.box.every(Number.isFinite) ? asked.box : null;
  return {
    side, box, stack: stackName,
    layer: Math.min(Math.max(0, Math.round(asked.layer) || 0), stack.layers - 1),
    head: heads.includes(String(asked.head)) ? String(asked.head) : "mean",
    word: within("word", 0, stack.words.length - 1, -1),
    query: stack.queries.includes(asked.query) ? asked.query : stack.query,
    quantity: among("quantity", quantities().map(([name]) => name)),
    image: images.includes(Number(asked.image)) ? Number(asked.image) : images[0],
    curve: among("curve", ["linear", "root"]),
    range: among("range", ["map", "layers"]),
    light: within("light", 0, 100, start.light),
    statistic: Object.hasOwn(stack.statistics, asked.statistic) ? asked.statistic : "mass",
    sorted: String(asked.sorted) === "true",
    theme: among("theme", ["", "light", "dark"]),
  };
}

function stateOfHash(hash) {
  const given = Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));
  return repaired({ ...start, ...given, box: given.box?.split(",").map(Number) });
}

function hashOfState() {
  const changed = Object.entries(state).filter(([name, value]) => value !== start[name]);
  const texts = changed.map(([name, value]) => {
    return [name, name === "box" ? value.map((edge) => edge.toFixed(4)) : value];
  });
  return new URLSearchParams(texts).toString();
}

function change(patch) {
  state = repaired({ ...state, ...patch });
  const hash = hashOfState();
  try {
    history.replaceState(null, "", `#${hash}`);
  } catch {
    // a frame without an address of its own
  }
  if (window.parent !== window) window.parent.postMessage({ probe: hash }, "*");
  drawAll();
}

/** Shows a word while the pointer is on it; null ends it. */
function hover(word) {
  if (hovered === word) return;
  hovered = word;
  drawWord();
}
