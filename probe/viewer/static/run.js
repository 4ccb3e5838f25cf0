"use strict";
// The samples of a run: a table that sorts and filters, and one sample beside it. Of the rows only
// those that are seen are in the page.

const ROW = 56; // pixels
const SHEET = 8; // pictures in a row of a sheet, and rows
const CELL = 160; // pixels of a picture on it
const NAMES = { mass: "on vision", answer: "answer now", number: "#" };
const FILTERS = {
  all: () => true,
  "right now": (sample) => rightOf(sample, state.now) > 0.5,
  "wrong now": (sample) => rightOf(sample, state.now) <= 0.5,
  "wrong now, right before": (s) => rightOf(s, state.now) <= 0.5 && rightOf(s, state.before) > 0.5,
  "right now, wrong before": (s) => rightOf(s, state.now) > 0.5 && rightOf(s, state.before) <= 0.5,
  "answer changed": (sample) => answerOf(sample, state.now) !== answerOf(sample, state.before),
};
let data;
let start;
let state;
let rows = []; // samples by number, filtered and sorted

const textOf = (name, sample) => data.texts[data.columns[name].data[sample]];
const answerOf = (sample, name) => data.texts[caseOf(name).answer.data[sample]];
const rightOf = (sample, name) => caseOf(name).correct.data[sample];
const caseOf = (name) => data.cases.find((one) => one.name === name);
const caseNames = () => data.cases.map(({ name }) => name);
const columns = () => Object.keys(SORTS).filter((name) => !(name in CURVES) || data.curves[name]);

function curveOf(name, sample) {
  const { shape: [, layers] = [], data: values } = data.curves[name] ?? {};
  return values ? values.subarray(sample * layers, (sample + 1) * layers) : new Float32Array();
}

const CURVES = {
  mass: (sample) => meanOf(curveOf("mass", sample)),
  entropy: (sample) => meanOf(curveOf("entropy", sample)),
};
/** What a column sorts by: a number or a text. */
const SORTS = {
  number: (sample) => sample,
  question: (sample) => textOf("question", sample),
  gold: (sample) => textOf("gold", sample),
  answer: (sample) => answerOf(sample, state.now),
  right: (sample) => rightOf(sample, state.now),
  ...CURVES,
};

function repaired(asked) {
  const among = (name, values) => (values.includes(asked[name]) ? asked[name] : start[name]);
  return {
    now: among("now", caseNames()),
    before: among("before", caseNames()),
    filter: among("filter", Object.keys(FILTERS)),
    sort: among("sort", columns()),
    sample: among("sample", data.ids),
    down: String(asked.down) === "true",
    text: String(asked.text),
  };
}

function stateOfHash() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  return repaired({ ...start, ...given });
}

function change(patch) {
  state = repaired({ ...state, ...patch });
  const changed = Object.entries(state).filter(([name, value]) => value !== start[name]);
  history.replaceState(null, "", `#${new URLSearchParams(changed)}`);
  if (!("sample" in patch)) findRows();
  drawAll();
}

function findRows() {
  const words = state.text.toLowerCase();
  const has = (sample) => {
    const texts = [textOf("question", sample), textOf("gold", sample), answerOf(sample, state.now)];
    return [data.ids[sample], ...texts].join("\n").toLowerCase().includes(words);
  };
  const isShown = (sample) => FILTERS[state.filter](sample) && (!words || has(sample));
  const keyed = countTo(data.ids.length).filter(isShown).map((s) => [SORTS[state.sort](s), s]);
  keyed.sort(([a], [b]) => {
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // NaN is last
    const order = a < b ? -1 : Number(a > b);
    return state.down ? -order : order;
  });
  rows = keyed.map(([, sample]) => sample);
}

/** A small picture: its part of the sheet. */
function picture(sample, size) {
  const place = data.place.data[sample];
  const element = make("span", { className: "picture" });
  if (place < 0) return element;
  const [row, column] = [Math.floor((place % SHEET ** 2) / SHEET), place % SHEET];
  const sheet = data.sheets[Math.floor(place / SHEET ** 2)];
  Object.assign(element.style, {
    width: `${size}px`, height: `${size}px`, backgroundImage: `url("${sheet}")`,
    backgroundSize: `${SHEET * size}px`, backgroundPosition: `${-column * size}px ${-row * size}px`,
  });
  return element;
}

/** Right or wrong in a case: the class, and the mark. */
function verdict(sample, name) {
  const right = rightOf(sample, name);
  if (Number.isNaN(right)) return ["unknown", ""];
  return right > 0.5 ? ["right", "✓"] : ["wrong", "✗"];
}

/** A square for each case: right or wrong, and framed where the answer is another one. */
function changes(sample) {
  const squares = caseNames().map((name) => {
    const other = answerOf(sample, name) !== answerOf(sample, state.before) ? " other" : "";
    const title = `${name}: ${answerOf(sample, name)}`;
    return make("i", { className: verdict(sample, name)[0] + other, title });
  });
  return make("span", { className: "changes" }, ...squares);
}

