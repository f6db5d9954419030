"use strict";
/* The way back: a training image, the targets that it carries and those that it harms; and the images that stand out. */

DM.images = (() => {
  const { h, fixed, percent, byId, load, unpack, pairs } = DM;
  const { card, className, called, labelOf, nameOf, thumb } = DM.pictures;
  let shown = null;

  async function of(image) {
    const block = await load(`images-${Math.floor(image / DM.run.perBlock.images)}`);
    const row = image - block.first;
    return {
      image,
      carries: pairs(unpack(block.carriers), unpack(block.carried), row, block.k),
      harms: pairs(unpack(block.opponents), unpack(block.opposed), row, block.k),
      times: [unpack(block.carries)[row], unpack(block.harms)[row]],
      total: unpack(block.total)[row],
    };
  }

  const targets = (number) => `${number.toLocaleString("en")} ${number === 1 ? "target" : "targets"}`;

  function listed(title, found) {
    if (!found.length) return h("div", {}, h("h4", {}, title), h("p.note", {}, "None."));
    return h(
      "div",
      {},
      h("h4", {}, title),
      h(
        "ul.strip",
        {},
        found.map(([target, weight]) => h("li", {}, card(false, target, h("span.weight", {}, fixed(weight))))),
      ),
    );
  }

  /** Show a training image. */
  async function show(image) {
    shown = image;
    const about = await of(image);
    if (shown !== image) return;
    const label = labelOf(true, image);
    const name = h("bdi.name");
    nameOf(true, image).then((text) => name.replaceChildren(text));
    const [first, second] = about.times;
    const own = DM.run.trainTargets.indexOf(image);
    const itself =
      own < 0 ? "" : h("p", {}, h("a", { href: `#t=${DM.run.tests + own}` }, "It is a target as well: what carries it."));
    byId("image").replaceChildren(
      h("div.large", {}, thumb(true, image, `${called(true, image)}${label >= 0 ? `, ${className(label)}` : ""}`)),
      h(
        "div.who",
        {},
        h(
          "h3",
          { id: "image-title", tabindex: "-1" },
          `Training ${DM.run.things.slice(0, -1)} ${image}${label >= 0 ? `: ${className(label)}` : ""}`,
        ),
        name,
        h(
          "p",
          {},
          `Among the ${DM.run.among} strongest carriers of ${targets(first)}, and among the ${DM.run.among} strongest `,
          `opponents of ${targets(second)}. The sum of its weights over all targets is ${fixed(about.total)}.`,
        ),
        itself,
      ),
      h("div.back", {}, listed("It carries most", about.carries), listed("It harms most", about.harms)),
    );
  }

  const note = {
    carry: () => `How many targets have it among their ${DM.run.among} strongest carriers.`,
    harm: () => `How many targets have it among their ${DM.run.among} strongest opponents.`,
    doubted: () =>
      "The sum of their weights over all targets is lowest: networks that saw them get more wrong. " +
      "Wrong labels look like this, and so do odd images.",
    wrong: () => `Test ${DM.run.things} that the store's networks get wrong in nearly all trainings: how often they are right.`,
    twins: () =>
      `Pairs in train and test that look most alike: the root mean square of their difference, of 255${
        DM.run.seen === "features" ? ", in shades of their cells" : ""
      }.`,
  };

  function pair([target, image, difference]) {
    // Of rows of features only shades are compared, which are alike where numbers differ.
    const same = difference === 0 && DM.run.seen === "pictures" ? "identical" : fixed(difference, 1);
    return h("li.pair", {}, card(false, target), card(true, image), h("span.weight", {}, same));
  }

  const ROWS = {
    carry: ([image, count]) => h("li", {}, card(true, image, h("span.weight", {}, `${count}`))),
    harm: ([image, count]) => h("li", {}, card(true, image, h("span.weight", {}, `${count}`))),
    doubted: ([image, total]) => h("li", {}, card(true, image, h("span.weight", {}, fixed(total, 1)))),
    wrong: ([target, right]) => h("li", {}, card(false, target, h("span.weight", {}, percent(right)))),
    twins: pair,
  };

  async function prepare() {
    const found = await load("rankings");
    for (const kind of Object.keys(ROWS)) {
      const holder = byId(`rank-${kind}`);
      const rows = found[kind].map(ROWS[kind]);
      holder.append(h("p.note", {}, note[kind]()), rows.length ? h("ul.strip", {}, rows) : h("p", {}, "None."));
      if (kind === "twins" && !rows.length) holder.hidden = true;
    }
    byId("image-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const wanted = Number(byId("image-number").value);
      if (wanted >= 0 && wanted < DM.run.train) window.location.hash = `i=${wanted}`;
    });
    byId("image-number").max = DM.run.train - 1;
    if (shown === null) show(found.carry.length ? found.carry[0][0] : 0);
  }

  return { show, prepare, of, current: () => shown };
})();
