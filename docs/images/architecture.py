"""Draws the packages of Convoy by level: python docs/images/architecture.py > docs/images/architecture.svg

The colours follow the viewer's light or dark scheme. A test compares the committed picture with this script's output
and its packages with the folders of engine/.
"""

from xml.sax.saxutils import escape

WIDTH, MARGIN, GAP = 960, 24, 12
LABEL_WIDTH = 108
ROW_HEIGHT = 64

AUTHOR = (
    ("models/", "Flax NNX module, Task with the loss, dataset"),
    ("configs/", "get_config(): plain data, no jax import"),
)
"""What a model team writes."""

LEVELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("command line", (("main.py", "verbs, flags, exit status"),)),
    (
        "verbs",
        (
            ("entry.py", "train, evaluate"),
            ("resume.py", "allowed changes"),
            ("doctor.py", "checks of a machine"),
            ("launch/", "Slurm, Kubernetes, TPU VM"),
        ),
    ),
    (
        "runs",
        (
            ("loop/", "steps, and between them saves, evaluations, hooks"),
            ("saved/", "existing runs, predictions"),
            ("datasets/", "write, check"),
            ("planning/", "targets, cost model"),
        ),
    ),
    (
        "parts of a run",
        (
            ("training/", "Task, pure step"),
            ("layers/", "layers, kernels"),
            ("checkpoint/", "saves, restores"),
            ("observe/", "metrics, progress"),
            ("resilience/", "failures, restarts"),
            ("stragglers/", "slow processes"),
        ),
    ),
    (
        "resources",
        (
            ("data/", "sources, batches"),
            ("readers/", "file formats"),
            ("parallel/", "mesh, sharding"),
            ("run/", "run directory"),
            ("tuning/", "XLA on CPU"),
            ("metrics/", "mergeable states"),
        ),
    ),
    (
        "foundation",
        (
            ("config/", "schema, overrides, errors"),
            ("cluster/", "processes, agreement, shutdown"),
            ("mounts.py", "buckets as folders"),
            ("object_store.py", "buckets as objects"),
        ),
    ),
)
"""The engine, highest level first: what a level is for, and its packages."""

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


def text(x: float, y: float, words: str, kind: str, anchor: str = "middle") -> str:
    """Returns one line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, name: str, note: str, kind: str) -> list[str]:
    """Returns a box with a name and a note below the name."""
    middle = x + width / 2
    return [
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{ROW_HEIGHT - GAP}" rx="6" class="{kind}"/>',
        text(middle, y + 22, name, "name"),
        text(middle, y + 40, note, "note"),
    ]


def row(y: float, label: str, boxes: tuple[tuple[str, str], ...], kind: str) -> list[str]:
    """Returns a row of boxes of equal width, with the label of its level on the left."""
    left = MARGIN + LABEL_WIDTH
    width = (WIDTH - MARGIN - left - GAP * (len(boxes) - 1)) / len(boxes)
    parts = [text(MARGIN, y + 31, label, "level", "start")]
    for i, (name, note) in enumerate(boxes):
        parts += box(left + i * (width + GAP), y, width, name, note, kind)
    return parts


def picture() -> str:
    """Returns the SVG."""
    left, parts, y = MARGIN + LABEL_WIDTH, [], MARGIN
    parts += row(y, "you write", AUTHOR, "author")
    y += ROW_HEIGHT + 24
    middle = left + (WIDTH - MARGIN - left) / 2
    parts += [
        f'<path d="M {middle:g} {y - 34} V {y - 8}" class="arrow"/>',
        f'<path d="M {middle - 5:g} {y - 10} h 10 l -5 8 z" class="head"/>',
        text(
            middle + 12,
            y - 15,
            "models import engine; configs import engine.config",
            "note",
            "start",
        ),
    ]
    for label, boxes in LEVELS:
        parts += row(y, label, boxes, "box")
        y += ROW_HEIGHT
    parts += [
        text(MARGIN, y + 20, "libraries", "level", "start"),
        f'<rect x="{left}" y="{y}" width="{WIDTH - MARGIN - left}" height="32" rx="6" class="library"/>',
        text(middle, y + 21, LIBRARIES, "level"),
    ]
    height = y + 32 + MARGIN + 20
    parts.append(
        text(left, height - MARGIN, "A package owns one noun. An import points to a lower level.", "note", "start")
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            "<title>Convoy: what you write, and the packages of the engine by level</title>",
            f"<style>{STYLE}</style>",
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10" class="page"/>',
            *parts,
            "</svg>",
        ]
    )


if __name__ == "__main__":
    print(picture())
