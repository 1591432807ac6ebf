"""Exchanges sets of inputs, and results, with an outside program; both are JSON, which keeps every bit of a float64."""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.references.environment import Environment

GOLDEN_SETS = 12


def evaluated(environment: Environment, inputs: Mapping[str, Any]) -> list[Any]:
    """Returns what the outside program writes for inputs with the entry "sets": one result for each set.

    The first sets and their results are also written to `environment.golden`, as golden numbers of the tests.
    """
    with tempfile.TemporaryDirectory(prefix="convoy-references-") as name:
        folder = Path(name)
        (folder / "inputs.json").write_text(json.dumps(inputs))
        environment.run(folder)
        results = json.loads((folder / "results.json").read_text())
    if environment.golden is not None:
        chosen = {**inputs, "sets": inputs["sets"][:GOLDEN_SETS], "results": results[:GOLDEN_SETS]}
        environment.golden.mkdir(parents=True, exist_ok=True)
        path = environment.golden / f"{environment.noun}.json"
        path.write_text(json.dumps(chosen, separators=(",", ":")) + "\n", encoding="utf-8")
    return results


def difference(found: float, wanted: float) -> float:
    """Returns the absolute difference; 0 if both are NaN, and infinity if one is."""
    if math.isnan(found) or math.isnan(wanted):
        return 0.0 if math.isnan(found) and math.isnan(wanted) else math.inf
    return abs(found - wanted)


def largest_difference(pairs: Sequence[tuple[float, float]]) -> float:
    """Returns the largest `difference` of pairs; infinity if there are none."""
    return max((difference(*pair) for pair in pairs), default=math.inf)
