"""Parquet and Arrow files with nested lists, maps, decimals and nulls, compared with the Python values of pyarrow."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.file_exchange import compare_files, exchanged, plain, tree_difference
from benchmarks.references.rows import Row
from engine.readers import Arrow, JsonLines, Parquet

NULL_SPEED = -1.0
COLUMNS = ("flat", "lanes", "deep", "boxes", "tags", "counts", "price", "exact", "whole", "name")
NESTED = ("flat", "lanes", "deep")
READERS = {"parquet": Parquet, "arrow": Arrow, "stream": Arrow}
"""Ending of a file -> its reader."""


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for each column, and one for the nested lists of JSON Lines."""
    sets = [_row(np.random.default_rng(seed)) for seed in range(cases)]
    yield from compare_files(environment, {"sets": sets}, compared)


def compared(folder: Path) -> Iterator[Row]:
    """Yields the rows of a folder in which pyarrow has written and read the files."""
    sets, results = exchanged(folder)
    wanted = [_as_example(row) for row in results]
    found: dict[str, list[Any]] = {}
    for ending, reader in READERS.items():
        source = reader(str(folder / f"rows.{ending}"), {**dict.fromkeys(COLUMNS), "speed": NULL_SPEED})
        found[ending] = [plain(source[index]) for index in range(len(source))]
    for name in (*COLUMNS, "speed"):
        expected = [row[name] for row in wanted]
        largest = max(tree_difference([row[name] for row in rows], expected) for rows in found.values())
        yield Row(f"column {name} of Parquet, Arrow and its stream", len(sets) * len(found), largest)
    nested = [{name: row[name] for name in NESTED} for row in found["parquet"]]
    lines = folder / "rows.jsonl"
    lines.write_text("".join(json.dumps({name: row[name] for name in NESTED}) + "\n" for row in sets))
    stream = JsonLines(str(lines))
    in_json = [plain(stream.decode(item)) for item, _ in stream.open(0, None)]
    lines.unlink()
    yield Row("nested lists of JSON Lines", len(sets), tree_difference(_no_empty(in_json), _no_empty(nested)))


def _as_example(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of pyarrow in the form of an example: structs in a list as one dict, decimals as floats."""
    boxes = {name: [box[name] for box in row["boxes"]] for name in ("x", "ids")}
    numbers = {name: float(row[name]) for name in ("price", "exact")}
    counts = {name: [pair[place] for pair in row["counts"]] for place, name in enumerate(("key", "value"))}
    speed = NULL_SPEED if row["speed"] is None else row["speed"]
    return {
        **row,
        **numbers,
        "whole": int(row["whole"]),
        "boxes": boxes,
        "tags": dict(row["tags"]),
        "counts": counts,
        "speed": speed,
    }


def _no_empty(value: Any) -> Any:
    """Returns lists without the rank of empty ones, which JSON does not tell: [] for [[], []] too."""
    if isinstance(value, dict):
        return {name: _no_empty(part) for name, part in value.items()}
    if not isinstance(value, list):
        return value
    parts = [_no_empty(part) for part in value]
    return [] if all(part == [] for part in parts) else parts


def _row(rng: np.random.Generator) -> dict[str, Any]:
    def some(make: Any, most: int = 4) -> list[Any]:
        return [make() for _ in range(rng.integers(0, most))]

    def integer() -> int:
        return int(rng.integers(-1000, 1000))

    def number() -> float:
        return float(np.float32(rng.normal()))

    return {
        "flat": some(integer),
        "lanes": [[number()], *some(lambda: some(number))],
        "deep": [[[integer()]], *some(lambda: some(lambda: some(integer)))],
        "boxes": some(lambda: {"x": number(), "ids": some(integer)}),
        "tags": [[name, integer()] for name in "abc" if rng.random() < 0.5],
        "counts": [[key, number()] for key in range(int(rng.integers(0, 3)))],
        "price": f"{integer() * 1000003 + integer()}E-3",
        "exact": f"{integer()}.{int(rng.integers(0, 10**9)):09}",
        "whole": str(int(rng.integers(-(10**18) + 1, 10**18))),
        "name": "".join(chr(code) for code in rng.integers(0xA1, 0x17F, 3)),
        "speed": None if rng.random() < 0.3 else number(),
    }
