"""The decisions of the driver about a trial: a file that the driver writes and the hook of the trial reads."""

from pathlib import Path
from typing import Any

from engine.base import json_text
from engine.run.atomic import write_text

_SHAPE = {"step": int, "prune": bool}


def read_decision(path: Path) -> tuple[int, bool]:
    """Returns the newest step that was decided on, and whether the trial is pruned; (-1, False) before the first."""
    try:
        found: dict[str, Any] = json_text.read(path, _SHAPE)
        return found["step"], found["prune"]
    except (OSError, ValueError):
        return -1, False


def write_decision(path: Path, step: int, prune: bool) -> None:
    """Writes a decision of the driver."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json_text.dumps({"step": step, "prune": prune}))
