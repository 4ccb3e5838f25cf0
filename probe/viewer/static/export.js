"use strict";
// What is taken along: the picture as PNG or SVG, its caption, a link.

const LINE = 18; // pixels of a line of text, and between panels

/** Model, layer, head, queries, quantity, convention: what a figure must say. */
function captionText() {
  const stack = mainStack();
  const word = stack.words[currentWord()];
  const effect = data.attributions[shownEffect()];
  const owed = effect && wordOf(effect) ? `the word “${word.text}”` : "the whole answer";
  const looked = [
    `${stack.label} ${state.layer + 1}`,
    state.head === "mean" ? "mean over heads" : `head ${Number(state.head) + 1}`,
    word ? `the row that predicts “${word.text}”` : `mean over ${state.query} tokens`,
  ];
  const parts = [
    data.records.map(({ label }) => label).join(" and "),
    ...(effect ? [owed] : looked),
    Object.fromEntries(data.quantities)[state.quantity],
    stack.patches?.images.length > 1 ? stack.patches.names[state.image] : "",
    ...recordOf(mainSide()).notes,
  ];
  return parts.filter(Boolean).join(" · ");
}

/** Lines of at most so many letters. */
function wrapped(text, letters) {
  return text.split(" ").reduce((lines, word) => {
    const longer = `${lines.at(-1)} ${word}`.trim();
    return longer.length > letters ? [...lines, word] : [...lines.slice(0, -1), longer];
  }, [""]);
}

/** The picture in grey, as bright as it is on the page. */
function greyPhoto({ photo, width, height }) {
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, width, height);
  context.filter = `grayscale(1) brightness(${state.light / 100})`;
  if (photo) context.drawImage(photo, 0, 0, width, height);
  return canvas;
}

/** The panels side by side, with their scales, and the caption below. */
function figureSvg() {
  const width = panels.reduce((sum, panel) => sum + panel.width + LINE, LINE);
  const below = Math.max(...panels.map((panel) => panel.height)) + 6 * LINE;
  const lines = wrapped(captionText(), width / 8);
  const size = { width, height: below + LINE * lines.length };
  const svg = shape("svg", { ...size, "font-family": "sans-serif", "font-size": 13 });
  svg.append(shape("rect", { ...size, fill: "#fff" }));
  const write = (text, x, y, anchor) => {
    svg.append(shape("text", { x, y, "text-anchor": anchor }, text));
  };
  let x = LINE;
  for (const panel of panels) {
    const { bar, heat, ends, title } = panel;
    const box = { x, y: 2 * LINE, width: panel.width, height: panel.height };
    const under = box.y + box.height + 8;
    const image = (canvas, more) => {
      const href = canvas.toDataURL();
      const element = shape("image", { href, ...box, preserveAspectRatio: "none", ...more });
      svg.append(element);
      return element;
    };
    image(greyPhoto(panel));
    image(heat).style.mixBlendMode = "screen";
    svg.append(shape("g", { transform: `translate(${x} ${box.y})` }, ...marksCopied(panel)));
    image(bar, { y: under, height: 10 });
    write(title.textContent, x, box.y - 8, "start");
    ["start", "middle", "end"].forEach((anchor, i) => {
      write(ends[i].textContent, x + (i * box.width) / 2, under + 10 + LINE, anchor);
    });
    x += box.width + LINE;
  }
  lines.forEach((line, i) => write(line, LINE, below + i * LINE, "start"));
  return new Blob([new XMLSerializer().serializeToString(svg)], { type: "image/svg+xml" });
}

/** The marks of a panel with the style that the page gives them. */
function marksCopied({ marks }) {
  return [...marks.children].map((mark) => {
    const { fill, stroke, strokeWidth } = getComputedStyle(mark);
    const copy = mark.cloneNode();
    Object.assign(copy.style, { fill, stroke, strokeWidth });
    return copy;
  });
}

/** The same as PNG, at twice the size. */
async function figurePng() {
  const image = await decoded(URL.createObjectURL(figureSvg()));
  const canvas = make("canvas", { width: 2 * image.width, height: 2 * image.height });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function saved(blob, name) {
  make("a", { href: URL.createObjectURL(blob), download: name }).click();
  at("said").textContent = `Saved ${name}.`;
}

/** To the clipboard; where a browser or a frame forbids that, to a file. */
async function copied(blob, name) {
  try {
    await navigator.clipboard.write([new ClipboardItem({ [blob.type]: blob })]);
    at("said").textContent = `Copied: ${name}.`;
  } catch {
    saved(blob, name);
  }
}

/** What is done with the picture, where there is one. */
const ofPicture = (act) => () => {
  if (panels.length) return act();
  at("said").textContent = "This part of the record holds no picture.";
};

function prepareExport() {
  const copy = (text, name) => copied(new Blob([text], { type: "text/plain" }), name);
  const actions = {
    png: ofPicture(async () => copied(await figurePng(), "figure.png")),
    svg: ofPicture(() => saved(figureSvg(), "figure.svg")),
    "copy-caption": () => copy(captionText(), "caption.txt"),
    link: () => copy(location.href, "link.txt"),
    "python-picture": () => copy(pythonText(pictureCalls), "picture.py"),
    "python-curves": () => copy(pythonText(curveCalls), "curves.py"),
    "python-heads": () => copy(pythonText(headCalls), "heads.py"),
  };
  for (const [id, act] of Object.entries(actions)) at(id).addEventListener("click", act);
}
