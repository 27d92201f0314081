// Tables that are sorted by a click on a header and saved as CSV.

function tableView(name, rows, open) {
  const columns = [...new Set(rows.flatMap(Object.keys))];
  const cells = (column) => rows.map((row) => row[column]);
  const isNumber = (value) => value == null || typeof value === "number";
  const numeric = new Set(columns.filter((column) => cells(column).every(isNumber)));
  const shown = new Map(columns.map((column) => [column, numeric.has(column) ? formatOf(cells(column)) : String]));
  const body = el("tbody");
  const cell = (row, column) => el("td", { class: numeric.has(column) ? "number" : null },
    row[column] == null ? "\u2013" : shown.get(column)(row[column]));
  const fill = (ordered) => body.replaceChildren(...ordered.map((row) =>
    el("tr", {}, columns.map((column) => cell(row, column)))));
  const headers = columns.map((column) => el("th", { scope: "col", class: numeric.has(column) ? "number" : null },
    el("button", { type: "button", onclick: () => sortBy(column) }, column)));

  function sortBy(column) {
    const header = headers[columns.indexOf(column)];
    const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", direction);
    fill([...rows].sort((a, b) => compare(a[column], b[column], direction === "ascending" ? 1 : -1)));
  }

  fill(rows);
  return el("details", { class: "more table", open },
    el("summary", {}, name),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, headers)), body)),
    el("button", { type: "button", class: "quiet", onclick: () => save(name, toCsv(columns, rows)) }, "Save as CSV"));
}

// A column has one number of decimals: three digits of its largest number. What that would round to 0 keeps two digits.
function formatOf(column) {
  const sizes = column.filter((value) => value != null).map(Math.abs);
  const whole = sizes.every(Number.isInteger);
  const decimals = whole ? 0 : Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(Math.max(...sizes)))));
  const fixed = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
  return (value) => (value !== 0 && Math.abs(value) < 10 ** -decimals
    ? String(Number(value.toPrecision(2)))
    : value.toLocaleString("en-US", fixed));
}

function compare(a, b, sign) {
  if (a == null || b == null) return (a == null) - (b == null); // what is missing comes last, either way
  return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
}

function toCsv(columns, rows) {
  const quote = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const line = (values) => values.map((value) => quote(String(value ?? ""))).join(",");
  return [line(columns), ...rows.map((row) => line(columns.map((column) => row[column])))].join("\r\n") + "\r\n";
}

function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  el("a", { href: url, download: `${name.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
