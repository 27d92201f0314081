// The credit inspector: rollouts, their segments coloured by advantage, and the vines that measured it.

const ROW = 46; // pixels, of a rollout in the list; page.css has the same
const inspectors = [];

const strongest = (rollout) => Math.max(0, ...rollout.advantages.map(Math.abs));
const isRight = (rollout) => rollout.reward > 0;
const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(2);
const plusMinus = (error) => (error === null || error === undefined ? "" : ` \u00b1 ${error.toFixed(2)}`);
const shorten = (text, length) => (text.length > length ? `${text.slice(0, length)}\u2026` : text);
const SORTS = {
  "largest |advantage|": (a, b) => strongest(b) - strongest(a),
  "worst step first": (a, b) => Math.min(...a.advantages) - Math.min(...b.advantages),
  "as sampled": null,
};

const KEYS = [
  ["rollout", "j", "k"], ["segment", "\u2190", "\u2192"], ["vines", "Enter"], ["where it went wrong", "w"],
  ["search", "/"],
];

function inspectorView(data, id) {
  const all = data.rollouts;
  const scale = Math.max(...all.map(strongest)) || 1;
  const iterations = [...new Set(all.map((rollout) => rollout.iteration))];
  let shown = [], at = 0, segment = 0, open = false;

  const each = iterations.map((number) => [String(number), String(number)]);
  const iteration = select("Iteration", [["all", ""], ...each], String(iterations.at(-1)));
  const problem = select("Problem", [["all", ""]], "");
  const reward = select("Reward", [["right and wrong", ""], ["right", "right"], ["wrong", "wrong"]], "");
  const sort = select("Order", Object.keys(SORTS).map((name) => [name, name]), "largest |advantage|");
  const hint = "Search prompts and responses";
  const search = el("input", { type: "search", placeholder: hint, "aria-label": hint, oninput: refresh });
  const worst = el("button", { type: "button", class: "worst", onclick: findWorst }, "The step where it went wrong");
  const count = el("p", { class: "count", "aria-live": "polite" });
  const rows = el("div", { class: "rows" });
  const list = el("div", { class: "list", tabindex: 0, "aria-label": "Rollouts", onscroll: renderList }, rows);
  const detail = el("div", { class: "detail" });
  const values = el("div", { class: "chart", "data-name": "values" });
  const credits = el("div", { class: "chart", "data-name": "advantages" });
  const root = el("div", { class: "inspector", id, tabindex: -1 },
    el("h3", {}, "Credit, step by step"),
    el("p", { class: "lead" }, data.note),
    el("p", { class: "small" }, howMany(data)),
    el("div", { class: "controls" }, iteration.label, problem.label, reward.label, sort.label, search),
    el("div", { class: "bar" }, count, worst),
    el("div", { class: "split" }, list, detail));

  function select(name, options, value) {
    const control = el("select", { onchange: () => { if (name === "Iteration") offerProblems(); refresh(); } });
    const option = ([text, key]) => el("option", { value: key }, text);
    const offer = (choices) => control.replaceChildren(...choices.map(option));
    offer(options);
    control.value = value;
    return { control, offer, label: el("label", {}, el("span", {}, name), control) };
  }

  function offerProblems() {
    const prompts = new Map(all.filter(inIteration).map((rollout) => [rollout.problem, rollout.prompt]));
    const name = (prompt) => shorten(prompt.trim().replace(/\s+/g, " "), 60);
    problem.offer([["all", ""], ...[...prompts].map(([id, prompt]) => [name(prompt), id])]);
  }

  function inIteration(rollout) {
    return !iteration.control.value || String(rollout.iteration) === iteration.control.value;
  }

  function refresh() {
    const words = search.value.trim().toLowerCase();
    shown = all.filter((rollout) => inIteration(rollout)
      && (!problem.control.value || rollout.problem === problem.control.value)
      && (!reward.control.value || isRight(rollout) === (reward.control.value === "right"))
      && (!words || textOf(rollout).includes(words)));
    const order = SORTS[sort.control.value];
    if (order) shown.sort(order);
    rows.style.height = `${shown.length * ROW}px`;
    list.scrollTop = 0;
    show(0);
  }

  function show(index, segmentIndex = 0) {
    at = Math.max(0, Math.min(index, shown.length - 1));
    segment = segmentIndex;
    open = false;
    count.textContent = shown.length
      ? `${number(at + 1)} of ${number(shown.length)} rollouts` : "No rollout is like that.";
    const top = at * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    const hadFocus = root.contains(document.activeElement);
    renderList();
    renderDetail();
    const lost = hadFocus && document.activeElement === document.body; // it was on something that is gone now
    if (lost) root.focus({ preventScroll: true });
  }

  function renderList() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 3);
    const last = Math.min(shown.length, first + Math.ceil(list.clientHeight / ROW) + 7);
    rows.replaceChildren(...shown.slice(first, last).map((rollout, i) => rowView(rollout, first + i)));
  }

  function rowView(rollout, index) {
    return el("button", { type: "button", class: "row", tabindex: -1, "aria-current": index === at ? "true" : null,
      style: `top: ${index * ROW}px`, onclick: () => show(index) },
      markView(rollout.reward),
      el("span", { class: "prompt" }, shorten(rollout.prompt.trim(), 160)),
      el("span", { class: "small" }, `iteration ${rollout.iteration}, largest ${strongest(rollout).toFixed(2)}`));
  }

  function renderDetail() {
    const rollout = shown[at];
    if (!rollout) return detail.replaceChildren();
    detail.replaceChildren(
      el("div", { class: "problem" },
        el("pre", { class: "prompt" }, rollout.prompt.trim()),
        el("p", { class: "small" }, markView(rollout.reward), summaryOf(rollout))),
      headView(rollout.values ? "V before \u2192 after" : ""),
      el("ol", { class: "segments" }, rollout.segments.map((text, i) => segmentView(rollout, text, i))),
      legendView(scale, Boolean(rollout.standard_errors)),
      el("div", { class: "charts" },
        rollout.values ? el("figure", {}, el("figcaption", {}, "Value along the response"), values) : null,
        el("figure", {}, el("figcaption", {}, "Its credit by method"), credits)),
      el("p", { class: "small" }, creditNote(rollout)));
    drawCharts(rollout);
  }

  function segmentView(rollout, text, i) {
    const advantage = rollout.advantages[i];
    const selected = i === segment;
    const opened = selected && open;
    const error = errorOfChange(rollout, i);
    const unsure = Math.abs(advantage) <= error;
    return el("li", {},
      el("button", { type: "button", class: "segment", style: `background: ${colourOf(advantage / scale, unsure)}`,
        "aria-expanded": String(opened), "aria-current": selected ? "step" : null, onclick: () => choose(i, !opened) },
        el("span", { class: "text" }, segmentText(rollout, text, i)),
        el("span", { class: "value" }, rollout.values ? `${valueOf(rollout, i)} \u2192 ${valueOf(rollout, i + 1)}` : ""),
        el("span", { class: unsure ? "advantage unsure" : "advantage" }, signed(advantage) + plusMinus(error))),
      opened ? vinesView(rollout, i, data.method) : null);
  }

  function choose(i, opened) {
    segment = Math.max(0, Math.min(i, shown[at].segments.length - 1));
    open = opened;
    const segments = detail.querySelector(".segments");
    segments.replaceChildren(...shown[at].segments.map((text, j) => segmentView(shown[at], text, j)));
    segments.children[segment].firstChild.focus();
  }

  function findWorst() {
    const fromHere = [...shown.keys()].map((i) => (i + at) % shown.length);
    const seen = open && segment === worstOf(shown[at]);
    const next = fromHere.find((i) => wentWrong(shown[i]) && !(seen && i === at));
    if (next === undefined) {
      if (!seen) count.textContent = "No wrong response here has a step of negative advantage.";
      return;
    }
    show(next, worstOf(shown[next]));
    choose(segment, true);
  }

  let waiting = 0;
  function drawCharts(rollout) {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (rollout.values) draw(values, valueChart(data.value_chart, rollout));
      draw(credits, creditChart(data.credit_chart, rollout, data.method));
    }, 60);
  }

  inspectors.push({
    root, search,
    rollout: (step) => show(at + step),
    segment: (step) => shown[at] && choose(segment + step, open),
    vines: () => shown[at] && choose(segment, !open),
    worst: findWorst,
  });
  offerProblems();
  refresh();
  new ResizeObserver(renderList).observe(list);
  return root;
}

