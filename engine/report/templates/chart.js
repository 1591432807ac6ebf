// One chart of curves: zoom by dragging, hiding by the legend, marks of what happened to the chosen run.
const state = {
  axis: "step", log: false, smooth: 0, zoom: null, bands: data.groups.some((group) => group.runs.length > 1),
  hidden: new Set(), selected: 0, marks: true, query: "", all: false,
};
const charts = new Set();

function decoded(curve) {
  if (!curve.x) {
    let step = 0;
    curve.x = Float64Array.from(curve.s, (difference) => (step += difference));
    curve.y = curve.v;
  }
  return curve;
}

// The value of a curve at x, by the straight line between its points; null outside of them.
function at(xs, ys, x) {
  let low = 0, high = xs.length - 1;
  if (high < 0 || x < xs[0] || x > xs[high]) return null;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle; else high = middle;
  }
  if (xs[high] === x || high === low) return ys[high];
  if (xs[low] === x) return ys[low];
  return ys[low] + ((ys[high] - ys[low]) * (x - xs[low])) / (xs[high] - xs[low]);
}

function timeOf(run, step) {
  const clock = decoded(run.clock);
  if (!clock.x.length) return null;
  const inside = Math.min(Math.max(step, clock.x[0]), clock.x[clock.x.length - 1]);
  return at(clock.x, clock.y, inside);
}

function points(run, name) {
  const curve = decoded(run.curves[name]);
  return { x: state.axis === "step" ? curve.x : Float64Array.from(curve.x, (step) => timeOf(run, step)), y: curve.y };
}

