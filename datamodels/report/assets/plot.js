"use strict";
/* Figures of SVG, drawn for the width that there is, so that their text has one size everywhere. Each can be read off without a
   mouse: a slider goes through its points, and says what is there. */

DM.plot = (() => {
  const { h, svg, fixed } = DM;
  const LEFT = 46;
  const RIGHT = 12;
  const TOP = 12;
  const BOTTOM = 38;

  /** About `most` round numbers from low to high. */
  function ticks(low, high, most = 6) {
    const raw = (high - low) / most || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * power).find((each) => each >= raw);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) found.push(k * step);
    return found;
  }

  const decimals = (values) =>
    values.length > 1 ? Math.max(0, Math.min(4, -Math.floor(Math.log10(values[1] - values[0]) + 1e-9))) : 0;

  /** A range somewhat wider than the values. */
  function around(values, share = 0.06) {
    const finite = values.filter(Number.isFinite);
    const [low, high] = finite.length ? [Math.min(...finite), Math.max(...finite)] : [0, 1];
    const more = (high - low || 1) * share;
    return [low - more, high + more];
  }

  /** An empty figure with axes: `{svg, X, Y}`, of which X and Y turn values into places. */
  function axes({ width, height, x, y, xLabel, yLabel, label, whole = false, left = LEFT }) {
    const X = (value) => left + ((value - x[0]) / (x[1] - x[0] || 1)) * (width - left - RIGHT);
    const Y = (value) => height - BOTTOM - ((value - y[0]) / (y[1] - y[0] || 1)) * (height - TOP - BOTTOM);
    const figure = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
    const [xs, ys] = [
      ticks(x[0], x[1], Math.max(3, width / 80)).filter((t) => !whole || Number.isInteger(t)),
      ticks(y[0], y[1], height / 42),
    ];
    for (const tick of ys) {
      figure.append(
        svg("line", { class: tick === 0 ? "zero" : "rule", x1: left, x2: width - RIGHT, y1: Y(tick), y2: Y(tick) }),
      );
      figure.append(
        svg("text", { class: "tick", x: left - 6, y: Y(tick) + 4, "text-anchor": "end" }, fixed(tick, decimals(ys))),
      );
    }
    for (const tick of xs) {
      figure.append(
        svg("text", { class: "tick", x: X(tick), y: height - BOTTOM + 16, "text-anchor": "middle" }, fixed(tick, decimals(xs))),
      );
    }
    figure.append(svg("line", { class: "axis", x1: left, x2: width - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM }));
    figure.append(
      svg("text", { class: "label", x: (left + width - RIGHT) / 2, y: height - 4, "text-anchor": "middle" }, xLabel),
    );
    const middle = (TOP + height - BOTTOM) / 2;
    figure.append(
      svg("text", { class: "label", transform: `translate(11 ${middle}) rotate(-90)`, "text-anchor": "middle" }, yLabel),
    );
    return { svg: figure, X, Y, bottom: height - BOTTOM, top: TOP, left, right: width - RIGHT };
  }

  /** A line through points [x, y]. */
  function line(plot, points, given = {}) {
    const path = points.map(([x, y], k) => `${k ? "L" : "M"}${plot.X(x).toFixed(1)} ${plot.Y(y).toFixed(1)}`).join("");
    plot.svg.append(svg("path", { d: path, fill: "none", ...given }));
  }

  /** A mean with its interval; its shape tells what it is, beside its colour. */
  function measured(plot, x, outcome, kind) {
    const [at, low, high, mean] = [plot.X(x), plot.Y(outcome.low), plot.Y(outcome.high), plot.Y(outcome.mean)];
    const group = svg("g", { class: `measured ${kind}` });
    group.append(svg("line", { x1: at, x2: at, y1: low, y2: high }));
    for (const end of [low, high]) group.append(svg("line", { x1: at - 3.5, x2: at + 3.5, y1: end, y2: end }));
    if (kind === "control") group.append(svg("rect", { x: at - 4.5, y: mean - 4.5, width: 9, height: 9 }));
    else group.append(svg("circle", { cx: at, cy: mean, r: kind === "confirmed" ? 6 : 4.5 }));
    plot.svg.append(group);
  }

  /** Call `draw(width)` and show the SVG it gives, again whenever there is another width. */
  function fitted(holder, draw) {
    let width = 0;
    const show = (found) => {
      const whole = Math.floor(found);
      if (whole < 40 || whole === width) return;
      width = whole;
      holder.replaceChildren(draw(whole));
    };
    const observer = new ResizeObserver((entries) => show(entries[entries.length - 1].contentRect.width));
    observer.observe(holder);
    show(holder.clientWidth);
    return () => {
      width = 0;
      show(holder.clientWidth);
    };
  }

  /**
   * A figure with a slider through its points. `draw(width)` gives `{plot, points}`, points `{x, y, text}` in the order of the
   * slider goes; `legend` are pairs of a mark and words.
   */
  function figure(holder, { draw, legend = [], name }) {
    const place = h("div.plot");
    const range = h("input", { type: "range", min: 0, value: 0, "aria-label": `${name}: read off` });
    const output = h("output.reading", { "aria-live": "polite" });
    let drawn = null;
    let mark = null;
    const read = () => {
      const point = drawn.points[Number(range.value)];
      output.textContent = point ? point.text : "";
      if (!point) return;
      mark.setAttribute("cx", drawn.plot.X(point.x));
      mark.setAttribute("cy", drawn.plot.Y(point.y));
    };
    fitted(place, (width) => {
      drawn = draw(width);
      range.max = Math.max(0, drawn.points.length - 1);
      mark = svg("circle", { class: "cursor", r: 8 });
      drawn.plot.svg.append(mark);
      drawn.plot.svg.addEventListener("pointermove", (event) => {
        range.value = nearest(drawn, event);
        read();
      });
      read();
      return drawn.plot.svg;
    });
    range.addEventListener("input", read);
    const marks = legend.map(([kind, words]) => h("span.key", {}, h(`span.mark.${kind}`, { "aria-hidden": "true" }), words));
    holder.append(marks.length ? h("p.legend", {}, marks) : "", place, h("div.read", {}, range, output));
  }

  function nearest(drawn, event) {
    const box = drawn.plot.svg.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [best, least] = [0, Infinity];
    drawn.points.forEach((point, k) => {
      const apart = (drawn.plot.X(point.x) - x) ** 2 + (drawn.plot.Y(point.y) - y) ** 2;
      if (apart < least) [best, least] = [k, apart];
    });
    return best;
  }

  return { axes, line, measured, fitted, figure, around, ticks };
})();