function howMany(data) {
  const [shown, saved] = [number(data.rollouts.length), number(data.num_saved)];
  const which = data.rollouts.length < data.num_saved
    ? `${shown} of ${saved} rollouts are in this page: whole groups, evenly over the iterations. `
    : `All ${saved} saved rollouts are in this page. `;
  return [which, "Keys: ", KEYS.map(([meaning, ...keys]) => [keys.map((key) => el("kbd", {}, key)), ` ${meaning}  `])];
}

function headView(values) {
  return el("div", { class: "head small", "aria-hidden": "true" },
    ["segment", values, "advantage"].map((text) => el("span", {}, text)));
}

const worstOf = (rollout) => rollout.advantages.indexOf(Math.min(...rollout.advantages));
const wentWrong = (rollout) => !isRight(rollout) && Math.min(...rollout.advantages) < 0;
const withoutBreaks = (text) => text.replace(/^\n|\n$/g, "");

// A last segment without text is the end token alone.
function segmentText(rollout, text, i) {
  const ends = i + 1 === rollout.segments.length && rollout.finish_reason === "eos";
  if (rollout.turns?.[i]?.length > 1) return turnsView(rollout.turns[i]);
  return withoutBreaks(text) || (ends ? "<eos>" : "(empty)");
}

const repliesIn = (turns) => turns.reduce((sum, ofSegment) => sum + Math.floor(ofSegment.length / 2), 0);

