"use strict";
/* The page begins: what it opens with is loaded, the address says which target is shown, the rest follows. */

(() => {
  const { byId, load, unpack } = DM;
  const PACKED = ["labels", "trainLabels", "right", "margin", "lds", "size", "relabelled"];

  /** The target or training image that the address names, `#t=12` or `#i=5`; null for another place of the page. */
  function asked() {
    const found = /^#(t|i)=?(\d+)$/.exec(window.location.hash);
    if (!found) return null;
    const number = Number(found[2]);
    const most = found[1] === "t" ? DM.run.labels.length : DM.run.train;
    return { kind: found[1], number, known: number < most };
  }

  /** Say so where the address names a target or an image that there is not. */
  function tellUnknown(wanted) {
    const unknown = wanted !== null && !wanted.known;
    byId("trouble").hidden = !unknown;
    const what = wanted && wanted.kind === "t" ? "target" : `training ${DM.run.things.slice(0, -1)}`;
    byId("trouble").textContent = unknown ? `There is no ${what} ${wanted.number} here.` : "";
    return unknown;
  }

  function to(section, heading) {
    byId(section).scrollIntoView();
    const title = byId(heading);
    if (title) title.focus({ preventScroll: true });
  }

  /** The parts of the page are gone to without the address's losing which target is shown. */
  function keepTarget() {
    for (const link of document.querySelectorAll("header nav a, a.skip"))
      link.addEventListener("click", (event) => {
        event.preventDefault();
        const section = byId(link.getAttribute("href").slice(1));
        section.scrollIntoView();
        const title = section.matches("h1, h2, h3") ? section : section.querySelector("h1, h2, h3");
        if (!title) return;
        title.setAttribute("tabindex", "-1");
        title.focus({ preventScroll: true });
      });
  }

  async function follow() {
    const wanted = asked();
    if (tellUnknown(wanted)) to("trouble", "trouble");
    if (!wanted && !window.location.hash) {
      await DM.answer.show(DM.run.first);
      DM.targets.mark(DM.run.first);
    }
    if (!wanted || !wanted.known) return;
    if (wanted.kind === "t") {
      await DM.answer.show(wanted.number);
      DM.targets.mark(wanted.number);
      to("answer", "answer-title");
    } else {
      await DM.images.show(wanted.number);
      to("image-section", "image-title");
    }
  }

  function failed(error) {
    byId("trouble").hidden = false;
    byId("trouble").textContent = `This page lacks a part of it: ${error.message}. Its folder must be kept whole.`;
  }

  /** Until the thumbnails of the first screen can be seen, or cannot be had. */
  function seen() {
    const urls = new Set(
      [...byId("answer").querySelectorAll(".thumb")].map((box) => box.style.backgroundImage.slice(5, -2)).filter(Boolean),
    );
    const images = [...urls].map((url) => Object.assign(new Image(), { src: url }).decode());
    return Promise.allSettled(images);
  }

  const idle = () => new Promise((resolve) => setTimeout(resolve, 0));

  async function start() {
    DM.run = await load("run");
    for (const name of PACKED) DM.run[name] = unpack(DM.run[name]);
    const wanted = asked();
    tellUnknown(wanted);
    keepTarget();
    await DM.answer.show(wanted && wanted.known && wanted.kind === "t" ? wanted.number : DM.run.first);
    await seen();
    document.documentElement.dataset.stands = "first";
    DM.tables.prepare();
    window.addEventListener("hashchange", () => follow().catch(failed));
    for (const part of [DM.targets, DM.images, DM.map, DM.classes, DM.evidence]) {
      await idle();
      await part.prepare();
    }
    if (wanted && wanted.known && wanted.kind === "i") await follow();
    document.documentElement.dataset.stands = "all";
  }

  start().catch(failed);
})();
