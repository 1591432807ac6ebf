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

WIDTH, MARGIN, GAP, PADDING = 880, 8, 10, 12
TITLE, NAME, LINE = 30, 28, 17  # heights of the title of a group, the name of a package and a line of its note
CHARACTER = 7.1  # mean width of a character of a note in pixels, in the widest of the fonts below

AUTHOR = {
    "models/": "Flax NNX module, Task with the loss, dataset",
    "configs/": "get_config(): plain data, no JAX import",
}
"""What a model team writes."""

LIBRARIES = "JAX · Flax NNX · Optax · Orbax · Grain"

STYLE = """
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: #1f2328; }
  .name { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 15px; font-weight: 600; }
  .note { font-size: 12px; fill: #4b5563; }
  .title { font-size: 13px; font-weight: 600; fill: #4b5563; }
  .group { fill: #eef2f6; stroke: #d1d9e0; }
  .box { fill: #ffffff; stroke: #c3ccd5; }
  .author { fill: #e3f2fb; stroke: #54aeff; }
  .extension { fill: #f1ecfa; stroke: #b7a3dd; }
  .arrow { stroke: #59636e; stroke-width: 1.5; fill: none; }
  .head { fill: #59636e; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .note, .title { fill: #b6bfca; }
    .group { fill: #1b222b; stroke: #3d444d; }
    .box { fill: #262e38; stroke: #48515c; }
    .author { fill: #0c2d4d; stroke: #1f6feb; }
    .extension { fill: #2a2440; stroke: #6f5aa8; }
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


def row(y: float, boxes: dict[str, str], kind: str) -> tuple[list[str], float]:
    """Returns a row of boxes of equal width, each with a name and a note, and its height.

    Args:
        y: the upper edge.
        boxes: package -> note.
        kind: class of the boxes in STYLE.
    """
    left = MARGIN + PADDING
    width = (WIDTH - 2 * left - GAP * (len(boxes) - 1)) / len(boxes)
    notes = [textwrap.wrap(note.replace("`", ""), int((width - 2 * PADDING) / CHARACTER)) for note in boxes.values()]
    height = NAME + LINE * max(map(len, notes)) + 8
    parts = []
    for i, (name, lines) in enumerate(zip(boxes, notes, strict=True)):
        x = left + i * (width + GAP)
        parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height}" rx="6" class="{kind}"/>')
        parts.append(words(x + width / 2, y + 22, name, "name"))
        parts += [words(x + width / 2, y + NAME + 13 + LINE * n, line, "note") for n, line in enumerate(lines)]
    return parts, height


def group(y: float, title: str, rows: list[dict[str, str]], kind: str) -> tuple[list[str], float]:
    """Returns a frame with a title and rows of boxes, the first one on top, and its lower edge."""
    parts, bottom = [words(MARGIN + PADDING, y + 20, title, "title", "start")], y + TITLE
    for boxes in rows:
        drawn, height = row(bottom, boxes, kind)
        parts += drawn
        bottom += height + GAP
    frame = f'x="{MARGIN}" y="{y:g}" width="{WIDTH - 2 * MARGIN}" height="{bottom - y:g}" rx="8"'
    return [f'<rect {frame} class="group"/>', *parts], bottom


def picture() -> str:
    """Returns the SVG. Its background is transparent."""
    parts, y = group(MARGIN, "You write", [AUTHOR], "author")
    middle = WIDTH / 2
    parts += [
        f'<path d="M {middle:g} {y + 4:g} V {y + 26:g}" class="arrow"/>',
        f'<path d="M {middle - 5:g} {y + 24:g} h 10 l -5 8 z" class="head"/>',
        words(middle + 14, y + 21, "models import engine, configs import engine.config", "note", "start"),
    ]
    y += 36
    for title, levels in reversed(groups().items()):
        rows = [{f"{package}/": owns for package, owns in packages.items()} for packages in reversed(levels)]
        kind = "extension" if title == "extensions" else "box"
        drawn, y = group(y, f"{title[:1].upper()}{title[1:]}", rows, kind)
        parts += drawn
        y += GAP
    drawn, y = group(y, "Libraries", [{LIBRARIES: "what the engine is built on"}], "box")
    parts += [*drawn, words(MARGIN + PADDING, y + 18, "A package imports only from lower rows.", "note", "start")]
    y += 24
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + MARGIN:g}" role="img">',
            "<title>Convoy: what you write, and the packages of the engine by level</title>",
            f"<style>{STYLE}</style>",
            *parts,
            "</svg>",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(picture() + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
