// What the chosen run came from, and what came from it, as nested lists.
function thing(node) {
  const details = node.details.map(([name, text], at) => [at ? ", " : null, `${name} `, h("span", { class: text === "unknown" ? "unknown" : null }, text)]);
  return [
    node.role ? [h("span", { class: "role" }, `${node.role}:`), " "] : null,
    h("span", { class: `pill ${node.isUnknown ? "unknown" : ""}` }, node.kind), " ",
    h("span", { class: "mono" }, node.name),
    details.length ? h("span", { class: "details" }, details) : null,
    node.note ? h("div", null, h("span", { class: node.isRepeated ? "muted small" : "notice" }, node.note)) : null,
  ];
}

const tree = (nodes) => h("ul", { class: "tree" }, nodes.map((node) => h("li", null, thing(node), node.nodes.length ? tree(node.nodes) : null)));

function lineageOf(run) {
  const { subject, became, isSearched, searched, problems, more } = run.lineage;
  if (!subject) return [h("p", { class: "muted" }, searched)];
  const part = (title, nodes, none, left, note) => card(title, null, nodes.length ? tree(nodes) : none ? h("p", { class: "muted" }, none) : null,
    left ? h("p", { class: "muted small" }, `${number(left)} more are listed by convoy runs lineage.`) : null,
    note ? h("p", { class: "muted small", style: { "margin-top": "10px" } }, note) : null);
  return [
    h("div", { class: "tree" }, thing(subject)),
    h("div", { class: "pair" },
      part("Came from", subject.nodes, "Nothing is recorded.", more[0]),
      part("Became", became, isSearched ? "Nothing is found." : null, more[1], searched)),
    problems.length ? h("div", { class: "callout" }, h("b", null, "Records that cannot be read"), h("ul", null, problems.map((text) => h("li", null, text)))) : null,
  ].filter(Boolean);
}
