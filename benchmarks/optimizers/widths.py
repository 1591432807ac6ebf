"""Whether the best learning rate stays at other widths: the language model with and without muP, from its base width.

Yang et al. 2022, arXiv:2203.03466, figure 1. Each run has few steps, since a step of the widest model takes as long as
forty of the base model.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks.optimizers import further
from benchmarks.optimizers.groups import Group, tuned
from benchmarks.optimizers.rows import Row, Value
from benchmarks.optimizers.tables import markdown, number, titled

BASE, WIDTHS = 64, (64, 128, 256, 512)
RATES = tuple(2e-3 * 2.0**power for power in range(-3, 5))
STEPS, WARMUP = 100, 0.1
HEAD_DIM = 16
"""Of each width: wide models have more heads."""
CHUNK = "width"
KINDS = {0: "standard", 1: "muP"}
STEP_COST = {64: 1.0, 128: 2.4, 256: 8.0, 512: 30.0}
"""Time of a step over that of the base width."""


def sizes(width: int) -> dict[str, int]:
    """Returns the arguments of the Task that follow the width."""
    return {"width": width, "hidden": 3 * width, "heads": width // HEAD_DIM}


def apply(config: Any, settings: dict[str, Any]) -> None:
    """Takes the settings `width` and `mup` of a run, if it has them, and changes the config."""
    if "width" in settings:
        for name, value in sizes(int(settings.pop("width"))).items():
            config.task[name] = value
        if settings.pop("mup"):
            config.optimizer.mup = sizes(BASE)


def groups(width: int) -> list[Group]:
    """Returns the groups of a width: with and without muP, which are the same at the base width."""
    fixed: dict[str, Value] = {"width": width, "warmup": WARMUP, "weight_decay": 0.0}
    found = []
    for mup, kind in KINDS.items():
        points = [{**fixed, "mup": mup, "learning_rate": rate} for rate in RATES]
        found.append(tuned(f"{CHUNK}-{width}", f"{kind} {width}", further.TASK, further.OPTIMIZER, points, STEPS, ()))
    return found if width != BASE else found[:1]


def losses(found: Sequence[Row]) -> dict[tuple[str, int], dict[float, float]]:
    """Returns (parametrization, width) -> learning rate -> final loss; both kinds are the same at the base width."""
    by_width: dict[tuple[str, int], dict[float, float]] = {}
    for kind in KINDS.values():
        for width in WIDTHS:
            group = f"{KINDS[0] if width == BASE else kind} {width}"
            runs = [row for row in found if (row.run.chunk, row.run.group) == (f"{CHUNK}-{width}", group)]
            if runs:
                by_width[kind, width] = {float(row.run.settings["learning_rate"]): row.final for row in runs}
    return by_width


def table(found: Sequence[Row]) -> str:
    """Returns the loss of each rate, and the best rate of each width; empty without rows."""
    lines = []
    for (kind, width), loss in losses(found).items():
        cells = [number(loss[rate]) if rate in loss else "" for rate in RATES]
        lines.append([kind, str(width), number(min(loss, key=loss.__getitem__)), *cells])
    head = ["parametrization", "width", "best rate", *(number(rate) for rate in RATES)]
    note = f"Loss after {STEPS} steps for each learning rate; both are the same at the width {BASE}."
    return titled("Learning rates at other widths", f"{note}\n\n{markdown(head, lines)}") if lines else ""


def _what(width: int) -> str:
    return f"learning rates at the width {width}{', with and without muP' * (width != BASE)}"


CHUNKS = tuple((f"{CHUNK}-{width}", _what(width), lambda found, width=width: groups(width), ()) for width in WIDTHS)
"""Name, what it shows, groups, and the chunks that it needs."""