// Exponential moving average that starts without a bias, as TensorBoard's.
function smoothed(values) {
  const weight = state.smooth / 100;
  let sum = 0, total = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

// With several runs, colours tell runs apart and dashes the curves of a run; training is thinner than evaluations.
const DASHES = [undefined, [5, 4], [2, 3], [9, 4, 2, 4]];

const isTraining = (name) => name.startsWith("training/");
const sourceOf = (name) => name.split("/")[0];

// The lines of a chart: of each visible run, or of each group of seeds their mean with a band.
function linesOf(panel) {
  const lines = [], several = data.runs.length > 1;
  const evaluations = panel.section === "results" ? panel.names.filter((name) => !isTraining(name)) : panel.names;
  const dashOf = (name) => {
    if (!several || panel.names.length === 1) return 0;
    const order = evaluations.indexOf(name);
    return order < 0 ? 1 : panel.section === "results" && order > 0 ? (order + 1) % DASHES.length : order % DASHES.length;
  };
  const names = panel.names.map((name) => ({ name, label: panel.labels?.[name] ?? sourceOf(name) }));
  const label = (owner, name) => [several ? owner : null, panel.names.length > 1 || !several ? name.label : null].filter(Boolean).join(" · ");
  if (panel.section === "layers") return layersOf(panel);
  for (const [index, group] of data.groups.entries()) {
    const members = group.runs.filter((run) => !state.hidden.has(run));
    for (const [order, name] of names.entries()) {
      const having = members.filter((run) => data.runs[run].curves[name.name]);
      const dash = dashOf(name.name);
      if (state.bands && group.runs.length > 1 && having.length > 1) {
        lines.push({ ...bandOf(having, name.name), label: label(group.label, name), colour: variable(index), dash });
        continue;
      }
      for (const run of having) {
        const { x, y } = points(data.runs[run], name.name);
        const tint = several ? (state.bands ? index : run) : order;
        lines.push({
          x, y: state.smooth && isTraining(name.name) ? smoothed(y) : y, raw: state.smooth && isTraining(name.name) ? y : null,
          label: label(data.runs[run].name, name), colour: variable(tint), dash, dots: !isTraining(name.name),
        });
      }
    }
  }
  return lines;
}

// The layers of the chosen run: more lines than colours, so later ones are dashed.
function layersOf(panel) {
  const run = chosen();
  return panel.names.filter((name) => run.curves[name]).map((name, order) => ({
    ...points(run, name), label: panel.labels[name], colour: variable(order), dash: Math.floor(order / COLOURS) % DASHES.length, dots: true,
  }));
}

// All steps of several curves, sorted, each once.
function union(members) {
  const all = new Float64Array(members.reduce((sum, member) => sum + member.x.length, 0));
  let place = 0, kept = 0;
  for (const member of members) { all.set(member.x, place); place += member.x.length; }
  all.sort();
  for (let each = 0; each < all.length; each++) if (!each || all[each] !== all[each - 1]) all[kept++] = all[each];
  return all.subarray(0, kept);
}

// Mean, smallest and largest value of several curves, where all of them have one: on the lines between their points.
function bandOf(runs, name) {
  const members = runs.map((run) => points(data.runs[run], name)), places = members.map(() => 0);
  const x = [], y = [], low = [], high = [];
  for (const each of union(members)) {
    let sum = 0, least = Infinity, most = -Infinity, count = 0;
    for (let member = 0; member < members.length; member++) {
      const { x: xs, y: ys } = members[member];
      let place = places[member];
      while (place + 1 < xs.length && xs[place + 1] <= each) place++;
      places[member] = place;
      if (each < xs[0] || each > xs[xs.length - 1]) continue;
      const last = place + 1 >= xs.length || xs[place] === each;
      const value = last ? ys[place] : ys[place] + ((ys[place + 1] - ys[place]) * (each - xs[place])) / (xs[place + 1] - xs[place]);
      sum += value;
      if (value < least) least = value;
      if (value > most) most = value;
      count++;
    }
    if (count < members.length) continue;
    x.push(each);
    y.push(sum / count);
    low.push(least);
    high.push(most);
  }
  return { x, y: state.smooth && isTraining(name) ? smoothed(y) : y, low, high, dots: !isTraining(name), count: members.length };
}

const MARKS = {
  attempt: { label: "new attempt", colour: "var(--muted)" },
  rollback: { label: "rollback", colour: "var(--bad)" },
  checkpoint: { label: "stored checkpoint", colour: "var(--muted)" },
  best: { label: "best checkpoint", colour: "var(--good)" },
  slow: { label: "slow process", colour: "var(--warn)" },
};

function shape(kind, x, top, bottom, size) {
  const path = new Path2D();
  if (kind === "attempt" || kind === "rollback") {
    path.moveTo(x, top);
    path.lineTo(x, bottom);
  } else if (kind === "checkpoint") {
    path.moveTo(x - size, bottom);
    path.lineTo(x + size, bottom);
    path.lineTo(x, bottom - 1.7 * size);
    path.closePath();
  } else if (kind === "best") {
    for (let point = 0; point < 10; point++) {
      const radius = point % 2 ? 0.65 * size : 1.6 * size, angle = (Math.PI * point) / 5 - Math.PI / 2;
      path.lineTo(x + radius * Math.cos(angle), top + 1.7 * size + radius * Math.sin(angle));
    }
    path.closePath();
  } else {
    path.arc(x, top + 1.2 * size, 0.9 * size, 0, 2 * Math.PI);
  }
  return path;
}

function markX(run, mark) {
  return state.axis === "step" ? mark[1] : timeOf(run, mark[1]);
}

function drawMarks(u) {
  if (!state.marks || state.hidden.has(state.selected)) return;
  const run = data.runs[state.selected], { left, top, width, height } = u.bbox, ratio = devicePixelRatio;
  u.ctx.save();
  for (const mark of run.marks) {
    const value = markX(run, mark);
    if (value === null) continue;
    const x = u.valToPos(value, "x", true);
    if (x < left - 1 || x > left + width + 1) continue;
    const path = shape(mark[0], x, top, top + height, 3.6 * ratio), tint = colour(MARKS[mark[0]].colour);
    if (mark[0] === "attempt" || mark[0] === "rollback") {
      u.ctx.setLineDash([4 * ratio, 3 * ratio]);
      u.ctx.lineWidth = ratio;
      u.ctx.strokeStyle = tint;
      u.ctx.stroke(path);
    } else {
      u.ctx.fillStyle = tint;
      u.ctx.fill(path);
    }
  }
  u.ctx.restore();
}

function markTextAt(u, left) {
  if (!state.marks || left < 0) return "";
  const run = data.runs[state.selected];
  const near = run.marks.filter((mark) => {
    const value = markX(run, mark);
    return value !== null && Math.abs(u.valToPos(value, "x") - left) < 6;
  });
  return near.slice(0, 3).map((mark) => mark[2]).join(" · ");
}

class Chart {
  constructor(panel, height = 216) {
    this.panel = panel;
    this.height = height;
    this.off = new Set();
    this.plot = h("div", { class: "plot", style: { height: `${height}px` } });
    this.caption = h("span", { class: "muted" }, panel.unit ?? "");
    this.legend = h("div", { class: "legend" });
    this.element = h("div", { class: "card chart", "data-chart": panel.title },
      h("div", { class: "cardhead" }, h("h3", null, panel.title), this.caption), this.plot, this.legend);
    this.u = null;
    charts.add(this);
    watcher.observe(this.element);
  }

  build() {
    this.u?.destroy();
    const lines = (this.lines = linesOf(this.panel).filter((line) => line.x.length));
    this.hasData = lines.length > 0;
    this.element.hidden = !this.hasData;
    if (!this.hasData) return (this.u = null);
    const positive = (ys) => (state.log ? Array.from(ys, (value) => (value > 0 ? value : null)) : ys);
    const series = [{}], tables = [], bands = [];
    lines.forEach((line) => {
      const shown = !this.off.has(line.label), xs = Array.from(line.x), columns = [xs];
      tables.push(columns);
      const add = (ys, options) => { columns.push(positive(ys)); series.push({ show: shown, spanGaps: true, points: { show: false }, ...options }); return series.length - 1; };
      line.parts = [];
      if (line.low) {
        const high = add(line.high, { stroke: "transparent", width: 0 }), low = add(line.low, { stroke: "transparent", width: 0 });
        bands.push({ series: [high, low], fill: () => faint(line.colour, 0.18) });
        line.parts.push(high, low);
      }
      if (line.raw) line.parts.push(add(line.raw, { stroke: () => faint(line.colour, 0.28), width: 1 }));
      line.main = add(line.y, {
        stroke: () => colour(line.colour), width: line.dash ? 1.4 : 1.9, dash: DASHES[line.dash],
        points: { show: xs.length < 3 || (line.dots && xs.length <= 60), size: 5, fill: () => colour(line.colour) },
      });
      line.parts.push(line.main);
    });
    const font = '11.5px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
    const axis = { stroke: () => colour("var(--muted)"), font, grid: { stroke: () => colour("var(--grid)"), width: 1 }, ticks: { show: false } };
    const label = (value) => (value === null ? "" : state.axis === "step" ? short(value) : duration(value));
    const reset = () => () => { zoomTo(null); return null; };
    const options = {
      width: this.plot.clientWidth || 360, height: this.height, padding: [10, 8, 0, 0], legend: { show: false }, bands, series,
      scales: {
        x: { time: false, range: (u, low, high) => state.zoom ?? (low === high ? [low - 1, high + 1] : [low, high]) },
        y: state.log ? { distr: 3 } : { range: (u, low, high) => padded(low, high) },
      },
      axes: [
        { ...axis, size: 28, gap: 4, space: 64, values: (u, values) => values.map(label) },
        { ...axis, size: 52, gap: 6, space: 34, values: (u, values) => values.map((value) => (value === null ? "" : short(value))) },
      ],
      cursor: {
        sync: { key: "report", setSeries: false }, points: { size: 7 }, y: false,
        drag: { x: true, y: false, setScale: false }, bind: { dblclick: reset },
      },
      hooks: { draw: [drawMarks], setCursor: [(u) => this.read(u)], setSelect: [(u) => this.zoom(u)] },
    };
    const joined = uPlot.join(tables);
    this.plot.replaceChildren();
    this.u = new uPlot(options, joined, this.plot);
    this.drawLegend();
  }

  zoom(u) {
    const { left, width } = u.select;
    if (width < 4) return;
    const range = [u.posToVal(left, "x"), u.posToVal(left + width, "x")];
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    zoomTo(range);
  }

  drawLegend() {
    this.values = [];
    this.legend.replaceChildren(...this.lines.map((line) => {
      const value = h("span", { class: "at" });
      this.values.push(value);
      const title = line.count ? `${line.label}: mean of ${line.count} runs; the band is their range` : line.label;
      return h("button", {
        type: "button", "aria-pressed": String(!this.off.has(line.label)), title, style: { "--color": line.colour },
        onclick: (event) => this.toggle(line, event.currentTarget),
      }, h("span", { class: `swatch dash${line.dash}` }), h("span", { class: "label" }, line.label), value);
    }));
    this.read(this.u);
  }

  toggle(line, button) {
    const hide = !this.off.has(line.label);
    if (hide) this.off.add(line.label); else this.off.delete(line.label);
    button.setAttribute("aria-pressed", String(!hide));
    this.u.batch(() => line.parts.forEach((part) => this.u.setSeries(part, { show: !hide })));
  }

  // Shows the values at the cursor, or the last ones.
  read(u) {
    if (!this.values) return;
    const left = u.cursor.left ?? -1, x = left >= 0 ? u.posToVal(left, "x") : null;
    this.lines.forEach((line, order) => {
      const xs = line.x, ys = line.y;
      this.values[order].textContent = x === null ? number(ys[ys.length - 1]) : number(nearest(xs, ys, x));
    });
    const where = x === null ? "" : state.axis === "step" ? `step ${Math.round(x).toLocaleString("en")}` : duration(x);
    this.caption.textContent = [where, markTextAt(u, left)].filter(Boolean).join(" · ") || (this.panel.unit ?? "");
  }
}

function padded(low, high) {
  if (low === null || high === null || !Number.isFinite(low)) return [0, 1];
  const space = (high - low || Math.abs(high) || 1) * 0.06;
  return [low >= 0 && low - space < 0 ? 0 : low - space, high + space];
}

function nearest(xs, ys, x) {
  let low = 0, high = xs.length - 1;
  if (x < xs[0] || x > xs[high]) return Math.abs(x - xs[0]) < Math.abs(x - xs[high]) ? (x < xs[0] ? null : ys[0]) : null;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle; else high = middle;
  }
  return x - xs[low] < xs[high] - x ? ys[low] : ys[high];
}

