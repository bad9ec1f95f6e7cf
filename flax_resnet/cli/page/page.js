"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const original = [...body.rows];
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  heads.forEach((head, column) => head.addEventListener("click", () => {
    // Names rise first; numbers fall first. The third press restores the order.
    const first = column === 0 ? "ascending" : "descending";
    const second = column === 0 ? "descending" : "ascending";
    const order = { none: first, [first]: second, [second]: "none" }[head.getAttribute("aria-sort")];
    heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
    const rows = [...original];
    if (order !== "none") {
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        const [x, y] = [valueOf(a, column), valueOf(b, column)];
        if (typeof x === "string") return sign * x.localeCompare(y, undefined, { numeric: true });
        // Undefined scores come last in both orders.
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y);
      });
    }
    body.append(...rows);
  }));
}

for (const input of document.querySelectorAll("input[data-filter]")) {
  const items = [...document.querySelectorAll(input.dataset.filter)];
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const item of items) {
      item.hidden = !item.dataset.search.includes(wanted);
      shown += !item.hidden;
    }
    input.parentElement.querySelector("output").textContent = wanted ? `${shown} of ${items.length}` : "";
  });
}

const order = document.getElementById("order");
if (order) {
  const table = document.getElementById("confusion");
  const head = table.tHead.rows[0];
  const columns = [...head.cells].slice(1);
  const rows = [...table.tBodies[0].rows];
  const cells = rows.map((row) => [...row.cells].slice(1));
  const keys = {
    index: (a, b) => a.dataset.index - b.dataset.index,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }),
    recall: (a, b) => a.dataset.recall - b.dataset.recall,
    support: (a, b) => b.dataset.support - a.dataset.support,
  };
  const arrange = () => {
    const sorted = [...rows].sort(keys[order.value]);
    const places = sorted.map((row) => Number(row.dataset.index));
    head.append(...places.map((place) => columns[place]));
    sorted.forEach((row) => row.append(...places.map((place) => cells[row.dataset.index][place])));
    table.tBodies[0].append(...sorted);
  };
  order.addEventListener("change", arrange);
}
