"use strict";
(() => {
  const source = document.getElementById("keys");
  const query = document.getElementById("query");
  if (!source || !query) return;
  const most = 50;
  const data = JSON.parse(source.textContent);
  const table = document.getElementById("results");
  const body = table.tBodies[0];
  const found = document.getElementById("found");
  const atFirst = found.textContent;
  const lower = data.key.map((key) => key.toLowerCase());
  const number = (column, row) => (column.length && column[row] !== null ? column[row].toLocaleString("en") : "-");

  const show = () => {
    const wanted = query.value.trim().toLowerCase();
    body.replaceChildren();
    table.hidden = true;
    if (!wanted) {
      found.textContent = atFirst;
      return;
    }
    const hits = [];
    let count = 0;
    for (let row = 0; row < lower.length; row += 1) {
      if (lower[row].includes(wanted)) {
        count += 1;
        if (hits.length < most) hits.push(row);
      }
    }
    found.textContent = count
      ? `${count.toLocaleString("en")} found${count > most ? `, the first ${most} are shown` : ""}.`
      : "Nothing found.";
    for (const row of hits) {
      const line = body.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.className = "mono";
      head.textContent = data.key[row];
      line.append(head);
      const cells = [data.shards[data.shard[row]], number(data.tokens, row), number(data.kept, row),
        number(data.bytes, row), number(data.chance, row)];
      for (const text of cells) line.insertCell().textContent = text;
    }
    table.hidden = hits.length === 0;
  };
  query.addEventListener("input", show);
  document.getElementById("search-form").addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("beforeprint", () => document.querySelectorAll("img[loading]").forEach((image) => image.removeAttribute("loading")));
})();
