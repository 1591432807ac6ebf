// What is shown of the chosen run: slices, results, worst examples, settings, environment.
const details = [];  // functions that draw the parts of the chosen run again
const chosen = () => data.runs[state.selected];

function section(id, title, head, ...children) {
  return h("section", { id, "data-title": title }, h("div", { class: "head" }, h("h2", null, title), head), ...children);
}

// Says whose details a section shows; a choice if there are several runs.
function whose() {
  if (data.runs.length < 2) return null;
  const choice = h("select", { class: "whose", "aria-label": "Run", onchange: (event) => select(Number(event.target.value)) },
    data.runs.map((run, index) => h("option", { value: index }, run.name)));
  details.push(() => { choice.value = String(state.selected); });
  return choice;
}

function select(index) {
  state.selected = index;
  details.forEach((draw) => draw());
  document.querySelectorAll(".chosenname").forEach((element) => { element.textContent = chosen().name; });
  drawRuns();
  redraw();
}

// A section of the chosen run, hidden where the run has nothing to show.
function detail(id, title, note, draw) {
  if (!data.runs.some((run) => draw(run).length)) return null;
  const body = h("div", { class: "stack" }), none = h("p", { class: "muted" }, "This run has none.");
  details.push(() => {
    const cards = draw(chosen());
    body.replaceChildren(...(cards.length ? cards : [none]));
  });
  return section(id, title, [whose()], note ? h("p", { class: "note" }, note) : null, body);
}

function cellBar(value, whole, range) {
  if (value === null || whole === null || !range) return null;
  const x = 32 + (31 * (value - whole)) / range;
  return s("svg", { class: "cellbar", viewBox: "0 0 64 8", "aria-hidden": "true" },
    s("line", { x1: 32, x2: 32, y1: 0, y2: 8, style: { stroke: "var(--muted)" } }),
    s("rect", { x: Math.min(x, 32), width: Math.abs(x - 32), y: 1.5, height: 5, rx: 1, style: { fill: "var(--accent)" } }));
}

function slicesOf(run) {
  return run.slices.map((found) => {
    let order = null, down = false;
    const body = h("tbody");
    const range = found.metrics.map((_, at) => Math.max(...found.rows.map((row) => Math.abs((row[2 + at] ?? found.whole[at]) - found.whole[at]))));
    const row = (cells, isWhole) => h("tr", { class: isWhole ? "whole" : null }, h("td", { class: "name" }, cells[0]), h("td", { class: "number" }, number(cells[1])),
      cells.slice(2).map((value, at) => h("td", { class: "number" }, number(value), isWhole ? h("span", { class: "cellbar" }) : cellBar(value, found.whole[at], range[at]))));
    const show = () => {
      const rows = [...found.rows];
      if (order !== null) rows.sort((a, b) => (typeof a[order] === "string" ? a[order].localeCompare(b[order]) : a[order] - b[order]) * (down ? -1 : 1));
      body.replaceChildren(row(["all examples", null, ...found.whole], true), ...rows.map((cells) => row(cells, false)));
    };
    const heads = ["slice", "examples", ...found.metrics].map((name, at) => h("th", { class: at ? "number" : null },
      h("button", { type: "button", class: "sorter", title: "Sort", onclick: () => { down = order === at && !down; order = at; show(); } }, name)));
    show();
    return card(`${found.evaluation} by slice`, `step ${number(found.step)}; bars: difference from all examples`,
      scroller(true, h("table", null, h("thead", null, h("tr", null, heads)), body)),
      found.more ? h("p", { class: "muted small" }, `${found.more} more slices are in metrics.jsonl.`) : null);
  });
}

