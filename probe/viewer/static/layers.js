"use strict";
// The strip of layers, coloured by attention on vision, and the curves over layers.

const CHARTS = { mass: "attention on vision", entropy: "entropy", lift: "lift of vision" };
const WIDTH = 220; // of a chart, with its frame
const HEIGHT = 100;
const LEFT = 4;
const TOP = 20;
const FLOOR = HEIGHT - 18;

const isWordOf = (stack) => currentWord() >= 0 && currentWord() < stack.words.length;

/** A statistic of attention on vision by layer: of the queries, as the mean over heads. */
function byLayer(stack, name) {
  return countTo(stack.layers).map((layer) => statisticOf(stack, name, layer, queryOf(stack)));
}

/** How much of its attention the word has on vision, by layer. */
function wordMass(stack, word) {
  const count = stack.words.length;
  return countTo(stack.layers).map((layer) => stack.word_mass.data[layer * count + word]);
}

function drawLayers() {
  const stack = mainStack();
  const masses = isWordOf(stack) ? wordMass(stack, currentWord()) : byLayer(stack, "mass");
  const largest = maxOf(masses) || 1;
  const strip = at("strip");
  const cells = masses.map(() => make("div"));
  if (strip.children.length !== stack.layers) strip.replaceChildren(...cells);
  masses.forEach((mass, layer) => {
    const colour = Number.isNaN(mass) ? "" : tables.rising[Math.round((255 * mass) / largest)];
    const cell = Object.assign(strip.children[layer], { title: `${layer + 1}: ${shown(mass)}` });
    cell.style.background = colour;
    cell.classList.toggle("current", layer === state.layer);
    cell.dataset.value = mass;
  });
  const name = `${stack.label[0].toUpperCase()}${stack.label.slice(1)} ${state.layer + 1}`;
  at("layer-name").textContent = `${name} of ${stack.layers}`;
  const now = `${name}, attention on vision ${shown(masses[state.layer])}`;
  Object.assign(at("layer"), { max: stack.layers, value: state.layer + 1, ariaValueText: now });
  const charts = Object.keys(CHARTS).filter((each) => stack.statistics[each]);
  at("curves").replaceChildren(...charts.map(newChart));
}

/** The lines of a chart: [class, numbers by layer], of each record, and of the word. */
function linesOf(name) {
  const sides = data.records.length > 1 ? ["A", "B"] : ["A"];
  const lines = sides.filter(stackOf).map((side) => [side, byLayer(stackOf(side), name)]);
  const stack = mainStack();
  const word = name === "mass" && isWordOf(stack) ? [["word", wordMass(stack, currentWord())]] : [];
  return [...lines, ...word];
}

function newChart(name) {
  const lines = linesOf(name);
  const { layers, statistics } = mainStack();
  const high = Math.max(...lines.map(([, values]) => maxOf(values))) || 1;
  const x = (layer) => LEFT + ((WIDTH - 2 * LEFT) * layer) / Math.max(1, layers - 1);
  const y = (value) => FLOOR - ((FLOOR - TOP) * value) / high;
  const now = shown(byLayer(mainStack(), name)[state.layer]);
  const title = `${CHARTS[name]} (${statistics[name].units})`;
  const label = `${title}: ${now} in this layer, at most ${shown(high)}`;
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  const write = (text, left, top, anchor, className = "") => {
    const place = { x: left, y: top, "text-anchor": anchor, class: className };
    svg.append(shape("text", place, String(text)));
  };
  const right = WIDTH - LEFT;
  const frame = `M${LEFT} ${FLOOR}H${right}M${LEFT} ${TOP}H${right}`;
  svg.append(shape("path", { class: "axis", d: frame }));
  svg.append(shape("path", { class: "now", d: `M${x(state.layer)} ${TOP}V${FLOOR}` }));
  for (const [side, values] of lines) {
    svg.append(shape("path", { class: `line ${side}`, d: pathOf(values, x, y) }));
  }
  write(title, LEFT, 12, "start", "name");
  write(shown(high), right, 12, "end");
  write(now, Math.min(right - 14, Math.max(24, x(state.layer))), HEIGHT - 4, "middle", "name");
  svg.addEventListener("click", (event) => {
    const { left, width } = svg.getBoundingClientRect();
    change({ layer: Math.round(((event.clientX - left) / width) * (layers - 1)) });
  });
  return svg;
}
