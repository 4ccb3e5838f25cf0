"use strict";
// From the data to the page, and from the controls to the state.

function drawControls() {
  const offered = choicesOf(recordOf(mainSide()).stacks, mainStack(), state.side);
  for (const [id, entries] of Object.entries(offered)) choose(at(id), entries, state[id]);
  at("light").value = state.light;
  at("sorted").checked = state.sorted;
  document.documentElement.style.setProperty("--light", state.light / 100);
  document.documentElement.dataset.theme = state.theme;
  for (const button of at("sides").children) button.ariaPressed = button.value === state.side;
}

/** Images, or frames of a video: each with its share of the attention on vision. */
function drawImages() {
  const { patches } = mainStack();
  const strip = at("images");
  strip.parentElement.hidden = !(patches?.images.length > 1);
  if (strip.parentElement.hidden) return;
  const { images, names } = patches;
  const masses = images.map(() => 0);
  attentionOf(mainStack(), state.layer).forEach((value, key) => {
    masses[images.indexOf(patches.image.data[key])] += value || 0;
  });
  if (strip.children.length !== images.length) strip.replaceChildren(...images.map(newFrame));
  masses.forEach((mass, place) => {
    const frame = strip.children[place];
    const title = `${names[images[place]]}: ${shown(mass)} of the attention`;
    Object.assign(frame, { ariaPressed: images[place] === state.image, ariaLabel: title, title });
    frame.dataset.value = mass;
    frame.lastChild.style.width = `${(100 * mass) / (maxOf(masses) || 1)}%`;
  });
}

function newFrame(image) {
  const source = recordOf(mainSide()).images[image];
  const name = mainStack().patches.names[image];
  const picture = source ? make("img", { src: source, alt: "" }) : name;
  const fill = make("span", { className: "fill" });
  const frame = make("button", { className: "frame-button" }, picture, fill);
  frame.addEventListener("click", () => change({ image }));
  return frame;
}

/** What depends on the word under the pointer. */
function drawWord() {
  at("caption").textContent = captionText();
  drawPictures();
  drawImages();
  drawWords();
  drawLayers();
}

function drawAll() {
  drawControls();
  drawWord();
  drawBox();
  drawHeads();
}

function prepareControls() {
  for (const id of Object.keys(choicesOf(recordOf("A").stacks, mainStack()))) {
    at(id).addEventListener("change", () => change({ [id]: at(id).value }));
  }
  at("layer").addEventListener("input", () => change({ layer: at("layer").value - 1 }));
  at("light").addEventListener("input", () => change({ light: at("light").value }));
  at("sorted").addEventListener("change", () => change({ sorted: at("sorted").checked }));
  at("theme").addEventListener("click", () => {
    const prefersDark = matchMedia("(prefers-color-scheme: dark)").matches;
    const isDark = state.theme ? state.theme === "dark" : prefersDark;
    change({ theme: isDark ? "light" : "dark" });
  });
  const toLayer = (event) => {
    const layer = [...at("strip").children].indexOf(event.target);
    if (layer >= 0 && (event.type === "click" || event.buttons)) change({ layer });
  };
  for (const name of ["click", "pointerover"]) at("strip").addEventListener(name, toLayer);
  at("sides").hidden = data.records.length < 2;
  at("sides").append(...SIDES.map((side) => make("button", { value: side }, side)));
  at("sides").addEventListener("click", ({ target }) => change({ side: target.value }));
  at("title").textContent = data.records.map(({ label }) => label).join("  |  ");
  at("toy").hidden = !data.toy;
}

function onKey(event) {
  const isTyping = event.target.closest("select, input");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    ArrowLeft: () => stepWord(-1),
    ArrowRight: () => stepWord(1),
    ArrowUp: () => change({ layer: state.layer - 1 }),
    ArrowDown: () => change({ layer: state.layer + 1 }),
    Escape: () => change({ word: -1, box: null }),
  };
  if (!Object.hasOwn(actions, event.key)) return;
  event.preventDefault();
  actions[event.key]();
}

async function decoded(source) {
  const image = make("img", { src: source });
  await image.decode();
  return image;
}

async function main() {
  data = await readData();
  for (const [name, colours] of Object.entries(data.colours)) {
    tables[name] = countTo(256).map((i) => `rgb(${rowAt(colours, i).join()})`);
  }
  for (const [i, { images }] of data.records.entries()) {
    photos[i] = {};
    for (const [image, source] of Object.entries(images)) photos[i][image] = await decoded(source);
  }
  start = firstState();
  state = start;
  state = stateOfHash(location.hash);
  prepareControls();
  prepareHeads();
  prepareExport();
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", () => change(stateOfHash(location.hash)));
  window.addEventListener("message", ({ source, data: message }) => { // of the widget
    const isNew = source === window.parent && typeof message?.probe === "string";
    if (isNew && message.probe !== linkTo(state, start)) change(stateOfHash(message.probe));
  });
  drawAll();
}

begin(main);
