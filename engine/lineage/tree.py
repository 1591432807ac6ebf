"""The lineage of one thing as a tree: what it came from, and what came from it, as plain data, text and JSON."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.base.errors import RunError
from engine.base.formatting import printable
from engine.base.json_text import dumps
from engine.lineage.graph import Found, Graph
from engine.lineage.things import RUN, Thing, find_things
from engine.run import code, lineage
from engine.run.lineage import DATA, Input, digest

UNKNOWN = "unknown"
DEEPEST = 50  # levels of a tree
ABOVE, CYCLE = "listed above", "a cycle: this is its own ancestor"


@dataclass(frozen=True)
class Node:
    """A thing, or data, in a tree.

    Attributes:
        kind: "run", "dataset", "data", "predictions", "export", or UNKNOWN for a thing that was not found.
        name: its path, relative to the searched folder if it is below it; of data, the source.
        role: what it was used for by the node above it, such as "data" or "init"; "" for the root.
        details: what is known of it, by name.
        note: what a reader must know, such as that it was moved; "" if nothing.
        path: its absolute path; "" for data.
        nodes: what it came from, or what came from it.
    """

    kind: str
    name: str
    role: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    path: str = ""
    nodes: Sequence["Node"] = ()


@dataclass(frozen=True)
class Lineage:
    """The lineage of one thing.

    Attributes:
        subject: the thing; its `nodes` are what it came from.
        became: what came from it.
        folder: the folder below which `became` was searched.
        problems: sentences about records that could not be read.
    """

    subject: Node
    became: Sequence[Node]
    folder: str
    problems: Sequence[str] = ()

    def to_json(self) -> str:
        """Returns the tree as JSON."""
        return dumps(dataclasses.asdict(self), indent=1)


def lineage_of(path: Path, below: Path | None = None) -> Lineage:
    """Returns the lineage of a run or of a file.

    Args:
        path: a run directory; or a dataset, predictions or an export. A file that was moved without its record is found
            by its content.
        below: folder in which things are searched that came from it or were moved; None: the folder that holds `path`.

    Raises:
        RunError: there is no such thing, or the folder cannot be read.
    """
    folder = below or path.absolute().parent
    return dataclasses.replace(lineage_in(Graph(folder, find_things(folder)), path), folder=str(folder))


def lineage_in(graph: Graph, path: Path) -> Lineage:
    """Returns the lineage of a run or of a file among things that were searched before. Raises RunError."""
    subject = graph.at(path) or _by_content(path, graph)
    if subject is None:
        raise RunError(
            f"{path}: is no run and has no record of lineage ({lineage.record_path(path).name}), and no record below "
            f"{graph.folder} has its content. Give a run directory, a dataset, predictions or an export. To ask which "
            f"of them saw a log: convoy runs lineage --saw={path}"
        )
    problems = [thing.problem for thing in graph.things if thing.problem]
    problems += [subject.problem] if subject.problem and subject.problem not in problems else []
    node = _node(subject, graph)
    if subject.path != path.resolve() and subject.kind != "dataset":
        node = dataclasses.replace(node, note=f"{path} has the same content, so it is a copy or was moved")
    builder = _Builder(graph)
    return Lineage(
        dataclasses.replace(node, nodes=builder.came_from(subject, (subject.path,))),
        _Builder(graph).became(subject, (subject.path,)),
        str(graph.folder),
        problems,
    )


def origin(thing: Thing, graph: Graph) -> Node:
    """Returns a thing with what it came from."""
    return dataclasses.replace(_node(thing, graph), nodes=_Builder(graph).came_from(thing, (thing.path,)))


def _by_content(path: Path, graph: Graph) -> Thing | None:
    """Returns the thing whose record has the content of a file without a record."""
    if not path.is_file():
        return None
    known = {thing.record.id: thing for thing in graph.things if thing.record.id}
    return known.get(lineage.content_id(path)) if known else None


class _Builder:
    """Builds nodes; each thing is expanded once."""

    def __init__(self, graph: Graph):
        self._graph, self._expanded = graph, set[Path]()

    def came_from(self, thing: Thing, above: tuple[Path, ...]) -> list[Node]:
        self._expanded.add(thing.path)
        same: dict[tuple, list[Input]] = {}
        for one in thing.record.inputs:
            settings = tuple(one.settings.items())
            same.setdefault((one.kind, one.id, one.path, one.step, one.attempt, settings), []).append(one)
        nodes = []
        for inputs in same.values():
            one, role = inputs[0], ", ".join(each.role for each in inputs)
            if one.kind == DATA:
                nodes.append(self._data(one, role, above))
            else:
                nodes.append(self._found(one, role, self._graph.run_of(one, thing), above))
        return nodes

    def _data(self, one: Input, role: str, above: tuple[Path, ...]) -> Node:
        below = [self._found(one, "written", found, above) for found in self._graph.datasets_of(one)]
        return Node(DATA, one.settings.get("target") or "source unknown", role, _data_details(one), nodes=below)

    def _found(self, one: Input, role: str, found: Found, above: tuple[Path, ...]) -> Node:
        details = {"step": str(one.step)} if one.step is not None else {}
        if found.thing is None:
            return Node(UNKNOWN, self._graph.name(found.path), role, details, found.note, found.path)
        node = _node(found.thing, self._graph, role, details)
        return self._expand(node, found.note, found.thing, above, self.came_from)

    def _expand(self, node: Node, note: str, thing: Thing, above: tuple[Path, ...], deeper: "_Deeper") -> Node:
        """Returns a node with its own nodes, unless it is expanded elsewhere."""
        notes = [text for text in (node.note, note) if text]
        if thing.path in above:
            notes.append(CYCLE)
        elif thing.path in self._expanded:
            notes.append(ABOVE)
        elif len(above) >= DEEPEST:
            notes.append(f"more than {DEEPEST} levels: ask for this one")
        else:
            node = dataclasses.replace(node, nodes=deeper(thing, (*above, thing.path)))
        return dataclasses.replace(node, note="; ".join(notes))

    def became(self, thing: Thing, above: tuple[Path, ...]) -> list[Node]:
        self._expanded.add(thing.path)
        same: dict[tuple[Path, int | None], list[tuple[Thing, Input, Found]]] = {}
        for user, one, found in self._graph.users.get(thing.path, ()):
            same.setdefault((user.path, one.step), []).append((user, one, found))
        nodes = []
        for uses in same.values():
            user, one, found = uses[0]
            details = {"from step": str(one.step)} if one.step is not None else {}
            node = _node(user, self._graph, ", ".join(each.role for _, each, _ in uses), details)
            nodes.append(self._expand(node, found.note, user, above, self.became))
        return nodes


type _Deeper = Callable[[Thing, tuple[Path, ...]], list[Node]]


def _data_details(one: Input) -> dict[str, str]:
    found = {"examples": one.examples or UNKNOWN, "content": digest(one.id) if one.id else UNKNOWN}
    if one.attempt > 1:
        found["since attempt"] = str(one.attempt)
    return found | {name: text for name, text in one.settings.items() if name != "target"}


def _node(thing: Thing, graph: Graph, role: str = "", details: Mapping[str, str] | None = None) -> Node:
    record, found = thing.record, dict(details or {})
    if thing.kind == RUN and thing.run is not None:
        total = f"/{thing.run.total_steps}" if thing.run.total_steps is not None else ""
        found |= {
            "state": f"{thing.run.state} at {thing.run.step}{total}",
            **_code_details(code.read(thing.path / "code.json")),
        }
    else:
        if record.examples is not None:
            found["examples"] = str(record.examples)
        if record.left_out:
            found["left out"] = str(record.left_out)
        found |= {"code": _commit(record.commit, record.dirty)}
    return Node(thing.kind, graph.name(thing.path), role, found, thing.problem, str(thing.path))


def _code_details(found: code.Code) -> dict[str, str]:
    packages = {"convoy": found.packages["convoy"]} if "convoy" in found.packages else {}
    devices = {name: text for name, text in found.environment.items() if name == "devices"}
    return {"code": _commit(found.commit, found.dirty), **packages, **devices}


def _commit(commit: str, dirty: bool | None) -> str:
    if not commit:
        return UNKNOWN
    changed = {True: " with uncommitted changes", False: "", None: " (uncommitted changes are unknown)"}[dirty]
    return f"{commit[:12]}{changed}"


def to_text(found: Lineage) -> str:
    """Returns the tree for a terminal."""
    lines = [_line(found.subject), "came from" if found.subject.nodes else "came from: nothing is recorded"]
    lines += branches(found.subject.nodes)
    lines.append("became" if found.became else f"became: nothing is found below {found.folder}")
    lines += branches(found.became)
    return "\n".join(lines)


def branches(nodes: Sequence[Node], indent: str = "") -> Iterator[str]:
    """Yields the lines of nodes, drawn as a tree."""
    for number, node in enumerate(nodes, start=1):
        last = number == len(nodes)
        yield f"{indent}{'`- ' if last else '|- '}{_line(node)}"
        yield from branches(node.nodes, indent + ("   " if last else "|  "))


def _line(node: Node) -> str:
    role = f"{node.role}: " if node.role else ""
    found = {} if ABOVE in node.note else node.details
    details = ", ".join(f"{name} {text}" for name, text in found.items())
    note = f"  [{node.note}]" if node.note else ""
    kind = "" if node.kind == DATA else f"{node.kind} "
    return printable(f"{role}{kind}{node.name}{f' ({details})' if details else ''}{note}")