// By turns the policy's and the environment's.
const turnsView = (turns) => turns.map((text, n) => n % 2
  ? el("span", { class: "reply", title: "what the environment replied" }, text) : text);

const textOf = (rollout) => (rollout.text ??= `${rollout.prompt}\n${rollout.segments.join("")}`.toLowerCase());

function markView(reward) {
  const verdict = reward > 0 ? "right" : "wrong";
  return el("span", { class: `mark ${verdict}`, title: `reward ${number(reward)}` }, verdict);
}

function summaryOf(rollout) {
  const endings = { length: "stopped at its token limit", eos: "ended by itself", stop: "ended by a stop text" };
  const tokens = rollout.num_tokens ? `${number(rollout.num_tokens.reduce((a, b) => a + b, 0))} tokens, ` : "";
  const verdict = ["correct", "wrong"].includes(rollout.verdict) ? "" : `${rollout.verdict}, `;
  const turns = rollout.turns ? `${number(1 + repliesIn(rollout.turns))} turns, ` : "";
  return ` ${verdict}the answer is ${shorten(rollout.answer, 200)}; ${turns}${tokens}` +
    `${endings[rollout.finish_reason] ?? rollout.finish_reason}; iteration ${rollout.iteration}`;
}

const valueOf = (rollout, j) => rollout.values[j].toFixed(2) + plusMinus(rollout.standard_errors?.[j]);

// Of V after less V before, whose vines are drawn apart; the reward at the end is exact. Without vines it is not known.
function errorOfChange(rollout, i) {
  const errors = rollout.standard_errors;
  if (!errors || errors[i] === null) return undefined;
  if (i + 1 === errors.length) return errors[i];
  return errors[i + 1] === null ? undefined : Math.hypot(errors[i], errors[i + 1]);
}

// Blue for gain, orange for loss, over the page's own white (or black) in the middle; faded within the error.
function colourOf(share, unsure) {
  const strength = Math.min(1, Math.abs(share)) ** 0.8 * (unsure ? 14 : 55);
  return `color-mix(in srgb, var(${share < 0 ? "--loss" : "--gain"}) ${strength.toFixed(1)}%, var(--surface))`;
}

function legendView(scale, hasErrors) {
  const steps = [-1, -0.5, -0.25, 0, 0.25, 0.5, 1];
  return el("div", { class: "legend small", "aria-hidden": "true" }, signed(-scale),
    steps.map((share) => el("i", { style: `background: ${colourOf(share)}` })), `${signed(scale)} advantage`,
    hasErrors ? "; \u00b1 one standard error, faded where the advantage is within it" : "");
}

