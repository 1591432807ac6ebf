// Puts the sections together.
function themeButton() {
  const names = ["auto", "light", "dark"], texts = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" };
  let theme = saved("convoy-report-theme") ?? "auto";
  const apply = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = theme;
    button.textContent = texts[theme];
    redraw();
  };
  const button = h("button", { type: "button", class: "button", id: "theme", onclick: () => { theme = names[(names.indexOf(theme) + 1) % 3]; save("convoy-report-theme", theme); apply(); } });
  apply();
  return button;
}

function subtitle(run) {
  const steps = `step ${number(run.step)}${run.total ? ` of ${number(run.total)}` : ""}`;
  const began = run.started ? `attempt ${run.attempt} started ${run.started.slice(0, 16).replace("T", " ")} UTC` : "";
  return [steps, began, run.path].filter(Boolean).join("  ·  ");
}

function header() {
  const single = data.runs.length === 1, run = data.runs[0];
  return h("header", { class: "top" }, h("div", null,
    h("div", { class: "brand" }, h("span", null, data.sweep ? "Convoy sweep" : data.focus === "comparison" ? "Convoy comparison" : "Convoy report"), themeButton()),
    h("div", { class: "title" }, h("h1", null, data.title), single ? h("span", { class: `pill ${run.state}` }, run.state) : null),
    h("p", { class: "subtitle" }, single ? subtitle(run) : `${data.runs.length} runs${data.groups.length < data.runs.length ? ` in ${data.groups.length} groups of seeds` : ""}`),
    single && run.slowest ? h("p", { class: "subtitle" }, run.slowest) : null));
}

function overview() {
  if (data.runs.length > 1) return runsSection();
  const tiles = data.runs[0].tiles.map(([label, value, under]) => h("div", { class: "tile" },
    h("div", { class: "label" }, label), h("div", { class: "value" }, value), h("div", { class: "under" }, under || "\u00a0")));
  return h("section", { id: "overview", "data-title": "Overview", style: { "margin-top": "22px" } }, h("div", { class: "tiles" }, tiles));
}

function navigation(sections) {
  const links = sections.map((each) => h("a", { href: `#${each.id}` }, each.dataset.title));
  const mark = () => {
    const here = sections.filter((each) => each.getBoundingClientRect().top < 120).length - 1;
    links.forEach((link, order) => link.classList.toggle("here", order === Math.max(0, here)));
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
  return h("nav", { "aria-label": "Sections" }, h("div", null, links));
}

function footer() {
  return h("footer", null, `Written ${data.made.slice(0, 16).replace("T", " ")} UTC by Convoy ${data.version}. Charts: uPlot ${data.library.version}, `,
    "© Leon Sorokin, MIT licence. Long curves keep the smallest and the largest value of each interval of steps.");
}

function printing() {
  let before = null;
  addEventListener("beforeprint", () => {
    before = document.documentElement.dataset.theme ?? "";
    document.documentElement.dataset.theme = "light";
    resolved = new Map();
    for (const chart of charts) {
      if (!chart.element.isConnected) continue;
      if (!chart.seen) { chart.seen = true; chart.build(); }
      chart.u?.setSize({ width: 330, height: chart.height });
    }
    redraw();
  });
  addEventListener("afterprint", () => {
    if (before) document.documentElement.dataset.theme = before; else delete document.documentElement.dataset.theme;
    for (const chart of charts) chart.u?.setSize({ width: chart.plot.clientWidth, height: chart.height });
    redraw();
  });
}

const warnings = detail("warnings", "Warnings", null, warningsOf);
const sections = [
  sweepSection(),
  overview(),
  ...(data.runs.length > 1 ? [...comparisonSections(), warnings] : [warnings]),
  curvesSection(),
  layersSection(),
  costSection(),
  detail("slices", "Slices", null, slicesOf),
  detail("worst", "Examples", null, worstOf),
  detail("results", "Tables and figures", null, resultsOf),
  detail("lineage", "Lineage", null, lineageOf),
  detail("settings", "Settings", null, settingsOf),
].filter(Boolean);
details.forEach((draw) => draw());
document.getElementById("report").append(header(), navigation(sections), h("main", null, sections, footer()));
dispatchEvent(new Event("scroll"));
drawRuns();
drawParallel();
resizer.observe(document.body);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
printing();
// What scripts of a reader, and the tests, may ask.
const chartAt = (selector) => [...charts].find((chart) => chart.element.matches(selector));
window.convoyReport = {
  data,
  range: (selector) => { const { min, max } = chartAt(selector).u.scales.x; return [min, max]; },
  shown: (selector) => chartAt(selector).lines.filter((line) => !chartAt(selector).off.has(line.label)).map((line) => line.label),
};
document.documentElement.dataset.ready = "true";
