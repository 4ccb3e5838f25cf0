"use strict";
// The words of the answer: the pointer or the arrow keys show where each looked. Each is underlined
// as strongly as it looks at the picture in this layer.

const NO_WORDS = "Where single words looked is not in this record (measure with --maps, or maps=True).";
let wordsKey = "";

function drawWords() {
  const record = recordOf(mainSide());
  const stack = mainStack();
  at("question").textContent = record.question;
  const key = `${mainSide()} ${state.stack}`;
  if (key !== wordsKey) {
    const plain = [make("span", {}, record.response), make("p", { className: "quiet" }, NO_WORDS)];
    at("words").replaceChildren(...(stack.words.length ? stack.words.map(newWord) : plain));
    at("words").setAttribute("role", stack.words.length ? "listbox" : "group");
    wordsKey = key;
  }
  const masses = stack.words.length ? rowAt(stack.word_mass, state.layer) : [];
  const largest = maxOf(masses);
  at("words").querySelectorAll(".word").forEach((element, i) => {
    element.classList.toggle("current", i === currentWord());
    element.setAttribute("aria-selected", String(i === state.word));
    element.tabIndex = i === Math.max(0, state.word) ? 0 : -1;
    element.style.setProperty("--mass", masses[i] / largest);
  });
}

function newWord({ text, query }, word) {
  const title = `predicted from “${query}”`;
  const element = make("bdi", { className: "word", role: "option", title }, text);
  const pin = () => change({ word: state.word === word ? -1 : word });
  element.addEventListener("pointerenter", () => hover(word));
  element.addEventListener("pointerleave", () => hover(null));
  element.addEventListener("click", pin);
  element.addEventListener("keydown", (event) => event.key === "Enter" && pin());
  return element;
}

/** The next word, or the one before, pinned and in focus. */
function stepWord(by) {
  const last = mainStack().words.length - 1;
  if (last < 0) return;
  hovered = null;
  const from = state.word < 0 && by < 0 ? last + 1 : state.word;
  change({ word: Math.min(last, Math.max(0, from + by)) });
  at("words").children[state.word].focus();
  at("readout").textContent = panels.map(mostOf).join(" ");
}
