// Parallel coordinates: each run is a line through its settings and results. Dragging on an axis keeps some runs.
function parallelAxes() {
  const axes = [];
  const add = (name, values, isResult) => {
    const known = values.filter((value) => value !== null && value !== undefined);
    if (new Set(known.map(String)).size < 2) return;
    if (known.every((value) => typeof value === "number")) {
      const low = Math.min(...known), high = Math.max(...known), log = low > 0 && high / low >= 50;
      const scale = (value) => (log ? (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low)) : (value - low) / (high - low));
      axes.push({ name, values, isResult, scale, ticks: [low, log ? Math.sqrt(low * high) : (low + high) / 2, high].map((value) => [value, number(value)]) });
    } else {
      const all = [...new Set(known.map(String))];
      const scale = (value) => (all.indexOf(String(value)) + 0.5) / all.length;
      axes.push({ name, values, isResult, scale, ticks: all.slice(0, 12).map((value) => [value, value.length > 18 ? `${value.slice(0, 17)}…` : value]) });
    }
  };
  data.settings.slice(0, 8).forEach(([name, values]) => add(name, values, false));
  const results = [...new Set([...data.columns, ...data.runs.flatMap((run) => (run.metrics.loss === undefined ? [] : ["loss"]))])];
  results.slice(0, 4).forEach((name) => add(name, data.runs.map((run) => run.metrics[name] ?? null), true));
  return axes;
}

function parallelCard() {
  const axes = parallelAxes();
  if (axes.length < 2) return null;
  const height = 290, left = 76, right = 76, top = 40, bottom = 16;
  let width = 1000;
  const x = (at) => left + ((width - left - right) * at) / (axes.length - 1), y = (part) => height - bottom - (height - top - bottom) * part;
  const brushes = new Map();
  const holder = h("div", { class: "scroll", tabindex: 0 }), text = h("div", { class: "caption" });
  const kept = (index) => [...brushes].every(([at, [low, high]]) => {
    const value = axes[at].values[index];
    return value !== null && value !== undefined && axes[at].scale(value) >= low && axes[at].scale(value) <= high;
  });
  drawParallel = () => {
    width = Math.max(118 * axes.length, holder.clientWidth || 1000);
    const lines = data.runs.map((run, index) => {
      if (state.hidden.has(index)) return null;
      const corners = axes.map((axis, at) => [x(at), axis.values[index]]).filter(([, value]) => value !== null && value !== undefined);
      const d = corners.map(([left, value], order) => {
        const axis = axes.find((each, at) => x(at) === left);
        return `${order ? "L" : "M"}${left} ${y(axis.scale(value)).toFixed(1)}`;
      }).join("");
      return s("path", {
        d, class: kept(index) ? (index === state.selected ? "strong" : "") : "dim", "data-line": run.name, style: { stroke: tintOf(index) },
        onclick: () => select(index),
        onmouseenter: (event) => { event.target.classList.add("strong"); text.textContent = [run.name, ...axes.map((axis) => `${axis.name.split(".").pop()} ${number(axis.values[index])}`)].join(" · "); },
        onmouseleave: (event) => { if (index !== state.selected) event.target.classList.remove("strong"); text.textContent = ""; },
      });
    });
    const frames = axes.map((axis, at) => [
      s("line", { class: "axis", x1: x(at), x2: x(at), y1: y(0), y2: y(1) }),
      s("text", { x: x(at), y: 16, "text-anchor": "middle", style: { fill: "var(--text)", "font-weight": axis.isResult ? "650" : "500" } }, axis.name.length > 24 ? `…${axis.name.slice(-23)}` : axis.name, s("title", null, axis.name)),
      axis.ticks.map(([value, label], order) => s("text", { x: x(at) + 8, y: y(axis.scale(value)) + (typeof value !== "number" || order === 1 ? 4 : order ? -3 : 13), style: { "paint-order": "stroke", stroke: "var(--card)", "stroke-width": "4px" } }, label)),
      brushes.has(at) ? s("rect", { class: "brush", x: x(at) - 7, width: 14, y: y(brushes.get(at)[1]), height: y(brushes.get(at)[0]) - y(brushes.get(at)[1]) }) : null,
      s("rect", { class: "grab", "data-axis": axis.name, x: x(at) - 14, width: 28, y: top - 8, height: height - top - bottom + 16, onpointerdown: (event) => brush(event, at) })]);
    holder.replaceChildren(s("svg", { class: "parallel", width, height, viewBox: `0 0 ${width} ${height}` }, lines, frames));
  };
  const brush = (event, at) => {
    const svg = holder.firstChild;
    const part = (each) => {
      const box = svg.getBoundingClientRect();
      return Math.min(1, Math.max(0, (height - bottom - ((each.clientY - box.top) * height) / box.height) / (height - top - bottom)));
    };
    const start = part(event);
    const move = (each) => { const now = part(each); brushes.set(at, [Math.min(start, now), Math.max(start, now)]); drawParallel(); };
    const end = (each) => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", end);
      if (Math.abs(part(each) - start) < 0.015) brushes.delete(at);
      drawParallel();
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", end);
    event.preventDefault();
  };
  details.push(() => drawParallel());
  drawParallel();
  return card("Settings and results", "drag on an axis to keep runs, click the axis to keep all", holder, text);
}
