// Several runs: their table, and what the comparison found.
let drawRuns = () => {};

function runsSection() {
  const body = h("tbody");
  const tint = (index) => variable(state.bands ? data.groups.findIndex((group) => group.runs.includes(index)) : index);
  drawRuns = () => body.replaceChildren(...data.runs.map((run, index) => h("tr", {
    class: `pick ${index === state.selected ? "chosen" : ""}`, "data-run": run.name, onclick: () => select(index),
  },
  h("td", null, h("input", {
    type: "checkbox", checked: !state.hidden.has(index), "aria-label": `Show ${run.name}`, onclick: (event) => event.stopPropagation(),
    onchange: (event) => { if (event.target.checked) state.hidden.delete(index); else state.hidden.add(index); rebuild(); drawParallel(); },
  })),
  h("td", { class: "name" }, h("span", { class: "key", style: { color: "inherit" } }, h("span", { class: "swatch box", style: { "--color": tint(index) } }), run.name)),
  h("td", null, h("span", { class: `pill ${run.state}` }, run.state)),
  h("td", { class: "number" }, `${number(run.step)}${run.total ? ` / ${number(run.total)}` : ""}`),
  data.columns.map((name) => h("td", { class: "number" }, number(run.metrics[name] ?? null))),
  data.settings.slice(0, 6).map(([, values]) => h("td", { class: typeof values[index] === "number" ? "number" : "text" }, number(values[index]))))));
  const heads = ["", "run", "state", "step", ...data.columns, ...data.settings.slice(0, 6).map(([name]) => name)];
  return section("overview", "Runs", null,
    h("div", { class: "card" }, h("div", { class: "scroll tall" }, h("table", null, h("thead", null, h("tr", null, heads.map((name, at) =>
      h("th", { class: at === 3 || (at > 3 && at < 4 + data.columns.length) ? "number" : null }, name)))), body)),
    h("p", { class: "muted small", style: { "margin-top": "8px" } }, "Click a run to choose it: marks on the curves and the sections below show the chosen run. The boxes hide runs.")));
}
let drawParallel = () => {};
function comparisonSections() { return []; }