function newRow(sample, place) {
  const [kind, mark] = verdict(sample, state.now);
  const cells = columns().map((name) => {
    const value = SORTS[name](sample);
    const text = name === "right" ? mark : name === "number" ? String(value + 1) : value;
    const content = typeof text === "number" ? shown(text) : text;
    return make("bdi", { className: `cell ${name} is-${kind}`, title: content }, content);
  });
  const row = make("div", { className: "row", role: "option", id: `row-${sample}` });
  row.append(picture(sample, ROW - 8), ...cells, changes(sample));
  row.style.top = `${place * ROW}px`;
  const isChosen = data.ids[sample] === state.sample;
  Object.assign(row, { ariaSelected: isChosen, ariaPosInSet: place + 1, ariaSetSize: rows.length });
  row.addEventListener("click", () => change({ sample: data.ids[sample] }));
  return row;
}

function drawRows() {
  const table = at("table");
  at("tall").style.height = `${rows.length * ROW}px`;
  const first = Math.max(0, Math.floor(table.scrollTop / ROW) - 4);
  const last = Math.ceil((table.scrollTop + table.clientHeight) / ROW) + 4;
  const seen = rows.slice(first, last).map((sample, i) => newRow(sample, first + i));
  at("tall").replaceChildren(...seen);
  const chosen = seen.find((row) => row.ariaSelected === "true");
  table.setAttribute("aria-activedescendant", chosen ? chosen.id : "");
}

function drawAll() {
  for (const id of ["filter", "now", "before"]) at(id).value = state[id];
  const right = rows.filter((sample) => rightOf(sample, state.now) > 0.5).length;
  at("count").textContent = `${rows.length} of ${data.ids.length} samples, ${right} right now`;
  const heads = columns().map((name) => {
    const isSorted = state.sort === name;
    const arrow = isSorted ? (state.down ? " ↓" : " ↑") : "";
    const button = make("button", { className: `cell ${name}` }, (NAMES[name] ?? name) + arrow);
    button.addEventListener("click", () => change({ sort: name, down: isSorted && !state.down }));
    return button;
  });
  const ends = ["picture", "changes"].map((className) => make("span", { className }));
  ends[1].append("each case");
  at("heads").replaceChildren(ends[0], ...heads, ends[1]);
  drawRows();
  drawSample();
}

/** The chosen sample: its picture, texts, the curves over layers, its answer in every case. */
function drawSample() {
  const sample = data.ids.indexOf(state.sample);
  const line = (label, text) => make("p", {}, make("b", {}, `${label} `), make("bdi", {}, text));
  const answers = caseNames().map((name) => {
    const [kind, mark] = verdict(sample, name);
    const answer = make("td", {}, make("bdi", {}, answerOf(sample, name)));
    const seal = make("td", { className: `is-${kind} right` }, mark);
    return make("tr", {}, make("td", {}, name), seal, answer);
  });
  at("one").replaceChildren(
    make("h2", {}, `${sample + 1}: ${data.ids[sample]}`),
    picture(sample, 2 * CELL),
    line("Question", textOf("question", sample)),
    line("Gold", textOf("gold", sample)),
    ...Object.keys(data.curves).map((name) => curve(name, curveOf(name, sample))),
    make("table", {}, make("tbody", {}, ...answers)),
  );
}

function curve(name, values) {
  const high = maxOf(values) || 1;
  const x = (layer) => 2 + (296 * layer) / Math.max(1, values.length - 1);
  const path = pathOf(Array.from(values), x, (value) => 60 - (56 * value) / high);
  const label = `${NAMES[name] ?? name} by layer, at most ${shown(high)}`;
  const svg = shape("svg", { viewBox: "0 0 300 62", role: "img", "aria-label": label });
  svg.append(shape("path", { class: "line A", d: path, fill: "none" }));
  return make("figure", {}, make("figcaption", {}, label), svg);
}

/** The sample `by` rows further down, seen in the table. */
function step(by) {
  if (!rows.length) return;
  const place = rows.findIndex((sample) => data.ids[sample] === state.sample);
  const next = Math.min(rows.length - 1, Math.max(0, place + by));
  const table = at("table");
  const lowest = (next + 1) * ROW - table.clientHeight;
  table.scrollTop = Math.min(next * ROW, Math.max(lowest, table.scrollTop));
  change({ sample: data.ids[rows[next]] });
}

async function main() {
  data = await readData();
  const [before, now = before] = caseNames();
  const [sample] = data.ids;
  start = { now, before, sample, text: "", filter: "all", sort: "number", down: false };
  state = stateOfHash();
  window.addEventListener("hashchange", () => {
    state = stateOfHash();
    findRows();
    drawAll();
  });
  at("title").textContent = [data.benchmark, data.model].filter(Boolean).join(" · ");
  at("toy").hidden = data.toy !== "True";
  const choices = { filter: Object.keys(FILTERS), now: caseNames(), before: caseNames(), text: [] };
  for (const [id, names] of Object.entries(choices)) {
    at(id).append(...names.map((value) => make("option", { value }, value)));
    at(id).addEventListener("input", () => change({ [id]: at(id).value }));
  }
  at("text").value = state.text;
  at("table").addEventListener("scroll", drawRows);
  const moves = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10 };
  document.addEventListener("keydown", (event) => {
    if (!(event.key in moves) || event.target.closest("select, input")) return;
    event.preventDefault();
    step(moves[event.key]);
  });
  findRows();
  drawAll();
  document.body.dataset.ready = "yes";
}

main();
