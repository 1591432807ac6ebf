// Several runs: their table, what differs between them, and how sure the differences of results are.
let drawRuns = () => {};
let drawParallel = () => {};

const tintOf = (index) => variable(state.bands ? data.groups.findIndex((group) => group.runs.includes(index)) : index);

function runsSection() {
  const body = h("tbody"), shown = data.settings.slice(0, 6);
  drawRuns = () => body.replaceChildren(...data.runs.map((run, index) => h("tr", {
    class: `pick ${index === state.selected ? "chosen" : ""}`, "data-run": run.name, onclick: () => select(index),
  },
  h("td", null, h("input", {
    type: "checkbox", checked: !state.hidden.has(index), "aria-label": `Show ${run.name}`, onclick: (event) => event.stopPropagation(),
    onchange: (event) => { if (event.target.checked) state.hidden.delete(index); else state.hidden.add(index); rebuild(); drawParallel(); },
  })),
  h("td", { class: "name" }, h("span", { class: "key", style: { color: "inherit" } }, h("span", { class: "swatch box", style: { "--color": tintOf(index) } }), run.name)),
  h("td", null, h("span", { class: `pill ${run.state}` }, run.state)),
  h("td", { class: "number" }, `${number(run.step)}${run.total ? ` / ${number(run.total)}` : ""}`),
  data.columns.map((name) => h("td", { class: "number" }, number(run.metrics[name] ?? null))),
  shown.map(([, values]) => h("td", { class: typeof values[index] === "number" ? "number" : "text" }, number(values[index]))))));
  const numeric = (values) => values.some((value) => typeof value === "number");
  const heads = [["", false], ["run", false], ["state", false], ["step", true], ...data.columns.map((name) => [name, true]), ...shown.map(([name, values]) => [name, numeric(values)])];
  const more = data.settings.length > shown.length ? ` ${data.settings.length - shown.length} more settings differ.` : "";
  return section("overview", "Runs", null, h("div", { class: "card" },
    scroller(true, h("table", null, h("thead", null, h("tr", null, heads.map(([name, isNumber]) => head(name, isNumber)))), body)),
    h("p", { class: "muted small", style: { "margin-top": "8px" } }, `Click a run to choose it: marks on the curves and the details below are those of the chosen run. The boxes hide runs.${more}`)));
}

const VERDICTS = { better: "done", worse: "failed", differs: "preempted" };

// The interval of a difference on a line with 0 in the middle.
function forest(result, range) {
  if (!result.interval || !range) return h("span", { class: "muted small" }, result.interval ? "the same" : "no interval");
  const x = (value) => 110 + (102 * value) / range;
  const tint = result.verdict === "better" ? "var(--good)" : result.verdict === "worse" ? "var(--bad)" : result.verdict ? "var(--warn)" : "var(--muted)";
  const [low, high] = result.interval;
  return s("svg", { class: "forest", viewBox: "0 0 220 22", role: "img", "aria-label": `${number(low)} to ${number(high)}` },
    s("line", { x1: 110, x2: 110, y1: 1, y2: 21, style: { stroke: "var(--line)", "stroke-width": "1.5" } }),
    s("line", { x1: x(low), x2: x(high), y1: 11, y2: 11, style: { stroke: tint, "stroke-width": "2.5", "stroke-linecap": "round" } }),
    s("circle", { cx: x(result.difference), cy: 11, r: 4.2, style: { fill: tint } }));
}

const signed = (value) => (value === null ? "–" : `${value > 0 ? "+" : value < 0 ? "−" : ""}${number(Math.abs(value))}`);

function resultTable(results, names, first, range) {
  const heads = [first, "examples", ...names, "difference", "95 % interval", "", "over", first === "slice" ? "p (Holm)" : "p", ""];
  const numeric = new Set([1, 2, 3, 4, 8]);
  return scroller(results.length > 24, h("table", { class: "results" },
    h("thead", null, h("tr", null, heads.map((name, at) => head(name, numeric.has(at))))),
    h("tbody", null, results.map((result) => h("tr", { "data-result": [result.evaluation, result.part, result.metric].filter(Boolean).join("/") },
      h("td", { class: "name" }, first === "slice" ? result.part : `${result.evaluation}/${result.metric}`),
      h("td", { class: "number" }, result.examples ? number(result.examples) : "–"),
      h("td", { class: "number" }, number(result.first)), h("td", { class: "number" }, number(result.second)), h("td", { class: "number" }, signed(result.difference)),
      h("td", null, forest(result, range ?? rangeOf([result]))),
      h("td", { class: "name small muted" }, result.interval ? `${signed(result.interval[0])} to ${signed(result.interval[1])}` : ""),
      h("td", { class: "name muted small" }, result.interval ? result.over : ""),
      h("td", { class: "number" }, result.p === null ? "–" : result.p < 0.001 ? "< 0.001" : number(result.p)),
      h("td", null, result.p === null ? null : h("span", { class: `pill ${VERDICTS[result.verdict] ?? ""}` }, result.verdict || "not sure")))))));
}

