"""Compares files that an outside program writes and reads with what the engine reads from them.

The outside program gets a folder with inputs.json, and writes files and results.json there. Golden numbers are such a
folder with few sets, from which a test compares without the outside program.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.exchange import GOLDEN_SETS, difference
from benchmarks.references.rows import Row

type Compared = Callable[[Path], Iterator[Row]]
"""Yields the rows of a folder in which the outside program has run."""


def compare_files(
    environment: Environment,
    inputs: Mapping[str, Any],
    compared: Compared,
    golden_sets: int = GOLDEN_SETS,
    answer: Callable[[Path], None] | None = None,
) -> Iterator[Row]:
    """Yields the rows of inputs with the entry "sets", after the outside program has run on them.

    With `environment.golden`, it also runs on the first sets, in the folder `<golden>/<noun>`. With `answer`, which
    writes more files into the folder, it runs once more. With `environment.items`, names of sets, the golden files of
    other sets stay as they are.
    """
    golden, items = inputs["sets"][:golden_sets], environment.items or inputs["sets"]
    with tempfile.TemporaryDirectory(prefix="convoy-references-") as name:
        _run(environment, Path(name), {**inputs, "sets": [one for one in inputs["sets"] if one in items]}, answer)
        yield from compared(Path(name))
        if environment.golden is None:
            return
        folder = environment.golden / environment.noun
        if not environment.items:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _run(environment, folder, {**inputs, "sets": golden}, answer)
            return
        for item in (one for one in golden if one in items):
            shutil.rmtree(folder / item, ignore_errors=True)
            shutil.copytree(Path(name) / item, folder / item)
        _write_inputs(folder, {**inputs, "sets": golden})


def exchanged(folder: Path) -> tuple[list[Any], Any]:
    """Returns the sets of the inputs in a folder, and the results of the outside program."""
    return json.loads((folder / "inputs.json").read_text())["sets"], json.loads((folder / "results.json").read_text())


def plain(value: Any) -> Any:
    """Returns a part of an example in the form of JSON: arrays and tuples as lists, bytes as text."""
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def tree_difference(found: Any, wanted: Any) -> float:
    """Returns the largest difference of the numbers in two trees; infinity if something else differs."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        if found.keys() != wanted.keys():
            return float("inf")
        return max((tree_difference(found[name], wanted[name]) for name in found), default=0.0)
    if isinstance(found, list) and isinstance(wanted, list):
        if len(found) != len(wanted):
            return float("inf")
        return max((tree_difference(*pair) for pair in zip(found, wanted, strict=True)), default=0.0)
    if isinstance(found, int) and isinstance(wanted, int):
        return float(abs(found - wanted))  # exact also above 2**53
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        return difference(float(found), float(wanted))
    return 0.0 if type(found) is type(wanted) and found == wanted else float("inf")


def _run(
    environment: Environment, folder: Path, inputs: Mapping[str, Any], answer: Callable[[Path], None] | None
) -> None:
    _write_inputs(folder, inputs)
    environment.run(folder)
    if answer is not None:
        answer(folder)
        environment.run(folder)


def _write_inputs(folder: Path, inputs: Mapping[str, Any]) -> None:
    text = json.dumps(inputs, separators=(",", ":"))
    (folder / "inputs.json").write_text(text + "\n", encoding="utf-8")
