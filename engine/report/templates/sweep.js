// A sweep: its best trial, the table of all trials, each setting against the metric, and what matters.
const PILLS = { complete: "done", pruned: "preempted", running: "training", failed: "failed", "out of memory": "failed" };

// The place of each value of a setting between 0 and 1, and the labels of its axis.
function settingScale(name, log, values) {
  const known = values.filter((value) => value !== null);
  if (known.length && known.every((value) => typeof value === "number")) {
    const low = Math.min(...known), high = Math.max(...known), warp = log ? Math.log : (value) => value;
    const part = (value) => (high === low ? 0.5 : (warp(value) - warp(low)) / (warp(high) - warp(low)));
    return { part, ticks: (high === low ? [low] : [low, high]).map((value) => [part(value), short(value)]) };
  }
  const all = [...new Set(known.map(String))];
  const part = (value) => (all.indexOf(String(value)) + 0.5) / all.length;
  return { part, ticks: all.slice(0, 8).map((value) => [part(value), value.length > 14 ? `${value.slice(0, 13)}…` : value]) };
}

// Each trial that has the setting and a value of the metric is a point; pruned trials are hollow.
function scatter(name, log, at) {
  const rows = data.sweep.rows.filter((row) => row.values[at] !== null && row.value !== null);
  if (!rows.length) return null;
  const width = 400, height = 210, left = 62, right = 14, top = 10, bottom = 36;
  const ends = rows.flatMap((row) => [row.value, row.low ?? row.value, row.high ?? row.value]);
  const lowest = Math.min(...ends), highest = Math.max(...ends), span = highest - lowest || 1;
  const scale = settingScale(name, log, rows.map((row) => row.values[at]));
  const x = (value) => left + 8 + (width - left - right - 16) * scale.part(value), y = (value) => height - bottom - 6 - ((height - top - bottom - 12) * (value - lowest)) / span;
  const share = data.sweep.importance.find(([other]) => other === name)?.[1];
  return card(name, share === undefined ? null : `importance ${percent(share)}`, s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${name} and ${data.sweep.metric}`, "data-scatter": name },
    (highest > lowest ? [lowest, highest] : [lowest]).map((value) => [
      s("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), style: { stroke: "var(--grid)" } }),
      s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, short(value))]),
    scale.ticks.map(([part, label]) => s("text", { x: left + 8 + (width - left - right - 16) * part, y: height - bottom + 15, "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle" }, label)),
    rows.map((row) => [
      row.low === null ? null : s("line", { x1: x(row.values[at]), x2: x(row.values[at]), y1: y(row.low), y2: y(row.high), style: { stroke: "var(--s0)", "stroke-width": "1.5" } }),
      s("circle", { cx: x(row.values[at]), cy: y(row.value), r: row.rank === 1 ? 5.5 : 4, onclick: () => { if (row.run !== null) select(row.run); },
        style: { fill: row.state === "complete" ? (row.rank === 1 ? "var(--good)" : "var(--s0)") : "var(--card)", stroke: row.rank === 1 ? "var(--good)" : "var(--s0)", "stroke-width": "1.5", cursor: "pointer" } },
      s("title", null, `trial ${row.number}, ${row.state}: ${name.split(".").pop()} ${number(row.values[at])}, ${data.sweep.metric} ${number(row.value)}`))]),
    s("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, `${name.split(".").pop()}${log ? " (log)" : ""} → ${data.sweep.metric}`)));
}

function trialsTable() {
  const sweep = data.sweep, seeds = sweep.rows.some((row) => row.low !== null);
  const heads = ["rank", "trial", "state", sweep.metric, ...(seeds ? ["95 % interval", "seeds"] : []), "steps", ...sweep.names, ""];
  const rows = sweep.rows.map((row) => [
    row.rank, row.number, h("span", { class: `pill ${PILLS[row.state] ?? ""}` }, row.state), row.value,
    ...(seeds ? [row.low === null ? "" : `${number(row.low)} to ${number(row.high)}`, row.seeds || null] : []), row.steps, ...row.values, row.problem]);
  return card("Trials", `${data.sweep.rows.length}, the best first`, table(heads, rows, { tall: true }));
}

function importanceCard() {
  const { importance, importanceNote } = data.sweep;
  const bars = importance.map(([name, share]) => h("tr", null, h("td", { class: "name mono" }, name), h("td", { class: "number" }, percent(share)),
    h("td", { style: { width: "50%" } }, s("svg", { viewBox: "0 0 200 8", "aria-hidden": "true", style: { width: "100%" } }, s("rect", { x: 0, y: 0, height: 8, width: 200 * share, rx: 2, style: { fill: "var(--accent)" } })))));
  return card("Importance of settings", importanceNote, bars.length ? h("table", null, h("tbody", null, bars)) : h("p", { class: "muted" }, "None yet."));
}

function sweepSection() {
  if (!data.sweep) return null;
  const { tiles, names, logs, note } = data.sweep;
  return section("sweep", "Sweep", null, note ? h("p", { class: "note" }, note) : null, h("div", { class: "stack" },
    h("div", { class: "tiles" }, tiles.map(([label, value, under]) => h("div", { class: "tile" },
      h("div", { class: "label" }, label), h("div", { class: "value" }, value), h("div", { class: "under" }, under || "\u00a0")))),
    trialsTable(), importanceCard(), h("div", { class: "grid" }, names.map((name, at) => scatter(name, logs[at], at))), data.runs.length > 1 ? parallelCard() : null));
}
