"use strict";
/* The figures for the critic, each of numbers, with a slider to read them off. */

DM.evidence = (() => {
  const { svg, fixed, interval, byId, load, unpack } = DM;
  const { axes, line, measured, figure, around } = DM.plot;
  const DASHES = { "--": "7 4", ":": "2 4" };
  const height = (width, ratio = 0.55) => Math.max(220, Math.min(380, width * ratio));

  /** For each method the share of targets that sets of at most so many images turn. */
  function cdf(found, all) {
    const done = all.repair ? "repaired" : "flipped";
    const most = Math.max(1, ...found.map((way) => Math.max(way.tried, ...way.sizes)));
    const steps = (way) => [
      [0, 0],
      ...way.sizes.flatMap((size, k) => [
        [size, k / way.targets],
        [size, (k + 1) / way.targets],
      ]),
      [most, way.sizes.length / way.targets],
    ];
    return {
      name: "Share of targets by size",
      legend: [],
      draw: (width) => {
        const plot = axes({
          width,
          height: height(width),
          x: [0, most * 1.02],
          y: [0, 1.02],
          xLabel: `${all.things} of R`,
          yLabel: `share of targets ${done}`,
          label: `Share of targets ${done} by at most so many ${all.things}, for each method`,
        });
        const points = [];
        found.forEach((way) => {
          line(plot, steps(way), { stroke: way.colour, "stroke-width": 2.5, "stroke-dasharray": DASHES[way.line] });
          way.sizes.forEach((size, k) => {
            if (k + 1 === way.sizes.length || way.sizes[k + 1] !== size)
              points.push({
                x: size,
                y: (k + 1) / way.targets,
                text: `${way.name}: at most ${size} turn ${k + 1} of ${way.targets} targets`,
              });
          });
        });
        return { plot, points };
      },
    };
  }

  /** How many pairs lie where, by shade; the slider goes through the squares that hold any. */
  function pairs(found, { xLabel, yLabel, label, things }) {
    const counts = unpack(found.counts);
    const { bins } = found;
    const most = Math.log1p(Math.max(...counts));
    const [stepX, stepY] = [(found.x[1] - found.x[0]) / bins, (found.y[1] - found.y[0]) / bins];
    return (width) => {
      const plot = axes({ width, height: height(width, 0.75), x: found.x, y: found.y, xLabel, yLabel, label });
      const points = [];
      counts.forEach((count, k) => {
        if (!count) return;
        const [x, y] = [found.x[0] + Math.floor(k / bins) * stepX, found.y[0] + (k % bins) * stepY];
        const [left, top] = [plot.X(x), plot.Y(y + stepY)];
        plot.svg.append(
          svg("rect", {
            class: "square",
            x: left,
            y: top,
            width: plot.X(x + stepX) - left + 0.4,
            height: plot.Y(y) - top + 0.4,
            "fill-opacity": 0.12 + (0.88 * Math.log1p(count)) / most,
          }),
        );
        points.push({
          x: x + stepX / 2,
          y: y + stepY / 2,
          text: `predicted about ${fixed(x + stepX / 2, 1)}, true about ${fixed(y + stepY / 2, 1)}: ${count} ${things}`,
        });
      });
      const [low, high] = [Math.max(found.x[0], found.y[0]), Math.min(found.x[1], found.y[1])];
      if (low < high)
        line(
          plot,
          [
            [low, low],
            [high, high],
          ],
          { class: "same" },
        );
      return { plot, points };
    };
  }

  function bars({ counts, edges, mean }, xLabel) {
    return (width) => {
      const plot = axes({
        width,
        height: height(width, 0.75),
        x: [edges[0], edges.at(-1)],
        y: [0, Math.max(...counts) * 1.05],
        xLabel,
        yLabel: "targets",
        label: "How LDS spreads over targets",
      });
      counts.forEach((count, k) => {
        const [left, right] = [plot.X(edges[k]), plot.X(edges[k + 1])];
        plot.svg.append(
          svg("rect", {
            class: "bin",
            x: left + 0.5,
            y: plot.Y(count),
            width: Math.max(1, right - left - 1),
            height: plot.bottom - plot.Y(count),
          }),
        );
      });
      if (mean !== null)
        plot.svg.append(svg("line", { class: "mean", x1: plot.X(mean), x2: plot.X(mean), y1: plot.top, y2: plot.bottom }));
      const points = counts.map((count, k) => ({
        x: (edges[k] + edges[k + 1]) / 2,
        y: count,
        text: `LDS from ${fixed(edges[k])} to ${fixed(edges[k + 1])}: ${count} targets; mean of all ${fixed(mean, 3)}`,
      }));
      return { plot, points };
    };
  }

  function drops(found) {
    const all = found.kinds.flatMap((kind) => kind.points);
    return (width) => {
      const x = around(all.map((point) => point[0]).concat(0));
      const y = around(all.map((point) => point[1]).concat(0));
      const plot = axes({
        width,
        height: height(width, 0.7),
        x,
        y,
        xLabel: "predicted drop of the margin",
        yLabel: "measured drop",
        label: "Predicted against measured drop of the margin, one point for each set removed",
      });
      const points = [];
      const [low, high] = [Math.max(x[0], y[0]), Math.min(x[1], y[1])];
      line(
        plot,
        [
          [low, low],
          [high, high],
        ],
        { class: "same" },
      );
      for (const kind of found.kinds) {
        for (const [predicted, drop, target, size, from, to] of kind.points) {
          plot.svg.append(
            svg("circle", { cx: plot.X(predicted), cy: plot.Y(drop), r: 3.5, fill: kind.colour, "fill-opacity": 0.65 }),
          );
          points.push({
            x: predicted,
            y: drop,
            text:
              `target ${target}, ${size} of the ${kind.name}: predicted ${fixed(predicted)}, ` +
              `measured ${fixed(drop)} [${fixed(from)}, ${fixed(to)}]`,
          });
        }
      }
      points.sort((a, b) => a.x - b.x);
      return { plot, points };
    };
  }

  function ceilings(reached) {
    return (width) => {
      const plot = axes({
        width,
        height: height(width, 0.6),
        x: [0, 1.02],
        y: [-0.6, reached.length - 0.4],
        xLabel: "correlation",
        yLabel: "",
        label: "Correlations on random subsets, beside what could be reached",
        left: 14,
      });
      reached.forEach((row, k) => {
        const y = plot.Y(k);
        plot.svg.append(
          svg("rect", { class: "ceiling", x: plot.X(0), y: y - 14, width: plot.X(row.ceiling) - plot.X(0), height: 28 }),
        );
        plot.svg.append(
          svg("rect", { class: "bin", x: plot.X(0), y: y - 9, width: Math.max(0, plot.X(row.value) - plot.X(0)), height: 18 }),
        );
        plot.svg.append(svg("text", { class: "label", x: plot.X(0) + 2, y: y - 20 }, row.name));
      });
      plot.svg.querySelectorAll(".rule, .zero").forEach((each) => each.remove());
      [...plot.svg.querySelectorAll(".tick")]
        .filter((each) => Number(each.getAttribute("x")) < 14)
        .forEach((each) => each.remove());
      return {
        plot,
        points: reached.map((row, k) => ({
          x: row.value,
          y: k,
          text: `${row.name}: ${fixed(row.value)} of at most ${fixed(row.ceiling)}`,
        })),
      };
    };
  }

  function removed(rows) {
    const marks = { before: "base", after: "removed", control: "control" };
    const all = rows.flatMap((row) =>
      Object.keys(marks).flatMap((state) => (row[state] ? [row[state].low, row[state].high] : [])),
    );
    return (width) => {
      const plot = axes({
        width,
        height: 300,
        x: [-0.5, rows.length - 0.5],
        y: around(all.concat(0)),
        xLabel: "targets, by their margin before",
        yLabel: "mean margin",
        label: "Mean margins before and after the removal, and the control's",
      });
      [...plot.svg.querySelectorAll(".tick")]
        .filter((each) => each.getAttribute("text-anchor") === "middle")
        .forEach((each) => each.remove());
      const points = [];
      rows.forEach((row, k) => {
        for (const [state, kind] of Object.entries(marks)) {
          if (!row[state]) continue;
          const shift = { before: -0.18, after: 0, control: 0.18 }[state];
          measured(plot, k + shift, row[state], kind);
        }
        if (row.after)
          points.push({
            x: k,
            y: row.after.mean,
            text:
              `target ${row.target}: before ${interval(row.before)}, after ${interval(row.after)}, ` +
              `control ${interval(row.control)}`,
          });
      });
      return { plot, points };
    };
  }

  const REMOVED = [
    ["base", "all of S"],
    ["removed", "R removed"],
    ["control", "as many random ones removed"],
  ];

  async function prepare() {
    const all = await load("evidence");
    const put = (name, made) => {
      const holder = byId(`figure-${name}`);
      if (holder) figure(holder, made);
    };
    const things = "pairs of network and target";
    if (all.cdf) put("cdf", cdf(all.cdf, all));
    put("heldout", {
      name: "Held-out networks",
      draw: pairs(all.heldout, {
        xLabel: "predicted margin",
        yLabel: "true margin",
        label: "Predicted against true margin of held-out networks",
        things,
      }),
    });
    put("lds", { name: "LDS of targets", draw: bars(all.heldout.lds, "LDS of a target") });
    if (all.drops) put("drops", { name: "Drops", draw: drops(all.drops) });
    const random = all["random-subsets"];
    if (random) {
      put("random-subsets", {
        name: "Random subsets",
        draw: pairs(random, {
          xLabel: "predicted margin",
          yLabel: "mean margin of networks",
          label: "Predicted against true mean margin on random subsets",
          things: "pairs of subset and target",
        }),
      });
      put("ceilings", { name: "Correlations", draw: ceilings(random.reached) });
    }
    for (const name of Object.keys(all).filter((each) => each.startsWith("verified-")))
      put(name, { name: "Removals", legend: REMOVED, draw: removed(all[name]) });
  }

  return { prepare };
})();
