"""What a run costs: how its time was spent, the parts of a step, and the memory of a device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.base import json_text
from engine.report.rows import Mark, Rows
from engine.run.directory import RunDirectory
from engine.run.goodput import KINDS, SLOW, read_all, sums

ATTEMPTS = 20  # latest attempts that are shown one by one
_MARKS = 40  # of slow processes, those of the longest times
_PLAN = {
    "predicted?": {
        "step_s?": float | None, "seconds?": {str: float}, "memory?": {str: float}, "bytes?": float | None,
        "machine?": {"text?": str}, "settings?": {str: object},
    },
    "measured?": {"step_s?": float | None, "bytes?": float | None, "peak_bytes?": float | None},
}  # fmt: skip


def goodput(run: RunDirectory) -> tuple[dict[str, Any], list[Mark], str]:
    """Returns the seconds of each kind by attempt, marks of slow processes, and what could not be read."""
    found = read_all(run.goodput)
    attempts = sums(entry for entry in found.values if entry["kind"] != SLOW)
    total = {kind: sum(kinds[kind].seconds for kinds in attempts.values()) for kind in KINDS}
    wall = sum(total.values())
    slow = sorted((e for e in found.values if e["kind"] == SLOW), key=lambda e: -e["seconds"])
    causes: dict[tuple[str, str], float] = {}
    for entry in slow:
        key = (entry.get("process", ""), entry.get("cause", ""))
        causes[key] = causes.get(key, 0.0) + entry["seconds"]
    marks = [Mark("slow", entry.get("step", 0), _slow_text(entry)) for entry in slow[:_MARKS]]
    rows = [
        {
            "attempt": attempt,
            "seconds": [max(0.0, round(kinds[kind].seconds, 3)) for kind in KINDS],
            "steps": kinds["step"].steps,
            "lost": kinds["lost"].steps,
        }
        for attempt, kinds in list(attempts.items())[-ATTEMPTS:]
    ]
    return (
        {
            "kinds": list(KINDS),
            "attempts": rows,
            "earlier": max(0, len(attempts) - ATTEMPTS),
            "total": [max(0.0, round(total[kind], 3)) for kind in KINDS],
            "wall": wall,
            "share": total["step"] / wall if wall > 0 else None,
            "steps": sum(kinds["step"].steps for kinds in attempts.values()),
            "slow": [[process, cause, round(s, 3)] for (process, cause), s in causes.items()],
        },
        marks,
        found.note(run.goodput),
    )


def _slow_text(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('process', '')} is slow ({entry.get('cause', '')}): {entry['seconds']:.3g} s lost"


def plan(path: Path) -> dict[str, Any]:
    """Returns the prediction of a `plan.json` by part, and what was measured; {} if there is none that can be read."""
    try:
        found = json_text.read(path, _PLAN)
    except (OSError, ValueError):
        return {}
    predicted, measured = found.get("predicted", {}), found.get("measured", {})
    return {
        "machine": predicted.get("machine", {}).get("text", ""),
        "step": {"parts": _parts(predicted.get("seconds", {})), "measured": measured.get("step_s")},
        "memory": {
            "parts": _parts(predicted.get("memory", {})),
            "compiled": measured.get("bytes"),
            "peak": measured.get("peak_bytes"),
        },
    }


def mesh(path: Path, texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns the axes of the mesh with their sizes, those of one device left out, and other settings of the mesh.

    The sizes are those of the plan, if there is one, where the config may say `auto`.
    """
    try:
        planned = json_text.read(path, _PLAN).get("predicted", {}).get("settings", {})
    except (OSError, ValueError):
        planned = {}
    known = {name: str(value) for name, value in planned.items()}
    found = {name: known.get(name, text) for name, text in texts.items() if name.startswith("mesh.")}
    return [(name.removeprefix("mesh."), text) for name, text in found.items() if text not in ("1", "None", "()", "''")]


def _parts(values: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in values.items() if value > 0]


def highest_memory(rows: Rows) -> tuple[str, float] | None:
    """Returns what was measured as memory of a device, or else of the first process, and its largest value in GiB."""
    for name, label in (("device_peak_gib", "of a device, peak"), ("host_rss_gib", "of the process")):
        curve = rows.curves.get(f"training/{name}")
        if curve is not None and curve.values:
            return label, max(curve.values)
    return None
