"use strict";
// A chart of numbers over layers, with the current layer marked.

const WIDTH = 220; // of a chart, with its frame
const HEIGHT = 100;
const LEFT = 4;
const TOP = 20;
const FLOOR = HEIGHT - 18;

/** A line with gaps where there is no number. */
function pathOf(values, x, y) {
  const steps = values.map((value, i) => {
    if (Number.isNaN(value)) return "";
    const place = `${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    return i && !Number.isNaN(values[i - 1]) ? `L${place}` : `M${place}h0`; // h0: a dot
  });
  return steps.join("");
}

/** lines: [class, numbers by layer]; the first has the current layer's number below. go: what a
    click on a layer does. */
function newChart(title, lines, current = -1, go = () => {}) {
  const [[, first]] = lines;
  const high = maxOf(lines.flatMap(([, values]) => values));
  const x = (layer) => LEFT + ((WIDTH - 2 * LEFT) * layer) / Math.max(1, first.length - 1);
  const y = (value) => FLOOR - ((FLOOR - TOP) * value) / (high || 1);
  const now = current < 0 ? "" : `${shown(first[current])} in this layer, `;
  const label = `${title}: ${now}at most ${shown(high)}`;
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  const draw = (tag, attributes, ...text) => svg.append(shape(tag, attributes, ...text));
  const right = WIDTH - LEFT;
  draw("path", { class: "axis", d: `M${LEFT} ${FLOOR}H${right}M${LEFT} ${TOP}H${right}` });
  for (const [side, values] of lines) {
    draw("path", { class: `line ${side}`, d: pathOf(values, x, y) });
  }
  draw("text", { x: LEFT, y: 12, class: "name" }, title);
  draw("text", { x: right, y: 12, "text-anchor": "end" }, shown(high));
  if (current >= 0) {
    const middle = Math.min(right - 14, Math.max(24, x(current)));
    draw("path", { class: "now", d: `M${x(current)} ${TOP}V${FLOOR}` });
    const place = { x: middle, y: HEIGHT - 4, "text-anchor": "middle", class: "name" };
    draw("text", place, shown(first[current]));
  }
  svg.addEventListener("click", (event) => {
    const { left, width } = svg.getBoundingClientRect();
    go(Math.round(((event.clientX - left) / width) * (first.length - 1)));
  });
  return svg;
}
