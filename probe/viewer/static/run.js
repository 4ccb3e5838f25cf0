"use strict";
// The samples of a run: a table that sorts and filters, and one sample beside it. Of the rows only
// those that are seen are in the page.

const ROW = 56; // pixels
const SHEET = 8; // pictures in a row of a sheet, and rows
const CELL = 160; // pixels of a picture on it
const NAMES = { mass: "on vision", answer: "answer now", number: "#" };
const MOVES = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10 };
let data;
let start;
let state;
let rows = []; // samples by number, filtered and sorted

const textOf = (name, sample) => data.texts[data.columns[name].data[sample]];
const caseOf = (name) => data.cases.find((one) => one.name === name);
const answerOf = (sample, name) => data.texts[caseOf(name).answer.data[sample]];
const scoreOf = (sample, name) => caseOf(name).correct.data[sample];
const isRight = (sample, name) => scoreOf(sample, name) >= 0.5;
const isWrong = (sample, name) => scoreOf(sample, name) < 0.5;
const curveOf = (name, sample) => Array.from(rowAt(data.curves[name].values, sample));

const FILTERS = {
  all: () => true,
  "right now": (sample) => isRight(sample, state.now),
  "wrong now": (sample) => isWrong(sample, state.now),
  "wrong now, right before": (s) => isWrong(s, state.now) && isRight(s, state.before),
  "right now, wrong before": (s) => isRight(s, state.now) && isWrong(s, state.before),
  "answer changed": (sample) => answerOf(sample, state.now) !== answerOf(sample, state.before),
};

/** What a column shows and sorts by: a number or a text. */
const COLUMNS = {
  number: (sample) => sample + 1,
  question: (sample) => textOf("question", sample),
  gold: (sample) => textOf("gold", sample),
  answer: (sample) => answerOf(sample, state.now),
  right: (sample) => scoreOf(sample, state.now),
  mass: (sample) => meanOf(curveOf("mass", sample)),
  entropy: (sample) => meanOf(curveOf("entropy", sample)),
};
const isThere = (name) => data.curves[name] || !["mass", "entropy"].includes(name);
const columns = () => Object.keys(COLUMNS).filter(isThere);

function choices() {
  const names = data.cases.map(({ name }) => name);
  return { now: names, before: names, filter: Object.keys(FILTERS) };
}

function repaired(asked) {
  const offered = Object.entries({ ...choices(), sort: columns(), sample: data.ids });
  const chosen = offered.map(([name, values]) => {
    return [name, values.includes(asked[name]) ? asked[name] : start[name]];
  });
  const down = String(asked.down) === "true";
  return { ...Object.fromEntries(chosen), down, text: String(asked.text) };
}

function change(patch) {
  state = repaired({ ...state, ...patch });
  linkTo(state, start);
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
  const keyed = countTo(data.ids.length).filter(isShown).map((s) => [COLUMNS[state.sort](s), s]);
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
  if (isRight(sample, name)) return ["right", "✓"];
  return isWrong(sample, name) ? ["wrong", "✗"] : ["unknown", ""];
}

/** A square for each case: right or wrong, and framed where the answer is another one. */
function changes(sample) {
  const squares = data.cases.map(({ name }) => {
    const other = answerOf(sample, name) !== answerOf(sample, state.before) ? " other" : "";
    const title = `${name}: ${answerOf(sample, name)}`;
    return make("i", { className: verdict(sample, name)[0] + other, title });
  });
  return make("span", { className: "changes" }, ...squares);
}

function newRow(sample, place) {
  const [kind, mark] = verdict(sample, state.now);
  const cells = columns().map((name) => {
    const value = name === "right" ? mark : COLUMNS[name](sample);
    const content = typeof value === "number" ? shown(value) : value;
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
  const view = at("view");
  at("table").style.height = `${rows.length * ROW}px`;
  const first = Math.max(0, Math.floor(view.scrollTop / ROW) - 4);
  const last = Math.ceil((view.scrollTop + view.clientHeight) / ROW) + 4;
  const seen = rows.slice(first, last).map((sample, i) => newRow(sample, first + i));
  at("table").replaceChildren(...seen);
  const chosen = seen.find((row) => row.ariaSelected === "true");
  at("table").setAttribute("aria-activedescendant", chosen ? chosen.id : "");
}

function drawAll() {
  for (const [id, names] of Object.entries(choices())) {
    choose(at(id), names.map((name) => [name, name]), state[id]);
  }
  const right = rows.filter((sample) => isRight(sample, state.now)).length;
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
  const answers = data.cases.map(({ name }) => {
    const [kind, mark] = verdict(sample, name);
    const answer = make("td", {}, make("bdi", {}, answerOf(sample, name)));
    const seal = make("td", { className: `is-${kind} right` }, mark);
    return make("tr", {}, make("td", {}, name), seal, answer);
  });
  const curves = Object.entries(data.curves).map(([name, { label }]) => {
    return newChart(label, [["A", curveOf(name, sample)]]);
  });
  at("one").replaceChildren(
    make("h2", {}, `${sample + 1}: ${data.ids[sample]}`),
    picture(sample, 2 * CELL),
    line("Question", textOf("question", sample)),
    line("Gold", textOf("gold", sample)),
    ...curves,
    make("table", {}, make("tbody", {}, ...answers)),
  );
}

/** The sample `by` rows further down, seen in the table. */
function step(by) {
  if (!rows.length) return;
  const place = rows.findIndex((sample) => data.ids[sample] === state.sample);
  const next = Math.min(rows.length - 1, Math.max(0, place + by));
  const lowest = (next + 2) * ROW - at("view").clientHeight; // one row is covered by the heads
  at("view").scrollTop = Math.min(next * ROW, Math.max(lowest, at("view").scrollTop));
  change({ sample: data.ids[rows[next]] });
}

async function main() {
  data = await readData();
  const [{ name: before }, { name: now } = data.cases[0]] = data.cases;
  const [sample] = data.ids;
  start = { now, before, sample, text: "", filter: "all", sort: "number", down: false };
  const stateOfHash = () => repaired({ ...start, ...textsOfHash(location.hash) });
  state = stateOfHash();
  window.addEventListener("hashchange", () => change(stateOfHash()));
  at("title").textContent = [data.benchmark, data.model].filter(Boolean).join(" · ");
  at("toy").hidden = data.toy !== "True";
  at("note").textContent = data.note;
  for (const id of [...Object.keys(choices()), "text"]) {
    at(id).addEventListener("input", () => change({ [id]: at(id).value }));
  }
  at("text").value = state.text;
  at("view").addEventListener("scroll", drawRows);
  document.addEventListener("keydown", (event) => {
    if (!(event.key in MOVES) || event.target.closest("select, input")) return;
    event.preventDefault();
    step(MOVES[event.key]);
  });
  findRows();
  drawAll();
}

begin(main);