function vinesView(rollout, i, method) {
  const none = method === "VinePPO" ? "This run kept no vines of this state." : `${method} samples no vines.`;
  const last = i + 1 === rollout.segments.length;
  return el("div", { class: "vines" },
    vinesOf("Before this segment", rollout, i, none),
    last ? endView(rollout.reward)
      : vinesOf("After this segment", rollout, i + 1, none));
}

function endView(reward) {
  return el("div", {}, el("h4", {}, "After this segment"),
    el("p", { class: "small" }, `The response ends here: its value is its reward, ${number(reward)}.`));
}

function vinesOf(title, rollout, j, none) {
  const vines = rollout.vines?.[j];
  const heading = el("h4", {}, title, rollout.values ? `: V = ${valueOf(rollout, j)}` : "");
  if (!vines?.length) return el("div", {}, heading, el("p", { class: "small" }, none));
  return el("div", {}, heading,
    el("p", { class: "small" }, `${vines.length} of the continuations that were sampled from here:`),
    el("ul", {}, vines.map(({ reward, text, turns }) =>
      el("li", {}, markView(reward),
        el("pre", {}, turns ? turnsView(turns) : withoutBreaks(text) || "(ends at once)")))));
}

function valueChart(template, rollout) {
  const spec = structuredClone(template);
  spec.data.values = rollout.values.map((value, i) => ({ "segments done": i, V: value }));
  spec.encoding.x.axis = { tickMinStep: 1, format: "d" };
  spec.layer.at(-1).encoding.y.scale = { domain: [Math.min(0, ...rollout.values), Math.max(1, ...rollout.values)] };
  return spec;
}

// All in reward, so that they share an axis: GRPO's before it divides by its group's standard deviation.
function creditsOf(rollout, method) {
  const even = (value) => rollout.segments.map(() => value);
  if (rollout.grpo === null) return [[method, rollout.advantages]];
  const ofSiblings = [["GRPO, undivided", even(rollout.centred)], ["RLOO", even(rollout.rloo)]];
  const own = ["GRPO", "RLOO"].includes(method) ? [] : [[method, rollout.advantages]];
  return [...own, ...ofSiblings];
}

function creditChart(template, rollout, method) {
  const spec = structuredClone(template);
  spec.data.values = creditsOf(rollout, method).flatMap(([name, advantages]) =>
    advantages.map((advantage, i) => ({ segment: i + 1, "advantage, in reward": advantage, method: name })));
  delete spec.encoding.x.sort;
  return spec;
}

function creditNote(rollout) {
  if (rollout.grpo === null) return "It has no siblings in the file, so GRPO and RLOO have nothing to compare it with.";
  return `From the rewards of its siblings, every token of this response would get ${signed(rollout.grpo)} by GRPO ` +
    `in standard deviations of its group (${signed(rollout.centred)} in reward) and ${signed(rollout.rloo)} by RLOO. ` +
    "All before whitening.";
}

// The inspector that has the focus, or else the one in the middle of the screen.
function activeInspector() {
  const middle = innerHeight / 2;
  const inView = ({ root }) => {
    const box = root.getBoundingClientRect();
    return box.top < middle && box.bottom > middle;
  };
  return inspectors.find(({ root }) => root.contains(document.activeElement)) ?? inspectors.find(inView);
}

document.addEventListener("keydown", (event) => {
  const active = activeInspector();
  if (!active || event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target;
  if (target.matches("input, select, textarea")) {
    if (event.key === "Escape") target.blur();
    return;
  }
  const within = active.root.contains(document.activeElement);
  const actions = {
    j: () => active.rollout(1), k: () => active.rollout(-1),
    ArrowLeft: () => active.segment(-1), ArrowRight: () => active.segment(1),
    w: () => active.worst(), "/": () => active.search.focus(),
  };
  if (within) Object.assign(actions, { ArrowDown: actions.j, ArrowUp: actions.k }); // elsewhere they scroll the page
  if (!target.matches("button, summary, a")) actions.Enter = () => active.vines(); // those have an Enter of their own
  const action = actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});
