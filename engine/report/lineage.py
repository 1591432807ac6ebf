"""The lineage of runs for a report: what each came from, and what came from it, as plain values for JSON.

What a run came from is looked up where it was recorded. What came from it is searched in the folder that holds the run,
for a bounded time, since that folder may hold anything. The page says what was searched.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.base.errors import ConvoyError
from engine.base.json_text import reason
from engine.experiments.index import Deadline
from engine.lineage.graph import Graph
from engine.lineage.things import find_things
from engine.lineage.tree import ABOVE, UNKNOWN, Lineage, Node, lineage_in
from engine.storage.mounts import address_of_copy

SEARCH_S = 5.0  # seconds in which the folders of all runs of a report are searched
MOST = 400  # things in each direction of a tree
_MOST_PROBLEMS = 10


def lineages(runs: Sequence[Path], seconds: float = SEARCH_S) -> list[dict[str, Any]]:
    """Returns the lineage of each run.

    Args:
        runs: the run directories.
        seconds: bounds the search for what came from them; 0 searches nothing.
    """
    whole = Deadline(seconds)
    graphs: dict[Path, tuple[Graph, Deadline, str]] = {}
    found = []
    for run in runs:
        folder = run.resolve().parent
        if folder not in graphs:
            graphs[folder] = _search(folder, seconds, whole)
        found.append(_lineage(run, *graphs[folder]))
    return found


def _search(folder: Path, seconds: float, whole: Deadline) -> tuple[Graph, Deadline, str]:
    """Returns what is known of a folder, what ends its search, and why it was not searched."""
    deadline, why = whole.share(), ""
    if not seconds:
        why = "Not searched: a run looks at no other files at its end. convoy report searches the folder that holds it."
    elif address_of_copy(folder) is not None:
        why = "Not searched: this run is in a bucket that is not mounted."
    try:
        things = [] if why else find_things(folder, deadline)
    except (ConvoyError, OSError) as error:
        things, why = [], f"{folder} was not searched: {reason(error) if isinstance(error, OSError) else error}"
    return Graph(folder, things, deadline), deadline, why


def _lineage(run: Path, graph: Graph, deadline: Deadline, why: str) -> dict[str, Any]:
    try:
        tree = lineage_in(graph, run)
    except (ConvoyError, OSError) as error:
        return {
            "subject": None,
            "became": [],
            "isSearched": False,
            "searched": str(error),
            "problems": [],
            "more": [0, 0],
        }
    came, became = _Nodes(), _Nodes()
    return {
        "subject": {**_values(tree.subject), "nodes": came.of(tree.subject.nodes)},
        "became": became.of(tree.became),
        "isSearched": not why,
        "searched": why or _searched(tree, deadline),
        "problems": list(tree.problems[:_MOST_PROBLEMS]),
        "more": [came.left_out, became.left_out],
    }


def _searched(tree: Lineage, deadline: Deadline) -> str:
    if deadline.passed:
        return (
            f"{tree.folder} was searched in part only, since it is large: the search ended after {SEARCH_S:g} s. "
            "convoy runs lineage RUN searches all of it."
        )
    return f"{tree.folder} was searched, which holds this run."


class _Nodes:
    """Makes plain values of nodes; of more than MOST, it counts the rest."""

    def __init__(self):
        self._count, self.left_out = 0, 0

    def of(self, nodes: Sequence[Node]) -> list[dict[str, Any]]:
        """Returns nodes with those below them."""
        found = []
        for node in nodes:
            self._count += 1
            if self._count > MOST:
                self.left_out += 1
                self.of(node.nodes)
            else:
                found.append({**_values(node), "nodes": self.of(node.nodes)})
        return found


def _values(node: Node) -> dict[str, Any]:
    is_repeated = ABOVE in node.note
    return {
        "kind": node.kind,
        "name": node.name,
        "role": node.role,
        "details": [[name, text] for name, text in node.details.items() if not is_repeated],
        "note": node.note,
        "isRepeated": is_repeated,
        "isUnknown": node.kind == UNKNOWN,
    }
