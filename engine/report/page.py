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
from typing import Any

from engine import __version__
from engine.base import json_text
from engine.base.errors import RunError
from engine.base.files import replacing
from engine.base.json_text import now
from engine.experiments.record import RunRecord
from engine.experiments.run_table import differing_settings, metric_columns
from engine.report.gather import Gathered, all_data
from engine.report.panels import panels

LIBRARY = "uPlot.json"
"""File in `vendor/` with name, version, licence and hashes of the chart library."""
SCRIPTS = ("dom.js", "chart.js", "curves.js", "run.js", "compare.js", "main.js")
_SEED = "train.seed"


def write_report(paths: Sequence[str | Path], output: Path) -> None:
    """Writes the report of one or several runs.

    Args:
        paths: the run directories.
        output: the file; it appears complete, and an earlier one is replaced.

    Raises:
        RunError: a directory is no run, a file of it cannot be read, or the report cannot be written.
    """
    write(output, report([Gathered(path) for path in paths]))


def report(runs: Sequence[Gathered]) -> dict[str, Any]:
    """Returns the data of a report."""
    found = all_data(runs)
    records = [run.record for run in runs]
    names = differing_settings(records) if len(runs) > 1 else []
    selects = list(dict.fromkeys(run["select"] for run in found if run["select"]))
    return {
        "title": found[0]["name"] if len(found) == 1 else ", ".join(run["name"] for run in found[:4]) + _more(found),
        "made": now(),
        "version": __version__,
        "runs": found,
        "groups": groups(records, [run["name"] for run in found]),
        "settings": [[name, [record.config.get(name) for record in records]] for name in names],
        "columns": metric_columns(records),
        "panels": panels((name for run in found for name in run["curves"]), selects),
        "comparison": None,
    }


def _more(found: Sequence[Any]) -> str:
    return f" and {len(found) - 4} more" if len(found) > 4 else ""


def groups(records: Sequence[RunRecord], names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the runs that differ in their seeds alone, in groups; a label has the settings that tell groups apart."""
    differing = [name for name in differing_settings(records) if name != _SEED]
    found: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        found.setdefault(repr([record.config.get(name) for name in differing]), []).append(index)
    labels = [
        ", ".join(f"{name.rpartition('.')[2]}={records[group[0]].config.get(name)}" for name in differing[:3])
        for group in found.values()
    ]
    told_apart = len(set(labels)) == len(labels)
    return [
        {"runs": group, "label": names[group[0]] if len(group) == 1 or not (label and told_apart) else label}
        for group, label in zip(found.values(), labels, strict=True)
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
