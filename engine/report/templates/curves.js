// The sections of curves: charts of results and of what the engine measured, with their tools.
const panelsOf = (section) => data.panels.filter((panel) => panel.section === section);

function segmented(label, options, current, choose) {
  const buttons = options.map(([value, text]) => h("button", {
    type: "button", "aria-pressed": String(value === current),
    onclick: (event) => {
      buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === event.currentTarget)));
      choose(value);
    },
  }, text));
  return h("span", { class: "segmented", role: "group", "aria-label": label }, buttons);
}

const resetButton = () => h("button", { type: "button", class: "button resetzoom", disabled: !state.zoom, onclick: () => zoomTo(null) }, "Reset zoom");

function markKeys() {
  const kinds = Object.keys(MARKS).filter((kind) => data.runs.some((run) => run.marks.some((mark) => mark[0] === kind)));
  const icon = (kind) => {
    const tint = MARKS[kind].colour;
    if (kind === "attempt" || kind === "rollback") return s("line", { x1: 7, x2: 7, y1: 0, y2: 14, style: { stroke: tint, "stroke-dasharray": "3 2", "stroke-width": "1.5" } });
    if (kind === "checkpoint") return s("path", { d: "M3 12L11 12L7 5Z", style: { fill: tint } });
    if (kind === "best") return s("path", { d: "M7 1l1.8 4 4.2.4-3.2 2.8 1 4.2L7 10.2 3.2 12.4l1-4.2L1 5.4 5.2 5z", style: { fill: tint } });
    return s("circle", { cx: 7, cy: 7, r: 4, style: { fill: tint } });
  };
  if (!kinds.length) return null;
  const whose = data.runs.length > 1 ? h("span", { class: "key" }, "Marks of ", h("b", { class: "chosenname" }, data.runs[state.selected].name), ":") : null;
  return h("div", { class: "keyline" }, whose, kinds.map((kind) => h("span", { class: "key" }, s("svg", { width: 14, height: 14 }, icon(kind)), MARKS[kind].label)));
}

function curvesSection() {
  const panels = panelsOf("results");
  if (!panels.length) return null;
  const grid = h("div", { class: "grid" });
  const more = h("button", { type: "button", class: "button more", onclick: () => { state.all = true; show(); } });
  const made = new Map();
  const show = () => {
    const query = state.query.toLowerCase();
    const found = panels.filter((panel) => (query ? panel.names.some((name) => name.toLowerCase().includes(query)) || panel.title.toLowerCase().includes(query) : state.all || panel.first));
    for (const panel of found) if (!made.has(panel)) made.set(panel, new Chart(panel));
    grid.replaceChildren(...found.map((panel) => made.get(panel).element));
    more.hidden = Boolean(query) || state.all || found.length === panels.length;
    more.textContent = `Show all ${panels.length} charts`;
    none.hidden = found.length > 0;
  };
  const none = h("p", { class: "muted", hidden: true }, "No curve has this name.");
  const seeds = data.groups.some((group) => group.runs.length > 1);
  const tools = h("div", { class: "tools" },
    panels.length > 6 ? h("input", { type: "search", placeholder: "Find a curve", "aria-label": "Find a curve", oninput: (event) => { state.query = event.target.value; show(); } }) : null,
    segmented("Horizontal axis", [["step", "Step"], ["time", "Time"]], state.axis, (value) => { state.axis = value; state.zoom = null; zoomTo(null); rebuild(); }),
    segmented("Vertical axis", [[false, "Linear"], [true, "Log"]], state.log, (value) => { state.log = value; rebuild(); }),
    seeds ? segmented("Seeds", [[true, "Seeds as bands"], [false, "Each run"]], state.bands, (value) => { state.bands = value; rebuild(); drawRuns(); }) : null,
    h("label", null, "Smoothing", h("input", { type: "range", min: 0, max: 98, value: 0, "aria-label": "Smoothing of training curves", oninput: (event) => { state.smooth = Number(event.target.value); rebuild(); } })),
    resetButton());
  show();
  return section("curves", "Curves", [h("span", { class: "spacer" }), tools], markKeys(), grid, none, h("div", { style: { "margin-top": "12px" } }, more));
}

function layersSection() {
  const panels = panelsOf("layers");
  if (!panels.length) return null;
  const made = panels.map((panel) => new Chart(panel, 200));
  details.push(() => made.forEach((chart) => { if (chart.seen) buildSoon(chart); }));
  return section("layers", "Layers", [whose()], h("div", { class: "grid" }, made.map((chart) => chart.element)));
}

