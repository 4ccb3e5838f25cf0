"use strict";
// The strip of layers, coloured by attention on vision, and the curves over layers.

const CHARTS = { mass: "attention on vision", entropy: "entropy", lift: "lift of vision" };

/** A statistic of attention on vision at a layer, of one head or as the mean over heads. */
function statisticOf(stack, name, layer, head = "mean") {
  if (!stack.statistics[name]) return NaN;
  const { shape: [, inner, queries], data: values } = stack.statistics[name].values;
  const query = queryOf(stack);
  if (!queries) return values[layer * inner + query]; // without heads
  const one = (each) => values[(layer * inner + each) * queries + query];
  return head === "mean" ? meanOf(countTo(inner).map(one)) : one(head);
}

/** The same by layer. */
function byLayer(stack, name) {
  return countTo(stack.layers).map((layer) => statisticOf(stack, name, layer));
}

/** How much of its attention the current word has on vision, by layer. */
function wordMass(stack) {
  return countTo(stack.layers).map((layer) => rowAt(stack.word_mass, layer)[currentWord()]);
}

function drawLayers() {
  const stack = mainStack();
  const masses = isWordOf(stack) ? wordMass(stack) : byLayer(stack, "mass");
  const strip = at("strip");
  const cells = masses.map(() => make("div"));
  if (strip.children.length !== stack.layers) strip.replaceChildren(...cells);
  const { table, index } = scaleOf(false, maxOf(masses));
  masses.forEach((mass, layer) => {
    const cell = Object.assign(strip.children[layer], { title: `${layer + 1}: ${shown(mass)}` });
    cell.style.background = Number.isNaN(mass) ? "" : table[index(mass)];
    cell.classList.toggle("current", layer === state.layer);
    cell.dataset.value = mass;
  });
  const name = `${stack.label[0].toUpperCase()}${stack.label.slice(1)} ${state.layer + 1}`;
  at("layer-name").textContent = `${name} of ${stack.layers}`;
  const now = `${name}, attention on vision ${shown(masses[state.layer])}`;
  Object.assign(at("layer"), { max: stack.layers, value: state.layer + 1, ariaValueText: now });
  at("curves").replaceChildren(...chartsOf(stack).map((each) => {
    const title = `${CHARTS[each]} (${stack.statistics[each].units})`;
    return newChart(title, linesOf(each), state.layer, (layer) => change({ layer }));
  }));
}

const chartsOf = (stack) => Object.keys(CHARTS).filter((name) => stack.statistics[name]);

/** The lines of a chart: [class, numbers by layer], the main record first, and of the word. */
function linesOf(name) {
  const stack = mainStack();
  const sides = [mainSide(), ...["A", "B"].slice(0, data.records.length)];
  const lines = [...new Set(sides)].filter(stackOf).map((side) => {
    return [side, byLayer(stackOf(side), name)];
  });
  return name === "mass" && isWordOf(stack) ? [...lines, ["word", wordMass(stack)]] : lines;
}
