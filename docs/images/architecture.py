"""Draws the packages of Convoy by level, and writes the table of them: python docs/images/architecture.py

It writes docs/images/architecture.svg, and the table in docs/architecture.md below `<!-- packages -->`. Both come from
engine/levels.bzl. The colours follow the viewer's light or dark scheme. A test compares both files with the output.
"""

import ast
import textwrap
from pathlib import Path
from xml.sax.saxutils import escape

TOP = Path(__file__).parents[2]
PICTURE, PAGE = TOP / "docs/images/architecture.svg", TOP / "docs/architecture.md"
BEGIN, END = "<!-- packages -->\n\n", "\n\n<!-- end of packages -->"

WIDTH, MARGIN, GAP = 960, 24, 12
LABEL_WIDTH = 108
LINE, CHARACTER = 15, 6.3  # height of a line and mean width of a character of a note, in pixels

AUTHOR = {
    "models": "Flax NNX module, Task with the loss, dataset",
    "configs": "get_config(): plain data, no JAX import",
}
"""What a model team writes."""

LIBRARIES = "JAX · Flax NNX · Optax · Orbax · Grain"

STYLE = """
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: #1f2328; }
  .name { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 15px; font-weight: 600; }
  .note { font-size: 12px; fill: #59636e; }
  .level { font-size: 13px; fill: #59636e; }
  .page { fill: #ffffff; stroke: #d1d9e0; }
  .box { fill: #f6f8fa; stroke: #d1d9e0; }
  .author { fill: #ddf4ff; stroke: #54aeff; }
  .library { fill: none; stroke: #d1d9e0; stroke-dasharray: 4 4; }
  .arrow { stroke: #59636e; stroke-width: 1.5; fill: none; }
  .head { fill: #59636e; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .note, .level { fill: #9198a1; }
    .page { fill: #0d1117; stroke: #3d444d; }
    .box { fill: #151b23; stroke: #3d444d; }
    .author { fill: #0c2d4d; stroke: #1f6feb; }
    .library { stroke: #3d444d; }
    .arrow { stroke: #9198a1; }
    .head { fill: #9198a1; }
  }
"""


def groups() -> dict[str, list[dict[str, str]]]:
    """Returns group -> its levels, the lowest first; a level maps each package to what it is responsible for."""
    for node in ast.parse((TOP / "engine/levels.bzl").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "GROUPS":
            return ast.literal_eval(node.value)
    raise ValueError("engine/levels.bzl has no GROUPS")


def table() -> str:
    """Returns the Markdown table of the packages, the highest level first."""
    rows = ["| group | level | package | responsible for |", "|---|---|---|---|"]
    levels = [(group, level) for group, levels in groups().items() for level in levels]
    for number, (group, packages) in reversed(list(enumerate(levels))):
        rows += [f"| {group} | {number} | `{package}/` | {owns} |" for package, owns in packages.items()]
    return "\n".join(rows)


def page(text: str) -> str:
    """Returns the text of docs/architecture.md with the table of today."""
    before, rest = text.split(BEGIN, 1)
    return before + BEGIN + table() + END + rest.split(END, 1)[1]


def words(x: float, y: float, text: str, kind: str, anchor: str = "middle") -> str:
    """Returns one line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def row(y: float, label: str, boxes: dict[str, str], kind: str) -> tuple[list[str], float]:
    """Returns a row of boxes of equal width, each with a name and a note, and its height.

    Args:
        y: the upper edge.
        label: the group, on the left.
        boxes: package -> note.
        kind: class of the boxes in STYLE.
    """
    left = MARGIN + LABEL_WIDTH
    width = (WIDTH - MARGIN - left - GAP * (len(boxes) - 1)) / len(boxes)
    notes = [textwrap.wrap(note.replace("`", ""), int((width - 16) / CHARACTER)) for note in boxes.values()]
    height = 34 + LINE * max(map(len, notes))
    parts = [words(MARGIN, y + height / 2 + 4, label, "level", "start")]
    for i, (name, lines) in enumerate(zip(boxes, notes, strict=True)):
        x = left + i * (width + GAP)
        parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height}" rx="6" class="{kind}"/>')
        parts.append(words(x + width / 2, y + 22, f"{name}/", "name"))
        parts += [words(x + width / 2, y + 40 + LINE * n, line, "note") for n, line in enumerate(lines)]
    return parts, height


def picture() -> str:
    """Returns the SVG."""
    left = MARGIN + LABEL_WIDTH
    parts, height = row(MARGIN, "you write", AUTHOR, "author")
    y = MARGIN + height + 36
    middle = left + (WIDTH - MARGIN - left) / 2
    parts += [
        f'<path d="M {middle:g} {y - 34} V {y - 8}" class="arrow"/>',
        f'<path d="M {middle - 5:g} {y - 10} h 10 l -5 8 z" class="head"/>',
        words(middle + 12, y - 15, "models import engine; configs import engine.config", "note", "start"),
    ]
    for group, levels in reversed(groups().items()):
        for number, packages in enumerate(reversed(levels)):
            boxes, height = row(y, "" if number else group, packages, "box")
            parts += boxes
            y += height + GAP
        y += GAP
    parts += [
        words(MARGIN, y + 20, "libraries", "level", "start"),
        f'<rect x="{left}" y="{y}" width="{WIDTH - MARGIN - left}" height="32" rx="6" class="library"/>',
        words(middle, y + 21, LIBRARIES, "level"),
    ]
    height = y + 32 + MARGIN + 20
    parts.append(words(left, height - MARGIN, "A package imports only from lower rows.", "note", "start"))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">',
            "<title>Convoy: what you write, and the packages of the engine by level</title>",
            f"<style>{STYLE}</style>",
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="10" class="page"/>',
            *parts,
            "</svg>",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(picture() + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
