"use strict";
// The picture in grey, and on it, as light, what each patch has. The numbers in exactly the colours
// of the scale are on a canvas of their own (`.heat`); the style sheet lays it over the picture.

const SMALLEST = 480; // pixels along the longer side of a canvas
const DIFFERENCE = "B − A";
const photos = []; // of each record, its images by number
let panels = []; // what is in #pictures: {side, part, keys, values, patches, scale, heat, ...}
let panelKey = "";

function drawPictures() {
  const sides = state.side === "A|B" ? ["A", "B"] : [state.side];
  const end = endOf(sides);
  const found = sides.map((side) => ({ side, ...valuesOf(side) })).filter((one) => one.values);
  for (const one of found) one.scale = scaleOf(one.signed, end);
  if (found.length > 1) {
    const difference = differenceOf(...found);
    const scale = scaleOf(true, maxOf(difference.values));
    found.push({ ...difference, side: DIFFERENCE, scale });
  }
  const wanted = found.flatMap((one) => {
    const views = one.patches.views.filter(({ image }) => image === state.image);
    return views.map(({ part, keys }) => ({ ...one, part, keys: Array.from(keys.data) }));
  });
  const names = wanted.map(({ side, part, keys }) => [side, part, keys.length]);
  const key = JSON.stringify([state.image, state.stack, names]);
  if (key !== panelKey) {
    panels = wanted.map(newPanel);
    const none = make("p", { className: "quiet" }, "This part of the record holds no patches.");
    at("pictures").replaceChildren(...(panels.length ? panels.map((p) => p.figure) : [none]));
    document.body.classList.toggle("wide-look", panels.length > 2);
    panelKey = key;
  }
  panels.forEach((panel, i) => drawPanel(Object.assign(panel, wanted[i])));
}

function newPanel({ side, part }) {
  const photo = photos[side === "B" ? 1 : 0][state.image];
  const { naturalWidth, naturalHeight } = photo ?? { naturalWidth: 1, naturalHeight: 1 };
  const zoom = Math.max(1, Math.ceil(SMALLEST / Math.max(naturalWidth, naturalHeight)));
  const size = { width: naturalWidth * zoom, height: naturalHeight * zoom };
  const under = make("canvas", { className: "photo", ...size });
  if (photo) under.getContext("2d").drawImage(photo, 0, 0, size.width, size.height);
  const heat = make("canvas", { className: "heat", ...size });
  Object.assign(heat.dataset, { side, part });
  const marks = shape("svg", { viewBox: `0 0 ${size.width} ${size.height}` });
  const frame = make("div", { className: "frame", tabIndex: 0, role: "application" });
  frame.append(under, heat, marks);
  const title = make("figcaption");
  const bar = make("canvas", { className: "bar", width: 256, height: 1 });
  const ends = ["low", "unit", "high"].map((className) => make("span", { className }));
  const scale = make("div", { className: "scale" }, bar);
  const figure = make("figure", {}, title, frame, scale, make("p", { className: "ends" }, ...ends));
  const panel = { part, figure, frame, photo, heat, marks, title, bar, ends, ...size };
  followPointer(panel);
  return panel;
}

const clipped = (edges) => edges.map((edge) => Math.max(0, Math.min(1, edge)));

/** Left, top, right and bottom in pixels, of fractions of the picture. */
function inPixels(edges, width, height) {
  return clipped(edges).map((edge, i) => Math.round(edge * (i % 2 ? height : width)));
}

function drawPanel(panel) {
  const { scale, values, keys, patches, width, height } = panel;
  const context = panel.heat.getContext("2d", { willReadFrequently: true });
  context.clearRect(0, 0, width, height);
  for (const key of keys.filter((each) => !Number.isNaN(values[each]))) {
    const [left, top, right, bottom] = inPixels(rowAt(patches.box, key), width, height);
    context.fillStyle = scale.table[scale.index(values[key])];
    context.fillRect(left, top, right - left, bottom - top);
  }
  const bar = panel.bar.getContext("2d");
  for (const i of countTo(256)) {
    const part = scale.signed ? (2 * i) / 255 - 1 : i / 255;
    bar.fillStyle = scale.table[scale.index(part * scale.high)];
    bar.fillRect(i, 0, 1, 1);
  }
  const root = state.curve === "root" ? ", colours by square root" : "";
  const low = scale.signed ? shown(-scale.largest) : "0";
  panel.ends.forEach((end, i) => {
    end.textContent = [low, panel.unit + root, shown(scale.largest)][i];
  });
  panel.heat.dataset.high = scale.high;
  panel.title.textContent = titleOf(panel);
  const keysDo = "Arrow keys move a box, with Shift they resize it.";
  panel.frame.ariaLabel = `${titleOf(panel)} ${captionText()}. ${mostOf(panel)} ${keysDo}`;
  drawMarks(panel);
}

/** Where most is, for those who do not see it. */
function mostOf(panel) {
  const { values, keys } = panel;
  const most = keys.reduce((best, key) => (values[key] > (values[best] ?? -1) ? key : best), -1);
  return most < 0 ? "" : `Most at ${patchName(panel, most)}: ${shown(values[most])}.`;
}

function titleOf({ side, part }) {
  if (data.records.length < 2) return part || (panels.length > 1 ? "whole image" : "");
  const name = side === DIFFERENCE ? "difference" : recordOf(side).label;
  return [`${side}: ${name}`, part].filter(Boolean).join(", ");
}

function patchName({ patches }, key) {
  return `row ${patches.row.data[key] + 1}, column ${patches.col.data[key] + 1}`;
}

const rectangle = ([left, top, right, bottom]) => `M${left} ${top}H${right}V${bottom}H${left}Z`;
const cross = ([x, y, u, v]) => `M${x} ${y}L${u} ${v}M${u} ${y}L${x} ${v}`;

/** What was kept and dropped, sinks, merged patches, the patch under the pointer, the box. */
function drawMarks({ side, signed, patches, marks, width, height, keys, hoveredKey }) {
  const inFigure = (edges) => inPixels(edges, width, height);
  const pathOfKeys = (some, draw = rectangle) => {
    return some.map((key) => draw(inFigure(rowAt(patches.box, key)))).join("");
  };
  const shapes = [];
  const add = (name, d, more) => d && shapes.push(shape("path", { class: name, d, ...more }));
  if (!signed) {
    const stack = stackOf(side);
    const layer = Math.min(state.layer, stack.layers - 1);
    if (stack.dropped) {
      const dropped = rowAt(stack.dropped, layer);
      const kept = pathOfKeys(keys.filter((key) => !dropped[key]));
      add("dropped", rectangle([0, 0, width, height]) + kept, { "fill-rule": "evenodd" });
      add("kept", kept);
    }
    if (stack.sinks && state.quantity !== "no-sinks") {
      const sinks = rowAt(stack.sinks, layer);
      add("sink", pathOfKeys(keys.filter((key) => sinks[key]), cross));
    }
    add("merged", mergedWith(stack, hoveredKey).map((edges) => rectangle(inFigure(edges))).join(""));
  }
  if (hoveredKey >= 0) add("under", pathOfKeys([hoveredKey]));
  if (state.box) add("box", rectangle(inFigure(state.box)));
  marks.replaceChildren(...shapes);
}

/** The boxes of all patches that share this token, where the record knows and there are several. */
function mergedWith({ merged }, key) {
  if (!merged || !(key >= 0)) return [];
  const members = countTo(merged.token.data.length).filter((i) => merged.token.data[i] === key);
  return members.length > 1 ? members.map((patch) => rowAt(merged.box, patch)) : [];
}
