"""The pictures of a run that a report embeds: figures of examples, and other images of evaluations and hooks.

They are PNG files below `figures/` of the run directory. What they take together is bounded, and the report says what
was left out.
"""

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.observe.figure_files import FIGURE

PNG = b"\x89PNG\r\n\x1a\n"
_RANK = re.compile(r"(\d+)-example-(\d+)\.png")


@dataclass
class Budget:
    """Bytes of images that may still be embedded, how many images did not fit, and those that did."""

    left: int
    left_out: int = 0
    seen: set[bytes] = field(default_factory=set)

    def take(self, path: Path) -> str | None:
        """Returns a PNG file as the address of a `src`; None if it does not fit, cannot be read or is no PNG."""
        try:
            fits = path.stat().st_size <= self.left
            content = path.read_bytes() if fits else PNG
        except OSError:
            fits, content = False, PNG
        if not fits:
            self.left_out += 1
            return None
        return self.embed(content) if content.startswith(PNG) else None

    def embed(self, content: bytes) -> str | None:
        """Returns a PNG as the address of a `src`; None if it does not fit."""
        if len(content) > self.left:
            self.left_out += 1
            return None
        self.left -= len(content)
        self.seen.add(content)
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Pictures:
    """The pictures of a run.

    Attributes:
        figures: evaluation -> example -> address of its figure, in the order of the ranks.
        steps: evaluation -> step of its figures.
        others: name, step and address of other images.
    """

    figures: dict[str, dict[int, str]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    others: list[dict[str, Any]] = field(default_factory=list)


def read_pictures(folder: Path, budget: Budget) -> Pictures:
    """Returns the pictures of the newest step of each evaluation, and all images that have other names.

    Args:
        folder: the folder `figures` of a run.
        budget: what may be embedded; the pictures that are read are taken from it.
    """
    found = Pictures()
    for evaluation in sorted(path for path in _entries(folder) if path.is_dir()):
        steps = [path for path in _entries(evaluation) if path.is_dir() and path.name.isdecimal()]
        newest = max(steps, key=lambda path: int(path.name), default=None)
        if newest is not None:
            files = {int(match[1]): (int(match[2]), path) for path in _entries(newest) if (match := _match(path))}
            for _, (example, path) in sorted(files.items()):
                if address := budget.take(path):
                    found.figures.setdefault(evaluation.name, {})[example] = address
                    found.steps[evaluation.name] = int(newest.name)
    for path in sorted(_files(folder)):
        if not FIGURE.fullmatch(path.name) and (address := budget.take(path)):
            found.others.append({"name": path.relative_to(folder).as_posix(), "src": address})
    return found


def _match(path: Path) -> re.Match[str] | None:
    return _RANK.fullmatch(path.name)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _files(folder: Path) -> list[Path]:
    """Returns the PNG files of a folder at any depth; links to folders are not followed."""
    found = []
    for path in _entries(folder):
        if path.is_dir() and not path.is_symlink():
            found += _files(path)
        elif path.suffix == ".png" and not path.name.startswith("."):
            found.append(path)
    return found
