"use strict";
/* What is to be seen of examples: thumbnails out of sprites, or names where there are no pictures; and what they are called. */

DM.pictures = (() => {
  const { h, load } = DM;

  const isBehaviour = (target) => target >= DM.run.targets;

  /** What a class is called; a dash where it is not known. */
  const className = (label) => (label >= 0 ? DM.run.classes[label] : "–");

  /** A training image, or a target, in words: "training image 12", "test image 3", a behaviour by its name. */
  function called(isTrain, index) {
    const thing = DM.run.things.slice(0, -1);
    if (isTrain) return `training ${thing} ${index}`;
    if (isBehaviour(index)) return DM.run.behaviours[index - DM.run.targets].name;
    if (index >= DM.run.tests) return `training ${thing} ${DM.run.trainTargets[index - DM.run.tests]} as a target`;
    return `test ${thing} ${index}`;
  }

  const labelOf = (isTrain, index) => (isTrain ? DM.run.trainLabels : DM.run.labels)[index];

  /** A promise of an example's own name; empty where examples have none. */
  async function nameOf(isTrain, index) {
    if (!DM.run.named || (!isTrain && isBehaviour(index))) return "";
    const per = DM.run.perBlock.names;
    const names = await load(`names-${isTrain ? "train" : "test"}-${Math.floor(index / per)}`);
    return names[index % per];
  }

  /** A promise of the names of all test examples, for whoever searches them. */
  async function allNames() {
    if (!DM.run.named) return [];
    const blocks = Math.ceil(DM.run.targets / DM.run.perBlock.names);
    return (await Promise.all(Array.from({ length: blocks }, (_, k) => load(`names-test-${k}`)))).flat();
  }

  /** Where a thumbnail lies: its sheet, and the CSS that shows it alone. */
  function place(isTrain, index) {
    const { tiles, train, targets } = DM.run;
    const number = Math.floor(index / tiles.perFile);
    const inSheet = Math.min(tiles.perFile, (isTrain ? train : targets) - number * tiles.perFile);
    const rows = Math.ceil(inSheet / tiles.columns);
    const [column, row] = [index % tiles.columns, Math.floor((index % tiles.perFile) / tiles.columns)];
    const [stepX, stepY] = tiles.step;
    return { url: `data/${isTrain ? "train" : "test"}-${number}.${tiles.extension}`, rows, column, row, stepX, stepY };
  }

  /** How large a share of a sheet lies before a tile, as background-position counts it. */
  const offset = (at, step, number, size) => (number * step === size ? 0 : (100 * at * step) / (number * step - size));

  function sprite(isTrain, index) {
    const { tiles } = DM.run;
    const at = place(isTrain, index);
    const [x, y] = [offset(at.column, at.stepX, tiles.columns, tiles.width), offset(at.row, at.stepY, at.rows, tiles.height)];
    const size = [(100 * tiles.columns * at.stepX) / tiles.width, (100 * at.rows * at.stepY) / tiles.height];
    return {
      "background-image": `url("${at.url}")`,
      "background-size": `${size[0]}% ${size[1]}%`,
      "background-position": `${x}% ${y}%`,
      "aspect-ratio": `${tiles.width} / ${tiles.height}`,
    };
  }

  /** In the place of a picture: a name's end, or the number. */
  function words(isTrain, index) {
    const box = h("span.thumb.words", { "aria-hidden": "true" }, `${index}`);
    nameOf(isTrain, index).then((name) => {
      if (name) box.textContent = name.length > 28 ? `…${name.slice(-27)}` : name;
    });
    return box;
  }

  /** A thumbnail; beside it stands what it is, so that to whoever cannot see it it is nothing, unless `alt` says what it is. */
  function thumb(isTrain, index, alt = null) {
    const told = alt === null ? { "aria-hidden": "true" } : { role: "img", "aria-label": alt };
    if (!isTrain && isBehaviour(index)) return montage(index, told);
    if (!DM.run.tiles) return words(isTrain, index);
    const box = h("span.thumb", { ...told, style: sprite(isTrain, index) });
    box.classList.toggle("pixels", DM.run.tiles.pixelated);
    box.classList.toggle("ink", DM.run.ink);
    return box;
  }

  /** Of a behaviour some of its targets, side by side. */
  function montage(target, told) {
    const { targets } = DM.run.behaviours[target - DM.run.targets];
    const side = Math.min(5, Math.floor(Math.sqrt(targets.length)));
    const shown = targets.slice(0, side * side).map((member) => thumb(false, member));
    return h("span.montage", { ...told, style: { "--side": side } }, shown);
  }

  /** A link to a target or a training image: thumbnail, class and number, and what else is to stand below. */
  function card(isTrain, index, ...below) {
    const label = labelOf(isTrain, index);
    const known = label >= 0 ? [h("b", {}, className(label)), " "] : [];
    const number = h(
      "span.number",
      {},
      isTrain || !isBehaviour(index) ? `${index}` : DM.run.behaviours[index - DM.run.targets].name,
    );
    const link = h("a.card", { href: `#${isTrain ? "i" : "t"}=${index}` }, thumb(isTrain, index));
    const caption = h("span.caption", {}, known, number, below);
    link.append(caption);
    nameOf(isTrain, index).then((name) => {
      if (!name) return;
      link.title = name;
      if (DM.run.tiles) caption.append(h("bdi.name", {}, name));
    });
    return link;
  }

  return { called, className, labelOf, nameOf, allNames, thumb, card, place, isBehaviour };
})();
