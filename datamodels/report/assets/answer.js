"use strict";
/* The first screen: one target, the sentence that answers for it, R as pictures, a slider along the order of images, and the
   strongest carriers and opponents beside it. */

DM.answer = (() => {
  const { h, fixed, percent, interval, byId } = DM;
  const { called, className, labelOf, nameOf, thumb, card } = DM.pictures;
  const { of, waysOf, bestOf, sentence, beside, rightIn } = DM.ways;
  const { course } = DM.course;
  const FIRST_SHOWN = 24;
  const BESIDE = 6;
  let shown = null;

  // The target itself.

  function facts(about) {
    const rows = [];
    const base = about.answer ? about.answer.base : null;
    if (base) rows.push([`trained on all of S`, `${rightIn(base)}, margin ${fixed(base.mean)}`]);
    rows.push([
      `${DM.run.models.toLocaleString("en")} networks on parts of S`,
      `right in ${percent(about.right)}, margin ${fixed(about.margin)}`,
    ]);
    if (Number.isFinite(about.lds)) rows.push(["LDS of its datamodel", fixed(about.lds, 2)]);
    return h(
      "dl.facts",
      {},
      rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    );
  }

  function portrait(about) {
    const known = about.label >= 0;
    const alt = `${called(false, about.target)}${known ? `, ${className(about.label)}` : ""}`;
    const name = h("bdi.name");
    nameOf(false, about.target).then((text) => name.replaceChildren(text));
    const told = called(false, about.target);
    const cells = DM.run.seen === "features" ? h("p.note", {}, "A cell for each feature: dark above its mean over S.") : "";
    const number = DM.pictures.isBehaviour(about.target) ? told : told[0].toUpperCase() + told.slice(1);
    return h(
      "div.portrait",
      {},
      h("div.large", {}, thumb(false, about.target, alt), cells),
      h("div.who", {}, h("p.kind", {}, number), known ? h("p.class", {}, className(about.label)) : "", name, facts(about)),
      h("div.steps", {}, step(about.target, -1, "Previous"), step(about.target, 1, "Next")),
    );
  }

  /** To the neighbour in the list of targets as it is filtered and sorted. */
  function step(target, by, word) {
    return h(
      "button",
      { type: "button", onclick: () => DM.targets.step(target, by) },
      by < 0 ? "← " : "",
      word,
      by > 0 ? " →" : "",
    );
  }

  // R as pictures, and the lists beside it.

  function members(way) {
    const weights = way.drops ? way.drops.map((drop, k) => drop - (k ? way.drops[k - 1] : 0)) : null;
    const cards = way.order.map((image, k) => card(true, image, weights ? h("span.weight", {}, fixed(weights[k])) : ""));
    const list = h(
      "ol.members",
      {},
      cards.slice(0, FIRST_SHOWN).map((each) => h("li", {}, each)),
    );
    const rest = cards.slice(FIRST_SHOWN);
    const more = rest.length
      ? h(
          "button.more",
          {
            type: "button",
            onclick: (event) => {
              list.append(...rest.map((each) => h("li", {}, each)));
              event.target.remove();
            },
          },
          `${rest.length} more`,
        )
      : "";
    return { cards, element: h("div", {}, list, more) };
  }

  function strongest(title, found, sign, most) {
    if (!found.length) return "";
    const rows = found.slice(0, BESIDE).map(([image, weight]) => {
      const bar = h(`span.bar.${sign}`, { "aria-hidden": "true", style: { width: `${(100 * Math.abs(weight)) / most}%` } });
      return h("li", {}, card(true, image, h("span.scale", {}, bar, h("span.weight", {}, fixed(weight)))));
    });
    return h("section.strongest", {}, h("h3", {}, title), h("ol", {}, rows));
  }

  function neighbours(about) {
    if (!about.near.length) return "";
    const rows = about.near.map(([target, cosine]) => h("li", {}, card(false, target, h("span.weight", {}, fixed(cosine)))));
    const how = DM.run.exact ? "cosine of their weights" : "cosine of their weights' leading directions";
    return h(
      "section.near",
      { "aria-labelledby": "near-title" },
      h("h3", { id: "near-title" }, "Targets that rest on the same ", DM.run.things),
      h("p.note", {}, `By the ${how}.`),
      h("ul.strip", {}, rows),
    );
  }

  // Everything that was verified about the target, as a table.

  function table(ways, about) {
    if (!about.answer || !ways.some((way) => way.outcome)) return "";
    const heads = ["how", "verdict", "|R|", "margin before", "after", "right before", "after", "control", "networks"];
    const rows = ways
      .filter((way) => way.outcome)
      .map((way) => {
        const as = way.relabelled === null ? "" : ` as ${className(way.relabelled)}`;
        const done = DM.run.repair ? "repaired" : "flipped";
        return [
          `${way.name}${as}`,
          way.found ? done : way.kind === "search" ? `not by ${way.tried}` : "not beyond doubt",
          `${way.size}`,
          interval(way.base),
          interval(way.outcome),
          rightIn(way.base),
          rightIn(way.outcome),
          way.control ? `${interval(way.control)}, ${rightIn(way.control)}` : "–",
          `${way.models ?? way.outcome.models}`,
        ];
      });
    const head = h(
      "thead",
      {},
      h(
        "tr",
        {},
        heads.map((text) => h("th", { scope: "col" }, text)),
      ),
    );
    const body = h(
      "tbody",
      {},
      rows.map((row) =>
        h(
          "tr",
          {},
          row.map((text, k) => h("td", { "data-label": heads[k] }, text)),
        ),
      ),
    );
    return h(
      "details.all",
      {},
      h("summary", {}, "All that was verified about it"),
      h(
        "div.table",
        {},
        h("table", {}, h("caption.hidden", {}, `All that was verified about ${called(false, about.target)}`), head, body),
      ),
    );
  }

  function byName(way) {
    const heads = ["place", DM.run.things.slice(0, -1), "name", "class", "weight"].filter(
      (each) => each !== "name" || DM.run.named,
    );
    const body = h("tbody");
    way.order.forEach((image, k) => {
      const weight = way.drops ? fixed(way.drops[k] - (k ? way.drops[k - 1] : 0)) : "–";
      const name = h("bdi");
      nameOf(true, image).then((text) => name.replaceChildren(text));
      const cells = [
        `${k + 1}`,
        h("a", { href: `#i=${image}` }, `${image}`),
        DM.run.named ? name : null,
        className(labelOf(true, image)),
        weight,
      ].filter((cell) => cell !== null);
      body.append(
        h(
          "tr",
          {},
          cells.map((cell, j) => h("td", { "data-label": heads[j] }, cell)),
        ),
      );
    });
    return h(
      "details.all",
      {},
      h("summary", {}, `The ${DM.run.things} as a table`),
      h(
        "div.table",
        {},
        h(
          "table",
          {},
          h("caption.hidden", {}, `The ${DM.run.things} in order`),
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              heads.map((text) => h("th", { scope: "col" }, text)),
            ),
          ),
          body,
        ),
      ),
    );
  }

  // All of it.

  function choice(ways, way, about) {
    if (ways.length < 2) return "";
    const options = ways.map((each, k) =>
      h("option", { value: k, selected: each === way }, `${each.name}: ${each.found ? each.size : `not by ${each.tried}`}`),
    );
    const select = h(
      "select",
      { id: "way", onchange: (event) => answered(about, ways, ways[Number(event.target.value)], true) },
      options,
    );
    return h("p.way", {}, h("label", { for: "way" }, "How: "), select);
  }

  function answered(about, ways, way, keepsFocus = false) {
    const made = members(way);
    byId("answer-body").replaceChildren(
      h("h2.sentence", { id: "answer-title", tabindex: "-1" }, sentence(way, about)),
      h("p.beside", {}, beside(way, about)),
      choice(ways, way, about),
      made.element,
      way.order.length ? course(way, made.cards) : "",
      table(ways, about),
      way.order.length ? byName(way) : "",
    );
    if (keepsFocus && byId("way")) byId("way").focus();
  }

  /** Show a target; the last one asked for is shown, also where an earlier one's data comes later. */
  async function show(target) {
    shown = target;
    const about = await of(target);
    if (shown !== target) return;
    const ways = waysOf(about);
    byId("portrait").replaceChildren(portrait(about));
    answered(about, ways, bestOf(ways));
    const none = about.carriers.length + about.opponents.length === 0;
    const most = Math.max(...[about.carriers, about.opponents].map((list) => (list.length ? Math.abs(list[0][1]) : 0)));
    byId("beside").replaceChildren(
      ...[
        strongest("Strongest carriers", about.carriers, "carrier", most),
        strongest("Strongest opponents", about.opponents, "opponent", most),
        none ? h("p.note", {}, "There are no weights of this target.") : "",
      ].filter(Boolean),
    );
    byId("near").replaceChildren(neighbours(about));
    byId("answer").setAttribute("data-target", `${target}`);
  }

  return { show, current: () => shown };
})();
