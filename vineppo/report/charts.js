// Vega draws what charts.py specified. Here only: width of the place, colours of the theme, and when: what is scrolled
// to at once, the rest one by one, so that a printed page and a picture of the whole have all of them.

const darkness = matchMedia("(prefers-color-scheme: dark)");
const wanted = new Map(); // place -> specification

function themed(spec, width) {
  const style = getComputedStyle(document.documentElement);
  const [text, quiet, line] = ["--text", "--quiet", "--line"].map((name) => style.getPropertyValue(name).trim());
  const font = getComputedStyle(document.body).fontFamily;
  const axis = { labelColor: quiet, titleColor: quiet, gridColor: line, domainColor: line, tickColor: line,
    labelFont: font, titleFont: font, titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12,
    labelOverlap: "parity", titlePadding: 8 };
  const config = { ...spec.config, axis, view: { stroke: null },
    legend: { labelColor: text, labelFont: font, labelFontSize: 12, labelLimit: 220, orient: "bottom",
      symbolType: "circle", symbolOpacity: 1 } };
  const unit = (layer) => ({ ...layer, encoding: withLegend(layer.encoding, spec.data?.values ?? [], width) });
  return {
    ...unit(spec), layer: spec.layer?.map(unit), config,
    $schema: undefined, title: undefined, // it may name an older Vega-Lite; the page has the title above the chart
    width: "container", height: 220, autosize: { type: "fit-x", contains: "padding" },
  };
}

// Below the chart, in as many columns as its labels leave room for.
function withLegend(encoding, rows, width) {
  const field = encoding?.color?.field;
  if (!field) return encoding;
  const longest = Math.max(0, ...rows.map((row) => String(row[field]).length));
  const columns = Math.max(1, Math.floor((width - 60) / (7 * longest + 26)));
  return { ...encoding, color: { ...encoding.color, legend: { title: null, columns } } };
}

async function draw(place, spec) {
  const canvas = el("div", { class: "vega" });
  wanted.set(place, spec);
  place.append(canvas); // in the page already, for its width; hidden while it stands behind an earlier chart
  const result = await vegaEmbed(canvas, themed(spec, place.clientWidth), {
    mode: "vega-lite",
    ast: true, // no eval: the page's policy forbids it
    renderer: "svg",
    tooltip: { theme: darkness.matches ? "dark" : "light" },
    actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
    downloadFileName: place.dataset.name,
  });
  if (wanted.get(place) !== spec) { // meanwhile it was asked for something else
    result.finalize();
    canvas.remove();
    return;
  }
  place.shown?.finalize();
  place.shown = result;
  place.replaceChildren(canvas);
  place.dataset.drawn = "yes";
}

darkness.addEventListener("change", () => wanted.forEach((spec, place) => draw(place, { ...spec })));

const undrawn = new Set();

async function drawOnce(place) {
  if (!undrawn.delete(place)) return;
  whenSeen.unobserve(place);
  try {
    await draw(place, place.spec);
  } catch (error) {
    place.replaceChildren(el("p", { class: "small" }, `This chart cannot be drawn: ${error.message}`));
  }
}

const whenSeen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) drawOnce(target);
}, { rootMargin: "200px" });

async function drawAll() {
  while (undrawn.size) {
    const [next] = undrawn;
    await drawOnce(next);
    if (!printing) await new Promise((resume) => setTimeout(resume)); // leave the reader a moment for the page
  }
  document.documentElement.dataset.drawn = "yes";
}

let printing = matchMedia("print").matches;
addEventListener("beforeprint", () => { printing = true; drawAll(); });
addEventListener("afterprint", () => { printing = false; });

function chartView(name, spec) {
  const place = el("div", { class: "chart", "data-name": name.toLowerCase().replace(/[^a-z0-9]+/g, "-") });
  place.spec = spec;
  undrawn.add(place);
  whenSeen.observe(place);
  return el("figure", {}, el("figcaption", {}, spec.title?.text ?? spec.title ?? name), place);
}

function chartsView(charts) {
  return el("div", { class: "charts" }, Object.entries(charts).map(([name, spec]) => chartView(name, spec)));
}
