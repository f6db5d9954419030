"use strict";
/* The course of the margin along an order of images: what the weights predict, what was measured, and a slider along it. */

DM.course = (() => {
  const { h, svg, fixed, interval } = DM;
  const { rightIn } = DM.ways;

  // The course of the margin, and the slider along it.

  const margins = (way) =>
    [way.base, ...way.probes.map((probe) => probe.outcome), way.confirmed, way.control].filter((o) => o && o.low !== undefined);

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
    const plot = DM.plot.axes({
      width,
      height: width < 480 ? 200 : 228,
      x: [0, last * 1.02],
      y: DM.plot.around(all),
      xLabel: `${DM.run.things} ${way.relabelled === null ? "removed" : "relabelled"}, in order`,
      yLabel: "margin",
      label,
      whole: true,
    });
    const floor = Math.min(plot.bottom, Math.max(plot.top, plot.Y(0)));
    plot.svg.prepend(
      svg("rect", { class: "wrong", x: plot.left, y: floor, width: plot.right - plot.left, height: plot.bottom - floor }),
    );
    if (plot.bottom - floor > 16)
      plot.svg.append(svg("text", { class: "hint", x: plot.left + 6, y: plot.bottom - 6 }, "wrong"));
    DM.plot.line(plot, line, { class: "predicted" });
    if (way.base.low !== undefined) DM.plot.measured(plot, 0, way.base, "base");
    for (const probe of way.probes)
      DM.plot.measured(plot, probe.size, probe.outcome, way.confirmed && probe.size === way.size ? "confirmed" : "removed");
    if (way.control) DM.plot.measured(plot, way.size, way.control, "control");
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
    return h(
      "p.legend",
      {},
      marks.map(([kind, words]) => h("span.key", {}, h(`span.mark.${kind}`, { "aria-hidden": "true" }), words)),
    );
  }

  function course(way, cards) {
    const holder = h("div.plot");
    const last = lastOf(way);
    const range = h("input", {
      id: "along",
      type: "range",
      min: 0,
      max: last,
      value: way.size,
      "aria-label": `How many ${DM.run.things} of the order are ${way.relabelled === null ? "removed" : "relabelled"}`,
    });
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

  return { course };
})();
