"use strict";
/* All targets on a map of their weights: those that rest on the same training images lie together. */

DM.map = (() => {
  const { h, byId, load, unpack } = DM;
  const { called, className, place, thumb } = DM.pictures;
  const MOST_PICTURES = 1200;
  let places = null;
  let first = 0;
  let context = null;
  let side = [0, 0];
  const sheets = new Map();

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const colour = (label) => (label < 0 ? "#888" : `hsl(${(label * 137.5 + 20) % 360} 62% ${dark.matches ? 62 : 44}%)`);
  const count = () => places.length / 2;
  const at = (k) => [14 + places[2 * k] * (side[0] - 28), 14 + (1 - places[2 * k + 1]) * (side[1] - 28)];

  /** A sheet of thumbnails; strokes on black the other way round on a bright page, once and not for each thumbnail. */
  function sheet(url) {
    const inverted = DM.run.ink && !dark.matches;
    const name = `${url} ${inverted}`;
    if (!sheets.has(name)) {
      const image = Object.assign(new Image(), { src: url });
      sheets.set(
        name,
        image.decode().then(() => (inverted ? invertedOf(image) : image)),
      );
    }
    return sheets.get(name);
  }

  function invertedOf(image) {
    const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
    const own = canvas.getContext("2d");
    own.drawImage(image, 0, 0);
    own.globalCompositeOperation = "difference";
    own.fillStyle = "white";
    own.fillRect(0, 0, canvas.width, canvas.height);
    return canvas;
  }

  function dot(k, radius) {
    const [x, y] = at(k);
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fill();
  }

  async function picture(k, size) {
    const where = place(false, first + k);
    const image = await sheet(where.url);
    const { width, height } = DM.run.tiles;
    const [x, y] = at(k);
    context.imageSmoothingEnabled = !DM.run.tiles.pixelated;
    context.drawImage(
      image,
      where.column * where.stepX,
      where.row * where.stepY,
      width,
      height,
      x - size / 2,
      y - size / 2,
      size,
      (size * height) / width,
    );
    context.strokeStyle = colour(DM.run.labels[first + k]);
    context.lineWidth = 2;
    context.strokeRect(x - size / 2, y - size / 2, size, (size * height) / width);
  }

  async function draw() {
    const canvas = byId("map-canvas");
    const scale = window.devicePixelRatio || 1;
    side = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = side.map((each) => Math.round(each * scale));
    context = canvas.getContext("2d");
    context.scale(scale, scale);
    for (let k = 0; k < count(); k += 1) {
      context.fillStyle = colour(DM.run.labels[first + k]);
      dot(k, count() > 3000 ? 1.8 : 4);
    }
    if (!DM.run.tiles || count() > MOST_PICTURES) return;
    const size = Math.max(12, Math.min(30, Math.sqrt((side[0] * side[1]) / count()) * 0.55));
    for (let k = 0; k < count(); k += 1) await picture(k, size);
  }

  function nearest(event) {
    const box = byId("map-canvas").getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [best, least] = [0, Infinity];
    for (let k = 0; k < count(); k += 1) {
      const [a, b] = at(k);
      const apart = (a - x) ** 2 + (b - y) ** 2;
      if (apart < least) [best, least] = [k, apart];
    }
    return best;
  }

  function tell(k) {
    const target = first + k;
    const label = DM.run.labels[target];
    byId("map-range").value = rank.indexOf(k);
    byId("map-seen").replaceChildren(
      thumb(false, target),
      h("a", { href: `#t=${target}` }, called(false, target)),
      label >= 0 ? `, ${className(label)}` : "",
    );
  }

  let rank = [];

  async function prepare() {
    const found = await load("map");
    places = unpack(found.places);
    first = found.first;
    rank = Array.from({ length: count() }, (_, k) => k).sort((a, b) => places[2 * a] - places[2 * b]);
    const canvas = byId("map-canvas");
    const range = byId("map-range");
    range.max = count() - 1;
    range.addEventListener("input", () => tell(rank[Number(range.value)]));
    canvas.addEventListener("pointermove", (event) => tell(nearest(event)));
    canvas.addEventListener("click", (event) => {
      window.location.hash = `t=${first + nearest(event)}`;
    });
    new ResizeObserver(() => draw()).observe(canvas);
    dark.addEventListener("change", draw);
    const labels = [...new Set(DM.run.labels)].filter((label) => label >= 0).sort((a, b) => a - b);
    if (labels.length <= 20)
      byId("map-key").append(
        ...labels.map((label) =>
          h("span.key", {}, h("span.dot", { "aria-hidden": "true", style: { background: colour(label) } }), className(label)),
        ),
      );
    tell(rank[0]);
  }

  return { prepare };
})();
