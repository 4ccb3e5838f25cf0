"use strict";
// What the pages of a record and of a run share: elements, controls, the link to what is shown.

const at = (id) => document.getElementById(id);

/** An element; texts among the children stay text, whatever is in them. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** An element of a drawing (SVG). */
function shape(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A number as a person reads it: three digits, no long tail of zeros. */
function shown(number) {
  if (Number.isNaN(number)) return "–";
  const small = number !== 0 && Math.abs(number) < 0.001;
  return small ? number.toExponential(1) : String(Number(number.toPrecision(3)));
}

/** Puts [[value, label]] into a list of choices, unless they are there, and chooses one. */
function choose(select, entries, chosen) {
  const key = JSON.stringify(entries);
  if (select.dataset.key !== key) {
    select.replaceChildren(...entries.map(([value, label]) => make("option", { value }, label)));
    select.dataset.key = key;
  }
  select.value = chosen;
}

const textsOfHash = (hash) => Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));

/** Puts the state into the address, and returns it as the hash of a link: what differs from the
    beginning. A frame in a notebook has no address of its own. */
function linkTo(state, start) {
  const changed = Object.entries(state).filter(([name, value]) => value !== start[name]);
  const hash = new URLSearchParams(changed).toString();
  if (location.protocol !== "about:") history.replaceState(null, "", `#${hash}`);
  return hash;
}

/** Starts a page; where it can't, in an old browser or a damaged file, the page says so. */
function begin(main) {
  const failed = (error) => {
    const text = `This page can't be shown; it needs a browser of 2024 or later. (${error})`;
    document.querySelector("main").prepend(make("p", { role: "alert" }, text));
    throw error;
  };
  main().then(() => { document.body.dataset.ready = "yes"; }, failed);
}