function zoomTo(range) {
  state.zoom = range;
  for (const chart of charts) {
    if (!chart.u) continue;
    const xs = chart.u.data[0];
    chart.u.setScale("x", { min: range ? range[0] : xs[0], max: range ? range[1] : xs[xs.length - 1] });
  }
  document.querySelectorAll(".resetzoom").forEach((button) => { button.disabled = !range; });
}

function redraw() {
  resolved = new Map();
  for (const chart of charts) chart.u?.redraw(false);
}

// Charts are built when they come near the screen, and a few in each frame, so that a long report opens at once.
const waiting = new Set();
function buildSome() {
  const end = performance.now() + 24;
  for (const chart of waiting) {
    waiting.delete(chart);
    chart.build();
    if (performance.now() > end) break;
  }
  if (waiting.size) requestAnimationFrame(buildSome);
}

function buildSoon(chart) {
  if (!waiting.size) requestAnimationFrame(buildSome);
  waiting.add(chart);
}

function rebuild() {
  for (const chart of charts) if (chart.seen) buildSoon(chart);
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const chart = [...charts].find((each) => each.element === entry.target);
    if (chart && entry.isIntersecting && !chart.seen) {
      chart.seen = true;
      buildSoon(chart);
    }
  }
}, { rootMargin: "400px" });

const resizer = new ResizeObserver(() => {
  drawParallel();
  for (const chart of charts) {
    const width = chart.plot.clientWidth;
    if (chart.u && width && Math.abs(width - chart.u.width) > 1) chart.u.setSize({ width, height: chart.height });
  }
});
