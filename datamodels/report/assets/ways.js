"use strict";
/* What is known of a target: its numbers, its strongest images, the ways in which it was asked about, and what is said. */

DM.ways = (() => {
  const { h, load, unpack, pairs } = DM;
  const { className } = DM.pictures;
  const SUGGESTED = 12;

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
      name:
        removal.rule === "support"
          ? "removed, the smallest set"
          : `removed, the ${removal.rule} ${DM.run.repair ? "smallest" : "largest"} weights`,
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
    const strongest = (DM.run.repair ? about.opponents : about.carriers).slice(0, SUGGESTED);
    let total = 0;
    const drops = strongest.map(([, weight]) => (total += weight));
    const base = { mean: about.margin };
    return {
      kind: "weights",
      name: "by weight alone",
      order: strongest.map(([image]) => image),
      drops,
      probes: [],
      base,
      size: strongest.length,
      tried: strongest.length,
      found: false,
      relabelled: null,
      outcome: null,
      control: null,
      confirmed: null,
    };
  }

  function waysOf(about) {
    const { answer } = about;
    if (!answer) return [ofWeights(about)];
    const searches = answer.searches.filter((search) => search.order.length).map((search) => ofSearch(search, answer));
    const hasOwn = searches.some((way) => way.method === "datamodel");
    const removals = answer.removals
      .filter((removal) => removal.after && !(removal.rule === "support" && hasOwn))
      .map(ofRemoval);
    const ways = [...searches, ...removals];
    return ways.length ? ways : [{ ...ofWeights(about), base: answer.base }];
  }

  /** What the page opens a target with: a set that was found, by the datamodel if possible. */
  function bestOf(ways) {
    const worth = (way) => 4 * way.found + 2 * (way.relabelled === null) + (way.method === "datamodel");
    return ways.reduce((best, way) => (worth(way) > worth(best) ? way : best));
  }

  // Sentences.

  /** "networks get it wrong in 14 of 16 trainings", by the goal, or by the other class where there are two. */
  function said(outcome, about) {
    const wrong = outcome.models - outcome.right;
    const two = DM.run.classes.length === 2 && about.label >= 0;
    if (DM.run.repair)
      return [
        "networks get it ",
        h("em", {}, "right"),
        " in ",
        h("strong", {}, `${outcome.right} of ${outcome.models}`),
        " trainings.",
      ];
    const what = two ? ["networks say ", h("em", {}, className(1 - about.label))] : ["networks get it ", h("em", {}, "wrong")];
    return [...what, " in ", h("strong", {}, `${wrong} of ${outcome.models}`), " trainings."];
  }

  function sentence(way, about) {
    const these = (number) =>
      number === 1
        ? ["this ", h("strong", {}, "one"), ` training ${things(1)}`]
        : ["these ", h("strong", {}, `${number}`), ` training ${things(number)}`];
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
      return [
        ...how,
        these(way.size),
        as,
        `, networks still ${still} in `,
        h("strong", {}, `${count} of ${way.outcome.models}`),
        " trainings.",
      ];
    }
    if (way.relabelled !== null)
      return ["With ", these(way.size), " labelled ", h("em", {}, className(way.relabelled)), ", ", said(way.outcome, about)];
    return ["Without ", these(way.size), ", ", said(way.outcome, about)];
  }

  const rightIn = (outcome) => `right in ${outcome.right} of ${outcome.models}`;

  /** What came of the other orders that were asked for a smaller set. */
  function others(way) {
    if (!way.orders || !way.orders.length) return [];
    const own = (way.orders.find(([method]) => method === way.method) ?? [null, null])[1];
    const rivals = way.orders.filter(([method]) => method !== way.method);
    const named = (method) => h("em", {}, DM.run.methods[method].order);
    if (way.along !== way.method) {
      const instead = own === null ? "no set was found" : `it took ${own}`;
      return ["They come first in another order, ", named(way.along), `; along the datamodel's own ${instead}. `];
    }
    const best = own ?? Infinity;
    const beaten = rivals.filter(([, size]) => (size ?? Infinity) >= best);
    const names = beaten.map(([method], place) => [place ? ", " : "", named(method)]);
    const lines = beaten.length ? [own === null ? "No set" : "No smaller set", " was found by another order: ", names, ". "] : [];
    for (const [method, size] of rivals.filter((rival) => !beaten.includes(rival)))
      lines.push("By another order, ", named(method), `, it takes ${size}, by a proof too weak to be the best of several. `);
    return lines;
  }

  function beside(way, about) {
    const lines = [];
    if (way.kind === "weights" && !way.size) return lines;
    if (way.kind === "weights" && about.answer) {
      const what = DM.run.repair ? "wrong" : "right";
      const why = about.answer.searches.length ? "" : `, which is not ${what} beyond doubt, so that no set was searched for`;
      lines.push(`Networks trained on all ${DM.run.train.toLocaleString("en")} ${DM.run.things}: ${rightIn(way.base)}${why}. `);
      lines.push("The line starts at their mean margin, and falls as the weights say; ");
      lines.push(`what networks do without these ${DM.run.things} nobody has tried.`);
      return lines;
    }
    if (way.kind === "weights") {
      lines.push(
        "The line starts at the mean margin of the store's networks, which saw parts of S, and falls as the weights say; ",
      );
      lines.push(`what networks do without these ${DM.run.things} nobody has tried. `);
      lines.push(h("code", {}, `python -m datamodels.verify --targets ${about.target}`), " finds out.");
      return lines;
    }
    lines.push(`With all ${DM.run.train.toLocaleString("en")} ${DM.run.things}: ${rightIn(way.base)}. `);
    if (way.control) {
      const kind = DM.run.repair ? "of their classes" : "of its class";
      lines.push(`Without ${way.controlSize} random ${things(way.controlSize)} ${kind} instead: ${rightIn(way.control)}. `);
    }
    if (way.fresh) lines.push(`Counted with ${way.outcome.models} fresh networks that no search has seen. `);
    lines.push(...others(way));
    if (way.twoModes) lines.push("Some of the networks asked lie far above the others. ");
    for (const [turned, verb] of [
      [way.breaks, "break"],
      [way.repairs, "repair"],
    ]) {
      if (!turned || !turned.length) continue;
      const links = turned.slice(0, 8).map((target) => [" ", h("a", { href: `#t=${target}` }, `${target}`)]);
      lines.push(
        `The same networks ${verb} ${turned.length} other ${turned.length === 1 ? "prediction" : "predictions"}:`,
        links,
        turned.length > 8 ? ", …" : "",
        ". ",
      );
    }
    return lines;
  }

  return { of, waysOf, bestOf, sentence, beside, rightIn };
})();
