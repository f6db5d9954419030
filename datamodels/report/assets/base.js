"use strict";
/* What all of the page's scripts share: its data, in scripts that are loaded when they are needed, and elements made of text.
   Nothing here or elsewhere makes HTML of data: text becomes text nodes. */

window.DM = (() => {
  const slots = new Map();

  /** The place of one part of the data: a promise, and what keeps it. */
  function slot(name) {
    if (!slots.has(name)) {
      const made = { asked: false };
      made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
      slots.set(name, made);
    }
    return slots.get(name);
  }

  /** Called by the scripts in data/: here is the content of that name. */
  function put(name, content) {
    slot(name).resolve(content);
  }

  /** A promise of the content of a name; its script is loaded once. */
  function load(name) {
    const wanted = slot(name);
    if (!wanted.asked) {
      wanted.asked = true;
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.addEventListener("error", () => wanted.reject(new Error(`data/${name}.js cannot be loaded`)));
      document.head.append(script);
    }
    return wanted.promise;
  }

  const TYPES = { f4: Float32Array, u4: Uint32Array, i4: Int32Array, u2: Uint16Array, u1: Uint8Array };

  /** An array as `scripts.packed` has packed it. */
  function unpack(packed) {
    const text = atob(packed.base64);
    const bytes = new Uint8Array(text.length);
    for (let k = 0; k < text.length; k += 1) bytes[k] = text.charCodeAt(k);
    return new TYPES[packed.type](bytes.buffer);
  }

  /** Set attributes; `on…` are listeners, `style` an object, and null, undefined and false leave one out. */
  function attributes(element, given) {
    for (const [name, value] of Object.entries(given)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "style") for (const [key, part] of Object.entries(value)) element.style.setProperty(key, part);
      else element.setAttribute(name, value === true ? "" : value);
    }
    return element;
  }

  const isContent = (value) => value !== null && value !== undefined && value !== false;

  /** An element: `h("p.note", {id: "x"}, "text", child, [more])`. */
  function h(kind, given = {}, ...children) {
    const [tag, ...classes] = kind.split(".");
    const element = attributes(document.createElement(tag), given);
    if (classes.length) element.classList.add(...classes);
    element.append(...children.flat(Infinity).filter(isContent));
    return element;
  }

  /** The same of SVG. */
  function svg(tag, given = {}, ...children) {
    const element = attributes(document.createElementNS("http://www.w3.org/2000/svg", tag), given);
    element.append(...children.flat(Infinity).filter(isContent));
    return element;
  }

  /** A number with so many decimals, and a minus that is one. */
  function fixed(value, decimals = 2) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    const text = value.toFixed(decimals);
    return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
  }

  const percent = (share) => (Number.isFinite(share) ? `${Math.round(100 * share)} %` : "–");
  const interval = (outcome) => `${fixed(outcome.mean)} [${fixed(outcome.low)}, ${fixed(outcome.high)}]`;
  const byId = (id) => document.getElementById(id);
  const NONE = 2 ** 32 - 1;

  /** Pairs [index, value] of row `row` of packed rows of k, until there are no more. */
  function pairs(indices, values, row, k) {
    const found = [];
    for (let j = row * k; j < (row + 1) * k; j += 1) {
      if (indices[j] === NONE) break;
      found.push([indices[j], values[j]]);
    }
    return found;
  }

  return { put, load, unpack, h, svg, fixed, percent, interval, byId, pairs };
})();