const rangeOf = (results) => Math.max(0, ...results.filter((result) => result.interval).flatMap((result) => [...result.interval, result.difference].map(Math.abs)));

function variantCards(found, variant) {
  const own = found.results.filter((result) => result.variant === variant), names = [found.variants[0], found.variants[variant]];
  const whole = own.filter((result) => !result.part), slices = own.filter((result) => result.part), cards = [];
  if (whole.length) cards.push(card(`${names[1]} against ${names[0]}`, "all examples", resultTable(whole, names, "result")));
  if (slices.length) cards.push(slicesCard(slices, names));
  const changes = found.changes.filter((change) => change.variant === variant);
  if (changes.length) cards.push(changesCard(changes, names));
  return cards;
}

// The slices of one metric, which the reader chooses.
function slicesCard(slices, names) {
  const byName = Map.groupBy(slices, (result) => `${result.evaluation}/${result.metric}`), body = h("div");
  const show = (name) => body.replaceChildren(resultTable(byName.get(name), names, "slice", rangeOf(byName.get(name))));
  const sure = (same) => same.filter((result) => result.verdict).length;
  const choice = h("select", { "aria-label": "Result", "data-slices": true, onchange: (event) => show(event.target.value) },
    [...byName].map(([name, same]) => h("option", { value: name }, `${name}: ${sure(same)} of ${same.length} slices ${sure(same) === 1 ? "differs" : "differ"} surely`)));
  show(choice.value);
  return h("div", { class: "card" }, h("div", { class: "cardhead", style: { "align-items": "center", "flex-wrap": "wrap", "margin-bottom": "8px" } }, h("h3", null, "By slice"), choice), body);
}

function changesCard(changes, names) {
  const tags = [...new Set(changes.flatMap((change) => Object.keys(change.tags)))];
  const rows = changes.map((change) => [change.evaluation, change.example, ...tags.map((tag) => change.tags[tag] ?? "–"), change.first, change.second, signed(change.change)]);
  const pictures = changes.flatMap((change) => change.figures.map((address, side) => (address ? [`example ${change.example} · ${names[side]} · ${change.metric} ${number(side ? change.second : change.first)}`, address] : null))).filter(Boolean);
  return card("Examples that changed most", `by ${[...new Set(changes.map((change) => change.metric))].join(", ")}`,
    pictures.length ? h("div", { class: "figures", style: { "margin-bottom": "12px" } }, figures(pictures)) : null,
    table(["evaluation", "example", ...tags, ...names, "change"], rows, { tall: true }));
}

function comparisonSections() {
  const found = data.comparison;
  if (!found) return [];
  const differences = found.differences.map(([part, ...rows]) => card(`Different ${part}`, null,
    scroller(true, h("table", { class: "fit" },
      h("thead", null, h("tr", null, head(""), found.variants.map((name) => h("th", null, name)))),
      h("tbody", null, rows.map(([name, values]) => h("tr", null, h("td", { class: "name mono" }, name), values.map((value) => h("td", { class: "text mono" }, value)))))))));
  if (!found.differences.length && found.variants.length) differences.push(h("p", { class: "muted" }, "No setting, code, data or environment differs."));
  const cards = found.variants.slice(1).flatMap((_, order) => variantCards(found, order + 1));
  const notes = [...found.meanings, ...found.notes];
  return [
    section("comparison", "Comparison", null,
      h("p", { class: "note" }, `Each difference is the second of the two columns minus the first. Intervals hold the true difference 95 times of 100. Sure: p below ${found.level ?? 0.05}; of slices, after the correction of Holm for their number.`),
      h("div", { class: "stack" }, cards, notes.length ? h("div", { class: "card small" }, h("ul", { style: { margin: "0", "padding-left": "18px" } }, notes.map((note) => h("li", null, note)))) : null)),
    section("differences", "Differences", null, h("div", { class: "stack" }, parallelCard(), differences)),
  ];
}
