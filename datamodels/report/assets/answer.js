"use strict";
/* The first screen: one target, the sentence that answers for it, R as pictures, a slider along the order of images, and the
   strongest carriers and opponents beside it. */

DM.answer = (() => {
  const { h, svg, fixed, percent, interval, byId, load, unpack, pairs } = DM;
  const { called, className, labelOf, nameOf, thumb, card } = DM.pictures;
  const FIRST_SHOWN = 24;
  const BESIDE = 6;
  let shown = null;

  /** Everything that the page has of a target: numbers, strongest images, neighbours, answers. */
  async function of(target) {
    const per = DM.run.perBlock.targets;
    const block = await load(`targets-${Math.floor(target / per)}`);
    const row = target - block.first - block.offset;
    const own = block.behaviours[target];
    const lists = own ?? block;
    const weighted = own ? "k" in own : row >= 0 && row < block.weighted;
    const at = own ? 0 : row;
    const list = (names) => (weighted ? pairs(unpack(lists[names[0]]), unpack(lists[names[1]]), at, lists.k) : []);
    const near = weighted && !own ? pairs(unpack(block.near), unpack(block.cosines), row, block.neighbours) : [];
    return {
      target,
      label: DM.run.labels[target],
      right: DM.run.right[target],
      margin: DM.run.margin[target],
      lds: DM.run.lds[target],
      carriers: list(["carriers", "carried"]),
      opponents: list(["opponents", "opposed"]),
      near,
      answer: block.answers[target] ?? null,
    };
  }

  // The ways in which a target was asked about: each search, each removal of a fixed size, or else its weights alone.

  const things = (number) => (number === 1 ? DM.run.things.slice(0, -1) : DM.run.things);

  function ofSearch(search, answer) {
    const last = search.probes.find((probe) => probe.size === (search.size ?? search.tried));
    const support = answer.removals.find((removal) => removal.rule === "support");
    const controlled = search.method === "datamodel" && support && support.control;
    return {
      ...search,
      kind: "search",
      name: DM.run.methods[search.method].name,
      found: search.size !== null,
      size: search.size ?? search.tried,
      outcome: search.confirmed ?? (last ? last.outcome : null),
      fresh: search.confirmed !== null,
      base: answer.base,
      control: controlled ? support.control : null,
      controlSize: controlled ? support.controlSize : null,
    };
  }

  function ofRemoval(removal) {
    return {
      ...removal,
      kind: "removal",
      name: removal.rule === "support" ? "removed, the smallest set" : `removed, the ${removal.rule} ${DM.run.repair ? "smallest" : "largest"} weights`,
      found: removal.flipped,
      tried: removal.size,
      relabelled: null,
      outcome: removal.after,
      probes: removal.after ? [{ size: removal.size, outcome: removal.after, drop: removal.drops.at(-1) }] : [],
      base: removal.before,
      confirmed: null,
    };
  }

  function ofWeights(about) {
    const strongest = DM.run.repair ? about.opponents : about.carriers;
    let total = 0;
    const drops = strongest.map(([, weight]) => (total += weight));
    const base = { mean: about.margin };
    return { kind: "weights", name: "by weight alone", order: strongest.map(([image]) => image), drops, probes: [], base, size: strongest.length, tried: strongest.length, found: false, relabelled: null, outcome: null, control: null, confirmed: null };
  }

  function waysOf(about) {
    const { answer } = about;
    if (!answer) return [ofWeights(about)];
    const searches = answer.searches.filter((search) => search.order.length).map((search) => ofSearch(search, answer));
    const hasOwn = searches.some((way) => way.method === "datamodel");
    const removals = answer.removals.filter((removal) => removal.after && !(removal.rule === "support" && hasOwn)).map(ofRemoval);
    const ways = [...searches, ...removals];
    return ways.length ? ways : [{ ...ofWeights(about), base: answer.base }];
  }

  /** What the page opens a target with: a set that was found, along the datamodel's order if possible. */
  function bestOf(ways) {
    const worth = (way) => 4 * way.found + 2 * (way.relabelled === null) + (way.method === "datamodel");
    return ways.reduce((best, way) => (worth(way) > worth(best) ? way : best));
  }

  // Sentences.

  /** "networks get it wrong in 14 of 16 trainings", by the goal, or by the other class where there are two. */
  function said(outcome, about) {
    const wrong = outcome.models - outcome.right;
    const two = DM.run.classes.length === 2 && about.label >= 0;
    if (DM.run.repair) return ["networks get it ", h("em", {}, "right"), " in ", h("strong", {}, `${outcome.right} of ${outcome.models}`), " trainings."];
    const what = two ? ["networks say ", h("em", {}, className(1 - about.label))] : ["networks get it ", h("em", {}, "wrong")];
    return [...what, " in ", h("strong", {}, `${wrong} of ${outcome.models}`), " trainings."];
  }

  function sentence(way, about) {
    const these = (number) => (number === 1 ? ["this ", h("strong", {}, "one"), ` training ${things(1)}`] : ["these ", h("strong", {}, `${number}`), ` training ${things(number)}`]);
    if (way.kind === "weights" && !way.size) return ["Nobody has asked about this target, and there are no weights of it."];
    if (way.kind === "weights") {
      const which = ["These ", h("strong", {}, `${way.size}`), ` training ${things(way.size)}`];
      const what = DM.run.repair ? " stand most against this target" : " carry this target most";
      return [...which, `${what}, by their weights. `, h("em", {}, "Not verified.")];
    }
    if (!way.outcome) return [`No ${DM.run.things} of it were tried.`];
    if (!way.found) {
      const still = DM.run.repair ? "get it wrong" : "get it right";
      const count = DM.run.repair ? way.outcome.models - way.outcome.right : way.outcome.right;
      const how = way.relabelled === null ? ["Even without "] : ["Even with "];
      const as = way.relabelled === null ? "" : ` relabelled as ${className(way.relabelled)}`;
      return [...how, these(way.size), as, `, networks still ${still} in `, h("strong", {}, `${count} of ${way.outcome.models}`), " trainings."];
    }
    if (way.relabelled !== null) return ["With ", these(way.size), " labelled ", h("em", {}, className(way.relabelled)), ", ", said(way.outcome, about)];
    return ["Without ", these(way.size), ", ", said(way.outcome, about)];
  }

  const rightIn = (outcome) => `right in ${outcome.right} of ${outcome.models}`;

  function beside(way, about) {
    const lines = [];
    if (way.kind === "weights" && !way.size) return lines;
    if (way.kind === "weights") {
      lines.push(`The line is what the weights predict; what networks do without these ${DM.run.things} nobody has tried. `);
      lines.push(h("code", {}, `python -m datamodels.verify --targets ${about.target}`), " finds out.");
      return lines;
    }
    lines.push(`With all ${DM.run.train.toLocaleString("en")} ${DM.run.things}: ${rightIn(way.base)}. `);
    if (way.control) {
      const kind = DM.run.repair ? "of their classes" : "of its class";
      lines.push(`Without ${way.controlSize} random ${things(way.controlSize)} ${kind} instead: ${rightIn(way.control)}. `);
    }
    if (way.fresh) lines.push(`Counted with ${way.outcome.models} fresh networks that no search has seen. `);
    for (const [turned, verb] of [[way.breaks, "break"], [way.repairs, "repair"]]) {
      if (!turned || !turned.length) continue;
      const links = turned.slice(0, 8).map((target) => [" ", h("a", { href: `#t=${target}` }, `${target}`)]);
      lines.push(`The same networks ${verb} ${turned.length} other ${turned.length === 1 ? "prediction" : "predictions"}:`, links, turned.length > 8 ? ", …" : "", ". ");
    }
    return lines;
  }

  // The target itself.

  function facts(about) {
    const rows = [];
    const base = about.answer ? about.answer.base : null;
    if (base) rows.push([`trained on all of S`, `${rightIn(base)}, margin ${fixed(base.mean)}`]);
    rows.push([`${DM.run.models.toLocaleString("en")} networks on parts of S`, `right in ${percent(about.right)}, margin ${fixed(about.margin)}`]);
    if (Number.isFinite(about.lds)) rows.push(["LDS of its datamodel", fixed(about.lds, 2)]);
    return h("dl.facts", {}, rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }

  function portrait(about) {
    const known = about.label >= 0;
    const alt = `${called(false, about.target)}${known ? `, ${className(about.label)}` : ""}`;
    const name = h("bdi.name");
    nameOf(false, about.target).then((text) => name.replaceChildren(text));
    const told = called(false, about.target);
    const number = DM.pictures.isBehaviour(about.target) ? told : told[0].toUpperCase() + told.slice(1);
    return h(
      "div.portrait",
      {},
      h("div.large", {}, thumb(false, about.target, alt)),
      h("div.who", {}, h("p.kind", {}, number), known ? h("p.class", {}, className(about.label)) : "", name, facts(about)),
      h("div.steps", {}, step(about.target, -1, "Previous"), step(about.target, 1, "Next")),
    );
  }

  /** To the neighbour in the list of targets as it is filtered and sorted. */
  function step(target, by, word) {
    return h("button", { type: "button", onclick: () => DM.targets.step(target, by) }, by < 0 ? "← " : "", word, by > 0 ? " →" : "");
  }

  // The course of the margin, and the slider along it.

  const margins = (way) => [way.base, ...way.probes.map((probe) => probe.outcome), way.confirmed, way.control].filter((o) => o && o.low !== undefined);

  /** The margin that the weights predict without the first k images; null where nothing does. */
  function predicted(way, k) {
    if (way.relabelled !== null || !way.drops) return null;
    if (k === 0) return way.base.mean;
    if (k <= way.drops.length) return way.base.mean - way.drops[k - 1];
    const probe = way.probes.find((each) => each.size === k);
    return probe ? way.base.mean - probe.drop : null;
  }

  const lastOf = (way) => Math.max(1, way.order.length, ...way.probes.map((probe) => probe.size));

  function courseOf(way, width) {
    const last = lastOf(way);
    const line = Array.from({ length: last + 1 }, (_, k) => [k, predicted(way, k)]).filter(([, y]) => y !== null);
    const all = [...line.map(([, y]) => y), ...margins(way).flatMap((o) => [o.low, o.high]), 0];
    const label = `The margin without the first ${DM.run.things} of the order: predicted, and measured with intervals`;
    const plot = DM.plot.axes({ width, height: width < 480 ? 200 : 228, x: [0, last * 1.02], y: DM.plot.around(all), xLabel: `${DM.run.things} ${way.relabelled === null ? "removed" : "relabelled"}, in order`, yLabel: "margin", label, whole: true });
    const floor = Math.min(plot.bottom, Math.max(plot.top, plot.Y(0)));
    plot.svg.prepend(svg("rect", { class: "wrong", x: plot.left, y: floor, width: plot.right - plot.left, height: plot.bottom - floor }));
    if (plot.bottom - floor > 16) plot.svg.append(svg("text", { class: "hint", x: plot.left + 6, y: plot.bottom - 6 }, "wrong"));
    DM.plot.line(plot, line, { class: "predicted" });
    if (way.base.low !== undefined) DM.plot.measured(plot, 0, way.base, "base");
    for (const probe of way.probes) DM.plot.measured(plot, probe.size, probe.outcome, way.confirmed && probe.size === way.size ? "replaced" : "removed");
    if (way.control) DM.plot.measured(plot, way.size, way.control, "control");
    if (way.confirmed) DM.plot.measured(plot, way.size, way.confirmed, "confirmed");
    return plot;
  }

  function readAt(way, k) {
    const parts = [];
    const line = predicted(way, k);
    if (line !== null) parts.push(`predicted ${fixed(line)}`);
    const probe = way.probes.find((each) => each.size === k);
    const outcome = k === 0 ? way.base : way.confirmed && k === way.size ? way.confirmed : probe ? probe.outcome : null;
    if (outcome && outcome.low !== undefined) parts.push(`measured ${interval(outcome)}, ${rightIn(outcome)}`);
    if (way.control && k === way.size) parts.push(`control ${interval(way.control)}`);
    const verb = way.relabelled === null ? "removed" : "relabelled";
    return `${k} ${verb}: ${parts.length ? `margin ${parts.join(", ")}` : "not tried"}.`;
  }

  function legendOf(way) {
    const marks = [];
    if (way.relabelled === null) marks.push(["predicted", "predicted by the weights"]);
    if (way.probes.length) marks.push(["removed", "measured, with interval"]);
    if (way.confirmed) marks.push(["confirmed", "fresh networks"]);
    if (way.control) marks.push(["control", "as many random ones"]);
    return h("p.legend", {}, marks.map(([kind, words]) => h("span.key", {}, h(`span.mark.${kind}`, { "aria-hidden": "true" }), words)));
  }

  function course(way, cards) {
    const holder = h("div.plot");
    const last = lastOf(way);
    const range = h("input", { id: "along", type: "range", min: 0, max: last, value: way.size, "aria-label": `How many ${DM.run.things} of the order are ${way.relabelled === null ? "removed" : "relabelled"}` });
    const output = h("output.reading", { for: "along", "aria-live": "polite" });
    let plot = null;
    let cursor = null;
    const read = () => {
      const k = Number(range.value);
      output.textContent = readAt(way, k);
      range.setAttribute("aria-valuetext", output.textContent);
      cards.forEach((each, j) => each.classList.toggle("out", j >= k));
      const at = plot ? plot.X(k) : 0;
      if (cursor) for (const end of ["x1", "x2"]) cursor.setAttribute(end, at);
    };
    DM.plot.fitted(holder, (width) => {
      plot = courseOf(way, width);
      cursor = svg("line", { class: "along", y1: plot.top, y2: plot.bottom });
      plot.svg.append(cursor);
      read();
      return plot.svg;
    });
    range.addEventListener("input", read);
    read();
    return h("div.course", {}, legendOf(way), holder, h("div.read", {}, range, output));
  }

  // R as pictures, and the lists beside it.

  function members(way) {
    const weights = way.drops ? way.drops.map((drop, k) => drop - (k ? way.drops[k - 1] : 0)) : null;
    const cards = way.order.map((image, k) => card(true, image, weights ? h("span.weight", {}, fixed(weights[k])) : ""));
    const list = h("ol.members", {}, cards.slice(0, FIRST_SHOWN).map((each) => h("li", {}, each)));
    const rest = cards.slice(FIRST_SHOWN);
    const more = rest.length
      ? h("button.more", { type: "button", onclick: (event) => { list.append(...rest.map((each) => h("li", {}, each))); event.target.remove(); } }, `${rest.length} more`)
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
    return h("section.near", { "aria-labelledby": "near-title" }, h("h3", { id: "near-title" }, "Targets that rest on the same ", DM.run.things), h("p.note", {}, `By the ${how}.`), h("ul.strip", {}, rows));
  }

  // Everything that was verified about the target, as a table.

  function table(ways, about) {
    if (!about.answer || !ways.some((way) => way.outcome)) return "";
    const heads = ["how", "verdict", "|R|", "margin before", "after", "right before", "after", "control", "networks"];
    const rows = ways.filter((way) => way.outcome).map((way) => {
      const as = way.relabelled === null ? "" : ` as ${className(way.relabelled)}`;
      const done = DM.run.repair ? "repaired" : "flipped";
      return [`${way.name}${as}`, way.found ? done : way.kind === "search" ? `not by ${way.tried}` : "not beyond doubt", `${way.size}`, interval(way.base), interval(way.outcome), rightIn(way.base), rightIn(way.outcome), way.control ? `${interval(way.control)}, ${rightIn(way.control)}` : "–", `${way.models ?? way.outcome.models}`];
    });
    const head = h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text))));
    const body = h("tbody", {}, rows.map((row) => h("tr", {}, row.map((text, k) => h("td", { "data-label": heads[k] }, text)))));
    return h("details.all", {}, h("summary", {}, "All that was verified about it"), h("div.table", {}, h("table", {}, h("caption.hidden", {}, `All that was verified about ${called(false, about.target)}`), head, body)));
  }

  function byName(way) {
    const heads = ["place", DM.run.things.slice(0, -1), "name", "class", "weight"].filter((each) => each !== "name" || DM.run.named);
    const body = h("tbody");
    way.order.forEach((image, k) => {
      const weight = way.drops ? fixed(way.drops[k] - (k ? way.drops[k - 1] : 0)) : "–";
      const name = h("bdi");
      nameOf(true, image).then((text) => name.replaceChildren(text));
      const cells = [`${k + 1}`, h("a", { href: `#i=${image}` }, `${image}`), DM.run.named ? name : null, className(labelOf(true, image)), weight].filter((cell) => cell !== null);
      body.append(h("tr", {}, cells.map((cell, j) => h("td", { "data-label": heads[j] }, cell))));
    });
    return h("details.all", {}, h("summary", {}, `The ${DM.run.things} as a table`), h("div.table", {}, h("table", {}, h("caption.hidden", {}, `The ${DM.run.things} in order`), h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))), body)));
  }

  // All of it.

  function choice(ways, way, about) {
    if (ways.length < 2) return "";
    const options = ways.map((each, k) => h("option", { value: k, selected: each === way }, `${each.name}: ${each.found ? each.size : `not by ${each.tried}`}`));
    const select = h("select", { id: "way", onchange: (event) => answered(about, ways, ways[Number(event.target.value)], true) }, options);
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
    byId("beside").replaceChildren(...[
      strongest("Strongest carriers", about.carriers, "carrier", most),
      strongest("Strongest opponents", about.opponents, "opponent", most),
      none ? h("p.note", {}, "There are no weights of this target.") : "",
    ].filter(Boolean));
    byId("near").replaceChildren(neighbours(about));
    byId("answer").setAttribute("data-target", `${target}`);
  }

  return { show, of, waysOf, bestOf, current: () => shown };
})();