// A small chart of points or of bars, as SVG: results have few points.
function miniature(result) {
  const width = 400, height = 190, left = 46, right = 8, top = 8, bottom = 34;
  const isBars = result.kind === "histogram";
  const xs = isBars ? result.edges : result.x, ys = isBars ? [0, ...result.counts] : result.y;
  const span = (values) => { const low = Math.min(...values), high = Math.max(...values); return low === high ? [low - 0.5, high + 0.5] : [low, high]; };
  const [x0, x1] = span(xs), [y0, y1] = span(ys);
  const px = (x) => left + ((width - left - right) * (x - x0)) / (x1 - x0), py = (y) => height - bottom - ((height - top - bottom) * (y - y0)) / (y1 - y0);
  const ticks = [0, 0.5, 1];
  return s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": result.name },
    ticks.map((part) => [
      s("line", { x1: left, x2: width - right, y1: py(y0 + part * (y1 - y0)), y2: py(y0 + part * (y1 - y0)), style: { stroke: "var(--grid)" } }),
      s("text", { x: left - 6, y: py(y0 + part * (y1 - y0)) + 4, "text-anchor": "end" }, short(y0 + part * (y1 - y0))),
      s("text", { x: px(x0 + part * (x1 - x0)), y: height - bottom + 15, "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle" }, short(x0 + part * (x1 - x0)))]),
    isBars
      ? result.counts.map((count, at) => s("rect", { x: px(xs[at]) + 0.5, width: Math.max(0.5, px(xs[at + 1]) - px(xs[at]) - 1), y: py(count), height: Math.max(0, py(y0) - py(count)), style: { fill: "var(--s0)" } },
          s("title", null, `${number(xs[at])} to ${number(xs[at + 1])}: ${number(count)}`)))
      : s("path", { d: xs.map((x, at) => `${at ? "L" : "M"}${px(x).toFixed(1)} ${py(ys[at]).toFixed(1)}`).join(""), style: { fill: "none", stroke: "var(--s0)", "stroke-width": "2" } }),
    s("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, isBars ? "" : `${result.xName} → ${result.yName}`));
}

function matrix(rows) {
  const highest = Math.max(...rows.flat().map(Math.abs)) || 1;
  return scroller(true, h("table", { class: "matrix" }, h("tbody", null, rows.map((row) => h("tr", null, row.map((value) =>
    h("td", { class: "number", style: { background: `color-mix(in srgb, var(--accent) ${Math.round((55 * Math.abs(value)) / highest)}%, transparent)` } }, number(value))))))));
}

function resultsOf(run) {
  const cards = run.results.map((result) => {
    const under = `step ${number(result.step)}`;
    if (result.kind === "matrix") return card(result.name, under, matrix(result.rows));
    if (result.kind === "table") {
      const more = result.more ? h("p", { class: "muted small" }, `${result.more} more rows are in metrics.jsonl.`) : null;
      return card(result.name, under, table(result.columns, result.rows, { tall: true }), more);
    }
    const rows = result.kind === "curve" ? table([result.xName, result.yName], result.x.map((x, at) => [x, result.y[at]]), { tall: true }) : null;
    return card(result.name, under, miniature(result), rows ? h("details", null, h("summary", null, "as a table"), rows) : null);
  });
  const pictures = run.images.length ? [card("Images", null, h("div", { class: "figures" }, figures(run.images.map((image) => [image.name, image.src]))))] : [];
  return cards.length ? [h("div", { class: "grid" }, cards), ...pictures] : pictures;
}

function figures(all) {
  return all.map(([title, address], order) => h("button", { type: "button", class: "figure", onclick: () => openFigure(all, order) },
    h("img", { src: address, alt: "", loading: "lazy" }), h("span", null, title)));
}

function openFigure(all, order) {
  const image = h("img", { alt: "" }), title = h("h3"), place = h("span", { class: "muted small" });
  const step = (by) => { order = (order + by + all.length) % all.length; show(); };
  const show = () => {
    image.src = all[order][1];
    image.alt = title.textContent = all[order][0];
    place.textContent = `${order + 1} of ${all.length}`;
  };
  const button = (text, run) => h("button", { type: "button", class: "button", onclick: run }, text);
  const dialog = h("dialog", { onclose: () => dialog.remove(), onclick: (event) => { if (event.target === dialog) dialog.close(); },
    onkeydown: (event) => { if (event.key === "ArrowRight") step(1); if (event.key === "ArrowLeft") step(-1); } },
  h("div", { class: "head" }, title, place, h("span", { class: "spacer" }), all.length > 1 ? [button("Previous", () => step(-1)), button("Next", () => step(1))] : null, button("Close", () => dialog.close())), image);
  document.body.append(dialog);
  show();
  dialog.showModal();
}

function worstOf(run) {
  return run.worst.map((found) => {
    const score = new Map((found.table?.rows ?? []).map((row) => [row[0], row[1]]));
    const name = found.table?.columns[1];
    const all = found.figures.map(([example, address]) => [score.has(example) ? `example ${example} · ${name} ${number(score.get(example))}` : `example ${example}`, address]);
    return card(found.table ? `${found.evaluation}: worst examples` : `${found.evaluation}: examples`, `step ${number(found.step)}`,
      all.length ? h("div", { class: "figures" }, figures(all)) : null,
      found.table ? h("div", { style: all.length ? { "margin-top": "12px" } : {} }, table(found.table.columns, found.table.rows, { tall: true })) : null);
  });
}

function settingsOf(run) {
  if (!run.settings.length) return [];
  const body = h("tbody"), parent = run.parent?.known;
  const isChanged = ([, value, before]) => before !== value, isNew = ([, value, , before]) => parent && before !== value;
  let only = "changed", query = "";
  const show = () => {
    const found = run.settings.filter((setting) => (only === "all" || (only === "changed" ? isChanged(setting) : isNew(setting))) && setting[0].toLowerCase().includes(query));
    body.replaceChildren(...found.map((setting) => h("tr", null, h("td", { class: "name mono" }, setting[0]),
      h("td", { class: "text mono" }, h("span", { class: isChanged(setting) ? "changed" : null }, setting[1]), isChanged(setting) && setting[2] !== null && setting[2] !== "''" ? h("span", { class: "was" }, `default ${setting[2]}`) : null),
      parent ? h("td", { class: "text mono" }, isNew(setting) ? setting[3] ?? "not set" : h("span", { class: "muted" }, "the same")) : null)));
    if (!found.length) body.append(h("tr", null, h("td", { class: "muted" }, "None.")));
  };
  const options = [["changed", `Not default (${run.settings.filter(isChanged).length})`], ["all", `All (${run.settings.length})`]];
  if (parent) options.splice(1, 0, ["parent", `Not as the parent (${run.settings.filter(isNew).length})`]);
  show();
  const heads = ["setting", "value", ...(parent ? [`in ${run.parent.path}`] : [])];
  const origin = run.parent ? h("p", { class: "muted small" }, `First weights from ${run.parent.path}${run.parent.known ? "" : ", whose config cannot be read here"}.`) : null;
  return [h("div", { class: "pair" },
    card("Settings", null, h("div", { class: "tools", style: { "margin-bottom": "10px" } }, segmented("Which settings", options, only, (value) => { only = value; show(); }),
      h("input", { type: "search", placeholder: "Find a setting", "aria-label": "Find a setting", oninput: (event) => { query = event.target.value.toLowerCase(); show(); } })),
    origin, scroller(true, h("table", null, h("thead", null, h("tr", null, heads.map((name) => h("th", null, name)))), body))),
    h("div", { class: "stack" },
      run.environment.length ? card("Environment", null, keys(run.environment)) : null,
      run.mesh.length ? card("Mesh", run.plan.machine || null, keys(run.mesh)) : null))];
}

function warningsOf(run) {
  if (!run.warnings.length) return [];
  const bad = run.state === "failed" || run.state === "damaged";
  return [h("div", { class: `callout ${bad ? "bad" : ""}` }, h("b", null, `${run.warnings.length} warning${run.warnings.length > 1 ? "s" : ""}`),
    h("ul", null, run.warnings.map(([time, text]) => h("li", null, time ? h("span", { class: "muted" }, `${time} `) : null, text))))];
}
