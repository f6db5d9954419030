"use strict";
/* How much each class of training images gives to each class of targets. */

DM.classes = (() => {
  const { h, fixed, byId, load } = DM;
  const { className } = DM.pictures;

  function shade(value, most) {
    if (value === null || !most) return {};
    const share = Math.round(58 * Math.sqrt(Math.abs(value) / most));
    return { "background-color": `color-mix(in srgb, var(${value >= 0 ? "--gives" : "--takes"}) ${share}%, transparent)` };
  }

  function table(gives) {
    const used = gives[0].map((_, target) => target).filter((target) => gives.some((row) => row[target] !== null));
    const most = Math.max(...gives.flat().map((value) => Math.abs(value ?? 0)));
    const head = h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, "from ╲ to"),
        used.map((target) => h("th", { scope: "col" }, h("span", {}, className(target)))),
      ),
    );
    const rows = gives.map((row, label) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, className(label)),
        used.map((target) =>
          h("td", { style: shade(row[target], most) }, fixed(row[target], Math.abs(row[target]) < 9.95 ? 1 : 0)),
        ),
      ),
    );
    return h(
      "div.heat",
      { tabindex: "0", role: "region", "aria-label": "Table of classes" },
      h(
        "table",
        {},
        h(
          "caption.hidden",
          {},
          "Mean over the targets of a class (columns) of the sum of weights of the training images of a class (rows)",
        ),
        head,
        h("tbody", {}, rows),
      ),
    );
  }

  function lists(takes) {
    const holder = h("div");
    const known = takes.map((found, label) => [label, found]).filter(([, found]) => found);
    const show = (label) => {
      const found = takes[label];
      const most = Math.max(...found.map(([, value]) => Math.abs(value)));
      holder.replaceChildren(
        h(
          "ol.bars",
          {},
          found.map(([from, value]) =>
            h(
              "li",
              {},
              h("span", {}, className(from)),
              h(
                "span.scale",
                {},
                h(`span.bar.${value >= 0 ? "carrier" : "opponent"}`, {
                  "aria-hidden": "true",
                  style: { width: `${(100 * Math.abs(value)) / most}%` },
                }),
                h("span.weight", {}, fixed(value)),
              ),
            ),
          ),
        ),
      );
    };
    const select = h(
      "select",
      { id: "to-class", onchange: (event) => show(Number(event.target.value)) },
      known.map(([label]) => h("option", { value: label }, className(label))),
    );
    if (known.length) show(known[0][0]);
    return h(
      "div",
      {},
      h(
        "p",
        {},
        h("label", { for: "to-class" }, "To targets of "),
        select,
        " each class gives, the most giving and the most taking ones:",
      ),
      holder,
    );
  }

  async function prepare() {
    const found = await load("classes");
    const known = found.gives ? found.gives.some((row) => row.some((value) => value !== null)) : found.takes.some(Boolean);
    if (!known) {
      byId("classes").hidden = true;
      return;
    }
    byId("class-body").replaceChildren(found.gives ? table(found.gives) : lists(found.takes));
  }

  return { prepare };
})();
