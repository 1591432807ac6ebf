"""What a dataset was when a run began, so that a resume on another one is noticed.

Owns: the facts that are kept of each source of a run, their file, and the sentences about what changed. Does not own:
what names the content of a source (`source.fingerprint`), or who refuses the resume.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from engine.config.errors import DataError
from engine.data.source import PART, Source, example_spec, fingerprint, leaves

SHOWN = 8  # differing parts of a content that are told

Facts = Mapping[str, str]


def facts_of(source: Source) -> dict[str, str]:
    """Returns the number of examples, what each of them holds, and what names their content."""
    spec = ", ".join(f"{path} {leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves(example_spec(source)))
    return {"examples": str(len(source)), "each": spec, "content": fingerprint(source)}


def changes(before: Facts, now: Facts, where: str) -> list[str]:
    """Returns a line `data: examples: 64 -> 65` for each fact, or part of a content, that differs."""
    lines = []
    for name in {**before, **now}:
        old, new = before.get(name, "none"), now.get(name, "none")
        if old != new and name == "content":
            lines += [f"{where}: content: {line}" for line in _parts(old, new)]
        elif old != new:
            lines.append(f"{where}: {name}: {old} -> {new}")
    return lines


def _parts(before: str, now: str) -> list[str]:
    """The parts that differ, as files of a source; those at the same place stand in one line."""
    old, new = before.split(PART), now.split(PART)
    if len(old) == len(new):
        found = [f"{a} -> {b}" for a, b in zip(old, new, strict=True) if a != b]
    else:
        found = [f"no longer {a}" for a in old if a not in new] + [f"new {b}" for b in new if b not in old]
    return found[:SHOWN] + ([f"... and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])


def to_text(facts: Mapping[str, Facts]) -> str:
    """Returns the facts of all sources of a run, by where the config names them, as the text of a file."""
    return json.dumps(facts, indent=1) + "\n"


def read(path: Path) -> dict[str, Facts]:
    """Returns the facts in a file of `to_text`; none where there is no file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {where: {str(name): str(text) for name, text in facts.items()} for where, facts in stored.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}). Move it away to go on; what the run's dataset was is then not compared."
        ) from error
