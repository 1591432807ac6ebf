"""Charts of curves as a file, drawn by matplotlib: PNG, SVG or PDF."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.base.errors import ConfigError
from engine.plot.curves import Panel

FORMATS = (".png", ".svg", ".pdf")
_WIDTH, _HEIGHT = 5.5, 3.4  # inches of a chart
_LONGEST = 40  # characters of a label, of which the last ones are kept; a longer one would leave no room for the curves


def check_file(path: Path) -> None:
    """Raises ConfigError if a picture cannot be written as this file: another format, or no matplotlib."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out = {path}: allowed are names that end in {', '.join(FORMATS)}.")
    if importlib.util.find_spec("matplotlib") is None:
        from engine.base.extras import install_command

        raise ConfigError(
            f"--out = {path}: a picture needs matplotlib, which is not installed: {install_command('plot')}. Without "
            "--out, the curves are drawn in the terminal."
        )


def write_picture(path: Path, panels: Sequence[Panel]) -> None:
    """Writes charts side by side, at most two in a row. Raises ConfigError if the file cannot be written."""
    figures: Any = importlib.import_module("matplotlib.figure")
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = figures.Figure(figsize=(columns * _WIDTH, rows * _HEIGHT), layout="constrained", dpi=150)
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        for above, (label, curve) in zip(reversed(range(len(panel.curves))), panel.curves.items(), strict=True):
            marker = "." if len(curve) < 30 else ""
            shown = label if len(label) <= _LONGEST else f"...{label[3 - _LONGEST :]}"
            # A curve is wider than those above it, so that one that is covered is seen.
            width = 1.5 + 1.5 * min(above, 2)
            axes.plot(list(curve), list(curve.values()), label=shown, marker=marker, linewidth=width)
        axes.set_title(panel.title)
        axes.set_yscale("log" if panel.is_log else "linear")
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error}). Choose another file.") from error
