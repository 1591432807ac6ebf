// Elements, numbers as text, and colours. Text enters the page as text nodes only, so that no name can be markup.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, each]) => element.style.setProperty(key, each));
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Four significant digits, and whole numbers in full, as the terminal shows them.
function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e9) return value.toLocaleString("en");
  if (size >= 1000 && size < 1e9) return Math.round(value).toLocaleString("en");
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(3).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(4)));
}

// A label of an axis: 1.5k, 2M, 0.002.
function short(value) {
  const size = Math.abs(value);
  if (size >= 1e9 || (size && size < 1e-3)) return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
  for (const [unit, letter] of [[1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return `${Number((value / unit).toPrecision(4))}${letter}`;
  }
  return String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  if (seconds < 1) return `${Number(seconds.toPrecision(3))} s`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole >= 86400) return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
  if (whole >= 3600) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

function bytes(size) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (size < 1024 || unit === "GiB") return `${unit === "B" ? Math.round(size) : size.toFixed(1)} ${unit}`;
    size /= 1024;
  }
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const COLOURS = 10;
const variable = (index) => `var(--s${index % COLOURS})`;

// A canvas needs colours without variables; they change with the scheme.
const probe = document.documentElement.appendChild(h("i", { hidden: true }));
let resolved = new Map();
function colour(text) {
  if (!resolved.has(text)) {
    probe.style.color = "";
    probe.style.color = text;
    resolved.set(text, getComputedStyle(probe).color);
  }
  return resolved.get(text);
}
function faint(text, alpha) {
  const [r, g, b] = colour(text).match(/[\d.]+/g);
  return `rgb(${r} ${g} ${b} / ${alpha})`;
}

// What is wider or longer than its place scrolls, also by the keyboard.
const scroller = (isTall, ...children) => h("div", { class: `scroll ${isTall ? "tall" : ""}`, tabindex: 0 }, children);
const head = (name, isNumber) => h(name ? "th" : "td", { class: isNumber ? "number" : null }, name);

function table(columns, rows, options = {}) {
  const isNumber = columns.map((_, at) => rows.some((row) => typeof row[at] === "number"));
  const kind = (at) => (isNumber[at] ? "number" : "text");
  return scroller(options.tall,
    h("table", { class: columns.length < 4 ? "fit" : null },
      h("thead", null, h("tr", null, columns.map((name, at) => h("th", { class: kind(at) }, name)))),
      h("tbody", null, rows.map((row) => h("tr", null, row.map((cell, at) =>
        h("td", { class: kind(at) }, cell instanceof Node ? cell : number(cell))))))));
}

const keys = (rows) => h("table", { class: "keys" }, h("tbody", null,
  rows.map(([name, value]) => h("tr", null, h("td", null, name), h("td", null, value)))));

function card(title, under, ...children) {
  return h("div", { class: "card" },
    h("div", { class: "cardhead" }, h("h3", null, title), under ? h("span", { class: "muted", title: under }, under) : null), ...children);
}

const saved = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
const save = (name, value) => { try { localStorage.setItem(name, value); } catch { /* not allowed here */ } };