function costSection() {
  const panels = panelsOf("cost");
  const time = h("div", { class: "stack", "data-detail": "time" });
  const grid = h("div", { class: "grid" }, panels.map((panel) => new Chart(panel, 176).element));
  details.push(() => time.replaceChildren(...timeCards(chosen())));
  return section("time", "Time and memory", [whose()], time, panels.length ? h("div", { style: { "margin-top": "14px" } }, grid) : null);
}

const KIND_COLOURS = {
  step: "var(--s2)", "data wait": "var(--s1)", evaluation: "var(--s0)", compile: "var(--s4)", init: "var(--s9)",
  restore: "var(--s5)", "save stall": "var(--s8)", lost: "var(--s3)", down: "var(--line)",
};

function stacked(parts, total) {
  return h("div", { class: "bar", role: "img", "aria-label": parts.map(([name, value]) => `${name}: ${percent(value / total)}`).join(", ") },
    parts.map(([name, value, tint, text]) => h("i", { title: `${name}: ${text}, ${percent(value / total)}`, style: { width: `${(100 * value) / total}%`, background: tint } })));
}

function partsOf(seconds, kinds) {
  const found = kinds.map((kind, order) => [kind, seconds[order], KIND_COLOURS[kind] ?? "var(--muted)", duration(seconds[order])]).filter((part) => part[1] > 0);
  return found.sort((a, b) => (b[0] === "step") - (a[0] === "step") || b[1] - a[1]);
}

function timeCards(run) {
  const cards = [], { goodput, plan } = run;
  if (goodput.wall > 0) {
    const parts = partsOf(goodput.total, goodput.kinds);
    const rows = goodput.attempts.length > 1 ? goodput.attempts.map((attempt) => {
      const sum = attempt.seconds.reduce((a, b) => a + b, 0);
      return h("div", { class: "barline" }, h("span", null, `attempt ${attempt.attempt}`), stacked(partsOf(attempt.seconds, goodput.kinds), sum || 1),
        h("span", { class: "right" }, `${duration(sum)}, ${number(attempt.steps)} steps`));
    }) : [];
    cards.push(card("How the time was spent", `goodput ${percent(goodput.share)} of ${duration(goodput.wall)}`,
      stacked(parts, parts.reduce((sum, part) => sum + part[1], 0)),
      h("div", { class: "keyline", style: { margin: "10px 0 0" } }, parts.map(([name, value, tint, text]) =>
        h("span", { class: "key" }, h("span", { class: "swatch box", style: { "--color": tint } }), `${name} ${text} (${percent(value / goodput.wall)})`))),
      goodput.earlier ? h("p", { class: "muted small" }, `${goodput.earlier} earlier attempts are in the sum.`) : null,
      rows,
      goodput.slow.length ? h("div", { style: { "margin-top": "12px" } }, table(["slow process", "waits for", "seconds lost"], goodput.slow)) : null));
  }
  const pair = [];
  const shares = (parts, unit) => {
    const total = parts.reduce((sum, part) => sum + part[1], 0);
    return parts.map(([name, value], order) => [name, value, variable(order), unit(value), total]);
  };
  const broken = (title, parts, unit, under) => {
    const shown = shares(parts, unit), total = shown[0][4];
    return card(title, under, stacked(shown, total), h("div", { class: "keyline", style: { margin: "10px 0 0" } },
      shown.map(([name, value, tint, text]) => h("span", { class: "key" }, h("span", { class: "swatch box", style: { "--color": tint } }), `${name} ${text}`))));
  };
  if (plan.step?.parts.length) {
    const measured = plan.step.measured ? `, measured ${duration(plan.step.measured)}` : "";
    const total = plan.step.parts.reduce((sum, part) => sum + part[1], 0);
    pair.push(broken("Step time by part", plan.step.parts, duration, `predicted ${duration(total)}${measured}`));
  }
  if (plan.memory?.parts.length) {
    const measured = plan.memory.peak ?? plan.memory.compiled;
    const total = plan.memory.parts.reduce((sum, part) => sum + part[1], 0);
    pair.push(broken("Memory of a device by part", plan.memory.parts, bytes, `predicted ${bytes(total)}${measured ? `, ${plan.memory.peak ? "measured peak" : "compiled program"} ${bytes(measured)}` : ""}`));
  }
  if (pair.length) cards.push(h("div", { class: "pair" }, pair));
  return cards;
}
