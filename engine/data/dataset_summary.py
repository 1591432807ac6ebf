"""Summaries of a run's datasets, stored in its run directory and compared when the run resumes.

A summary holds the number of examples, their spec and a fingerprint of the content (`source.fingerprint`).
`engine/api/resume.py` decides what to do about a difference.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from engine.base import json_text
from engine.base.duration import UNKNOWN_LENGTH
from engine.base.errors import DataError
from engine.data.source import SEPARATOR, BaseSource, example_spec, inner_sources, leaves_with_path

MAX_SHOWN = 8  # differing parts of a fingerprint that are listed

UNKNOWN_SIZE = "unknown"  # number of examples of a stream that does not know its length

Summary = Mapping[str, str]


def summarize(source: BaseSource) -> dict[str, str]:
    """Returns the number of examples, the shapes and dtypes of an example, and a fingerprint of the content."""
    spec = ", ".join(f"{path} {leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves_with_path(example_spec(source)))
    size = UNKNOWN_SIZE if len(source) >= UNKNOWN_LENGTH else str(len(source))
    return {"examples": size, "each": spec, "content": source.fingerprint()}


def reads_files(source: BaseSource) -> bool:
    """Returns whether a source, or one within it, knows the files that it reads, or names of its examples."""
    own = source.file_states is not None or bool(source.paths) or bool(source.known_names)
    return own or any(map(reads_files, inner_sources(source)))


def changes(before: Summary, now: Summary, where: str) -> list[str]:
    """Returns a line such as `data: examples: 64 -> 65` for each entry, or part of a fingerprint, that differs."""
    lines = []
    for name in {**before, **now}:
        old, new = before.get(name, "none"), now.get(name, "none")
        if old != new and name == "content":
            lines += [f"{where}: content: {line}" for line in _parts(old, new)]
        elif old != new:
            lines.append(f"{where}: {name}: {old} -> {new}")
    return lines


def _parts(before: str, now: str) -> list[str]:
    """Returns a line for each differing part of two fingerprints, such as a file; `old -> new` at equal positions."""
    old, new = before.split(SEPARATOR), now.split(SEPARATOR)
    if len(old) == len(new):
        found = [f"{a} -> {b}" for a, b in zip(old, new, strict=True) if a != b]
    else:
        found = [f"no longer {a}" for a in old if a not in new] + [f"new {b}" for b in new if b not in old]
    return found[:MAX_SHOWN] + ([f"... and {len(found) - MAX_SHOWN} more"] if len(found) > MAX_SHOWN else [])


def to_text(summaries: Mapping[str, Summary]) -> str:
    """Returns the summaries of all sources of a run, by their config field, as the text of a JSON file."""
    return json.dumps(summaries, indent=1) + "\n"


_SUMMARY = {"examples": str, "content": str, str: str}


def read(path: Path) -> dict[str, Summary]:
    """Returns the summaries in a file that holds `to_text`; an empty dict if the file does not exist.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return json_text.read(path, {"data": _SUMMARY, str: _SUMMARY})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({json_text.reason(error)}). Move the file away to continue without a "
            "comparison of the datasets."
        ) from error
