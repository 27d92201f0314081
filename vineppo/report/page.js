// Sections from the packed data. Text from models, recipes and files reaches the page through textContent only.

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "\u2013";
  if (typeof value !== "number") return String(value);
  const rounded = Number.isInteger(value) || Math.abs(value) >= 1000;
  if (rounded) return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
  return String(Number(value.toPrecision(digits)));
}

const percent = (value) => `${(100 * value).toFixed(1)} %`;

function sectionView(section) {
  return el(
    "section", { id: section.id, "aria-labelledby": `${section.id}-title` },
    el("p", { class: "kind" }, section.kind),
    el("h2", { id: `${section.id}-title` }, section.title),
    section.warnings?.length ? warningsView(section.warnings) : null,
    section.text ? section.text.split(/\n\n+/).map((text) => el("p", { class: "lead" }, text)) : null,
    section.accuracy?.length ? accuracyView(section.accuracy) : null,
    section.facts ? factsView(section.facts) : null,
    section.inspector ? inspectorView(section.inspector, `${section.id}-credit`) : null,
    section.inspector ? el("h3", {}, "Curves") : null,
    section.charts ? chartsView(section.charts) : null,
    Object.entries(section.tables ?? {}).map(([name, rows], i) => tableView(name, rows, i < 2)),
    section.recipe ? detailsView("Recipe", el("pre", {}, section.recipe)) : null,
    Object.keys(section.environment ?? {}).length ? detailsView("Environment", factsView(section.environment)) : null,
  );
}

function warningsView(warnings) {
  return el("div", { class: "warnings", role: "note" }, el("strong", {}, "Worth a look"),
    el("ul", {}, warnings.map((text) => el("li", {}, text))));
}

function accuracyView(scores) {
  return el("div", { class: "scores" }, scores.map((score, i) => [
    i ? el("span", { class: "arrow", "aria-hidden": "true" }, "\u2192") : null,
    el("div", { class: "score" },
      el("span", { class: "what" }, `pass@1 ${/^(step|iteration)/.test(score.name) ? "at " : ""}${score.name}`),
      el("span", { class: "big" }, percent(score.value)),
      score.low === null || score.low === undefined ? null
        : el("span", { class: "what" }, `95 % interval ${percent(score.low)} to ${percent(score.high)}`),
      score.num_problems ? el("span", { class: "what" }, `${number(score.num_problems)} held-out problems`) : null),
  ]));
}

function factsView(facts) {
  const shown = Object.entries(facts).filter(([, value]) => value !== "" && value !== null);
  return el("dl", { class: "facts" }, shown.map(([name, value]) =>
    el("div", {}, el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, breakable(String(value))))));
}

// A long path may be broken after a slash.
const breakable = (text) => text.split(/(?<=\/)/).flatMap((part) => [part, el("wbr")]);

function detailsView(name, body) {
  return el("details", { class: "more" }, el("summary", {}, name), body);
}

function linksTo(section) {
  const credit = section.inspector && el("a", { href: `#${section.id}-credit`, class: "small" }, "credit");
  return [el("a", { href: `#${section.id}` }, section.title), ...(credit ? [credit] : [])];
}

// Where the page begins with something else.
function jumpView(sections) {
  return el("p", { class: "live" }, "Credit, step by step, with the vines that measured it: ",
    sections.map((section, i) => [i ? ", " : "", el("a", { href: `#${section.id}-credit` }, section.title)]));
}

// A browser that prints a page from the command line does so at its load event, which waits for images only.
function holdLoad() {
  const pixel = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==";
  const image = new Image();
  let number = 0, done = false;
  image.onload = () => { if (!done) image.src = `${pixel}#${number++}`; };
  image.src = pixel;
  return () => { done = true; };
}

async function main() {
  const data = await unpack("data");
  const page = document.querySelector("main");
  page.replaceChildren(...data.sections.map(sectionView));
  const live = `The run goes on; this page loads itself again every ${data.refresh_s} seconds.`;
  if (data.refresh_s) page.prepend(el("p", { class: "live" }, live));
  const credits = data.sections.filter((section) => section.inspector);
  if (credits.length && credits[0] !== data.sections[0]) page.prepend(jumpView(credits));
  document.querySelector("nav").append(...data.sections.flatMap(linksTo));
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  document.documentElement.dataset.ready = "yes";
  await drawAll();
}

main().finally(holdLoad()).catch((error) => {
  document.querySelector("main").replaceChildren(el("p", { class: "lead" },
    `This page cannot be shown (${error}). It needs a browser of 2023: Chrome 111, Firefox 113, Safari 16.4.`));
  throw error;
});
