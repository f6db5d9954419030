"use strict";
/* The grid of all targets: filtered, sorted, one stop of the keyboard, with arrow keys from target to target. */

DM.targets = (() => {
  const { h, percent, fixed, byId } = DM;
  const { card, className, called, allNames } = DM.pictures;
  const PAGE = 96;
  let list = [];
  let showing = 0;
  let names = [];

  const SORTS = {
    number: ["number", (t) => t],
    right: ["how often right", (t) => DM.run.right[t]],
    margin: ["mean margin", (t) => DM.run.margin[t]],
    size: ["|R|", (t) => (DM.run.size[t] > 0 ? DM.run.size[t] : DM.run.size[t] === 0 ? 1e9 : 2e9)],
    lds: ["LDS", (t) => DM.run.lds[t]],
    class: ["class", (t) => DM.run.labels[t]],
  };
  const SIZES = {
    any: ["any", () => true],
    found: ["verified", (size) => size > 0],
    few: ["1 to 5", (size) => size >= 1 && size <= 5],
    some: ["6 to 20", (size) => size >= 6 && size <= 20],
    many: ["over 20", (size) => size > 20],
    relabelled: ["found by relabelling", (size, relabelled) => relabelled > 0],
    none: ["searched, none found", (size, relabelled) => size === 0 && relabelled === 0],
    unasked: ["not searched", (size) => size < 0],
  };

  const text = (target) =>
    `${target} ${called(false, target)} ${className(DM.run.labels[target])} ${names[target] ?? ""}`.toLowerCase();

  /** The targets that pass the filters, in order; numbers that are not known come last, in either direction. */
  function chosen() {
    const wanted = byId("find").value.trim().toLowerCase();
    const label = byId("of-class").value;
    const right = byId("of-right").value;
    const isSize = SIZES[byId("of-size").value][1];
    const least = Number(byId("of-lds").value);
    const everyLds = least <= Number(byId("of-lds").min);
    const passes = (t) =>
      (label === "" || DM.run.labels[t] === Number(label)) &&
      (right === "" || DM.run.right[t] >= 0.5 === (right === "right")) &&
      isSize(DM.run.size[t], DM.run.relabelled[t]) &&
      (everyLds || DM.run.lds[t] >= least) &&
      (wanted === "" || text(t).includes(wanted));
    const found = [];
    for (let t = 0; t < DM.run.labels.length; t += 1) if (passes(t)) found.push(t);
    const value = SORTS[byId("sort").value][1];
    const down = byId("down").getAttribute("aria-pressed") === "true" ? -1 : 1;
    const order = (a, b) => Number.isNaN(a) - Number.isNaN(b) || down * (a - b) || 0;
    return found.sort((a, b) => order(value(a), value(b)) || a - b);
  }

  /** What searches have found: a set to remove, or else one to relabel, or none; nothing where there was no search. */
  function badge(size, relabelled) {
    if (size < 0) return "";
    if (size > 0) return h("span.badge", {}, `|R| ${size}`);
    return relabelled > 0 ? h("span.badge", {}, `relabel ${relabelled}`) : h("span.badge.none", {}, "none found");
  }

  function tile(target) {
    const found = badge(DM.run.size[target], DM.run.relabelled[target]);
    const share = DM.run.right[target];
    const meter = h("span.meter", { "aria-hidden": "true" }, h("span", { style: { width: `${100 * share}%` } }));
    const made = card(false, target, found, meter, h("span.hidden", {}, `, right in ${percent(share)}`));
    made.setAttribute("tabindex", "-1");
    made.dataset.target = target;
    return h("li", {}, made);
  }

  function more() {
    const grid = byId("grid");
    const next = list.slice(showing, showing + PAGE).map(tile);
    grid.append(...next);
    showing += next.length;
    byId("more").hidden = showing >= list.length;
    byId("more").textContent = `Show ${Math.min(PAGE, list.length - showing)} more`;
    if (!grid.querySelector('a[tabindex="0"]') && grid.firstChild) grid.firstChild.firstChild.setAttribute("tabindex", "0");
    mark(DM.answer.current());
  }

  function refresh() {
    list = chosen();
    showing = 0;
    byId("grid").replaceChildren();
    byId("count").textContent = `${list.length.toLocaleString("en")} of ${DM.run.labels.length.toLocaleString("en")} targets`;
    more();
  }

  /** Say which tile is that of the target shown above. */
  function mark(target) {
    for (const link of byId("grid").querySelectorAll("a")) {
      if (Number(link.dataset.target) === target) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  /** Go to the next or previous target of the list as it stands; from one outside it to its first. */
  function step(target, by) {
    if (!list.length) return;
    const at = list.indexOf(target);
    const next = at < 0 ? 0 : (at + by + list.length) % list.length;
    window.location.hash = `t=${list[next]}`;
  }

  const columns = (links) =>
    Math.max(
      1,
      links.findIndex((link) => link.offsetTop > links[0].offsetTop) < 0
        ? links.length
        : links.findIndex((link) => link.offsetTop > links[0].offsetTop),
    );

  function keys(event) {
    const links = [...byId("grid").querySelectorAll("a")];
    const at = links.indexOf(document.activeElement);
    if (at < 0) return;
    const across = columns(links);
    const to = {
      ArrowRight: at + 1,
      ArrowLeft: at - 1,
      ArrowDown: at + across,
      ArrowUp: at - across,
      Home: 0,
      End: links.length - 1,
    }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (to >= links.length && showing < list.length) more();
    const now = [...byId("grid").querySelectorAll("a")];
    const next = now[Math.max(0, Math.min(now.length - 1, to))];
    links[at].setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  }

  function options(select, rows) {
    select.append(...rows.map(([value, words]) => h("option", { value }, words)));
  }

  function prepare() {
    const labels = [...new Set(DM.run.labels)].filter((label) => label >= 0).sort((a, b) => a - b);
    options(byId("of-class"), [["", "all"], ...labels.map((label) => [label, className(label)])]);
    byId("of-class").closest("label").hidden = labels.length === 0;
    options(
      byId("of-size"),
      Object.entries(SIZES).map(([key, [words]]) => [key, words]),
    );
    options(
      byId("sort"),
      Object.entries(SORTS).map(([key, [words]]) => [key, words]),
    );
    const known = [...DM.run.lds].filter(Number.isFinite);
    const [low, high] = known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
    Object.assign(byId("of-lds"), { min: Math.floor(low * 100) / 100, max: Math.ceil(high * 100) / 100, step: 0.01 });
    byId("of-lds").value = byId("of-lds").min;
    const tell = () => {
      byId("of-lds-value").textContent =
        byId("of-lds").value === byId("of-lds").min ? "any" : `≥ ${fixed(Number(byId("of-lds").value))}`;
    };
    byId("of-lds").addEventListener("input", tell);
    tell();
    for (const id of ["find", "of-class", "of-right", "of-size", "of-lds", "sort"]) byId(id).addEventListener("input", refresh);
    byId("find").addEventListener(
      "focus",
      async () => {
        names = await allNames();
        refresh();
      },
      { once: true },
    );
    byId("down").addEventListener("click", () => {
      const pressed = byId("down").getAttribute("aria-pressed") !== "true";
      byId("down").setAttribute("aria-pressed", `${pressed}`);
      refresh();
    });
    byId("filters").addEventListener("submit", (event) => {
      event.preventDefault();
      if (list.length) window.location.hash = `t=${list[0]}`;
    });
    byId("more").addEventListener("click", more);
    byId("grid").addEventListener("keydown", keys);
    refresh();
  }

  return { prepare, mark, step };
})();
