"use strict";
/* Tables of the page's text: on a narrow screen each cell says what it is; that of the searches is sorted and filtered. */

DM.tables = (() => {
  const { byId, h } = DM;

  function label(table) {
    const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
    for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, k) => cell.setAttribute("data-label", heads[k]));
  }

  const valueOf = (row, k) => {
    const text = row.cells[k].dataset.value ?? row.cells[k].textContent.trim().replace("−", "-");
    const number = parseFloat(text);
    return Number.isNaN(number) ? text : number;
  };

  const order = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, k) => {
      const button = h("button.sort", { type: "button" }, head.textContent.trim());
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, k), row]);
        table.tBodies[0].append(...rows.sort((a, b) => down * order(a[0], b[0])).map(([, row]) => row));
      });
    });
  }

  function prepare() {
    document.querySelectorAll("#evidence table").forEach(label);
    for (const mark of document.querySelectorAll(".line[data-colour]")) mark.style.background = mark.dataset.colour;
    const long = [...document.querySelectorAll("details.long")];
    if (window.matchMedia("(max-width: 640px)").matches) for (const each of long) each.open = false;
    window.addEventListener("beforeprint", () => {
      for (const each of long) each.open = true;
    });
    const table = byId("searches");
    if (!table) return;
    sortable(table);
    byId("filter").addEventListener("input", (event) => {
      const wanted = event.target.value.toLowerCase();
      for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
  }

  return { prepare };
})();
