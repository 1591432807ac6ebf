"""Writes a report: puts data into the templates, with all scripts and styles inside.

Names and texts of a run are in the data alone, as JSON in which no `<` is left. The scripts of the page make text nodes
of them. A policy in the head allows the scripts of the page and nothing from a network.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import __version__
from engine.base import json_text
from engine.base.errors import ConvoyError, RunError
from engine.base.files import replacing
from engine.base.json_text import now
from engine.experiments.run_table import differing_settings, metric_columns
from engine.report.gather import IMAGE_BYTES, Gathered, all_data, names_of
from engine.report.images import Budget
from engine.report.lineage import SEARCH_S, lineages
from engine.report.panels import panels

if TYPE_CHECKING:
    from engine.experiments.comparison import Comparison

LIBRARY = "uPlot.json"
"""File in `vendor/` with name, version, licence and hashes of the chart library."""
SCRIPTS = (
    "dom.js",
    "chart.js",
    "curves.js",
    "run.js",
    "lineage.js",
    "compare.js",
    "parallel.js",
    "sweep.js",
    "main.js",
)
SEED = "train.seed"
_LISTS = ("variants", "differences", "results", "changes", "meanings")  # of a comparison


def write_report(
    paths: Sequence[str | Path], output: Path, found: "Comparison | None" = None, search_s: float = SEARCH_S
) -> None:
    """Writes the report of one or several runs.

    Args:
        paths: the run directories.
        output: the file; it appears complete, and an earlier one is replaced.
        found: the comparison of these runs; None compares several runs as `convoy compare` does.
        search_s: seconds in which things are searched that came from the runs; 0 searches nothing.

    Raises:
        RunError: a directory is no run, a file of it cannot be read, or the report cannot be written.
    """
    write(output, report([Gathered(path) for path in paths], found, search_s))


def report(
    runs: Sequence[Gathered],
    comparison: "Comparison | None" = None,
    search_s: float = SEARCH_S,
    sweep: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the data of a report.

    Args:
        runs: the runs.
        comparison, search_s: as for `write_report`.
        sweep: the data of the sweep whose trials the runs are (`engine/sweeps/report.py`); "title", "groups" and
            "settings" are those of the page. The trials are not compared in pairs.
    """
    trees = lineages([run.directory.path for run in runs], search_s)
    found = [{**run, "lineage": tree} for run, tree in zip(all_data(runs), trees, strict=True)]
    grouped = groups(runs, [run["name"] for run in found]) if sweep is None else sweep["groups"]
    compared = _comparison(runs, comparison, grouped) if len(runs) > 1 and sweep is None else None
    records = [run.record for run in runs]
    names = differing_settings(records) if len(runs) > 1 else []
    settings = [[name, [record.config.get(name) for record in records]] for name in names]
    selects = list(dict.fromkeys(run["select"] for run in found if run["select"]))
    return {
        "title": sweep["title"] if sweep else _title(found, grouped, comparison is not None),
        "made": now(),
        "version": __version__,
        "runs": found,
        "groups": grouped,
        "settings": settings if sweep is None else sweep["settings"],
        "columns": [name for name in metric_columns(records) if any(name in run["metrics"] for run in found)],
        "panels": panels((name for run in found for name in run["curves"]), selects),
        "comparison": compared,
        "sweep": sweep,
        "focus": "runs" if comparison is None else "comparison",
    }


def _comparison(
    runs: Sequence[Gathered], found: "Comparison | None", grouped: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the comparison of several runs; where they cannot be compared, only a note that says why."""
    from engine.experiments.compare import compare  # computes metrics, and so imports JAX
    from engine.report.comparison import comparison_data

    try:
        found = found or compare([run.directory.path for run in runs])
    except ConvoyError as error:
        empty: dict[str, list[Any]] = {name: [] for name in _LISTS}
        return {**empty, "more": 0, "notes": [f"The results are not compared: {error}"]}
    names = names_of([run.record.path for run in runs])
    if len(grouped) == len(found.variants):
        for group in grouped:
            names[group["runs"][0]] = group["label"]
    pairs = zip(runs, names, strict=True)
    paths = {path: name for run, name in pairs for path in (run.record.path, str(run.directory.path))}
    return comparison_data(found, paths, Budget(IMAGE_BYTES // 2))


def _title(found: Sequence[Mapping[str, Any]], grouped: Sequence[Mapping[str, Any]], is_comparison: bool) -> str:
    between = " against " if is_comparison and len(grouped) == 2 else ", "
    names = [group["label"] for group in grouped] if len(grouped) > 1 else [run["name"] for run in found]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return between.join(reversed(names) if between != ", " else names[:4]) + more


def groups(runs: Sequence[Gathered], names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the runs that differ in their seeds alone, in groups; a label has the settings that tell groups apart.

    Args:
        runs: the runs.
        names: their names in the report.
    """
    if len(runs) == 1:
        return [{"runs": [0], "label": names[0]}]
    from engine.experiments.variants import Run, differences, variants_of  # JAX

    read = [Run.read(run.directory.path) for run in runs]
    found, _ = variants_of(read)
    differing = {part: values for part, values in differences(found).items() if values and part != "environment"}
    if set(differing) == {"settings"} and set(differing["settings"]) == {SEED}:
        found = [read]  # `variants_of` leaves them apart, so that they can be compared
    shown = [name for name in differing.get("settings", {}) if name != SEED][:3]
    labels = [
        ", ".join(f"{name.rpartition('.')[2]}={group[0].record.config.get(name)}" for name in shown) for group in found
    ]
    told_apart = len(set(labels)) == len(labels)
    places = {id(run): place for place, run in enumerate(read)}
    members = [[places[id(run)] for run in group] for group in found]
    return [
        {"runs": group, "label": label if len(group) > 1 and label and told_apart else names[group[0]]}
        for group, label in zip(members, labels, strict=True)
    ]


def write(output: Path, data: Mapping[str, Any]) -> None:
    """Writes a page with these data. Raises RunError."""
    content = html(data)
    try:
        with replacing(output) as file:
            file.write(content.encode())
    except OSError as error:
        raise RunError(f"{output}: the report cannot be written ({error.strerror or error}).") from error


def html(data: Mapping[str, Any]) -> str:
    """Returns the page."""
    library = vendored("uPlot.iife.min.js")
    script = '(() => {\n"use strict";\n' + "\n".join(map(_template, SCRIPTS)) + "\n})();"
    scripts = " ".join(f"'sha256-{_digest(text)}'" for text in (library, script))
    policy = f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:"
    about = json_text.parse(vendored(LIBRARY), {"version": str})
    text = json_text.dumps({**data, "library": about}).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    values = {
        "POLICY": policy,
        "VERSION": __version__,
        "TITLE": escape(f"{data['title']} · Convoy"),
        "STYLE": vendored("uPlot.min.css") + _template("style.css"),
        "DATA": text,
        "LIBRARY": library,
        "SCRIPT": script,
    }
    parts = _template("report.html").split("%%")
    return "".join(values[part] if place % 2 else part for place, part in enumerate(parts))


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _template(name: str) -> str:
    return (resources.files("engine.report") / "templates" / name).read_text(encoding="utf-8")


def vendored(name: str) -> str:
    """Returns the text of a file of the chart library."""
    return (resources.files("engine.report") / "vendor" / name).read_text(encoding="utf-8")
