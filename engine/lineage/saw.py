"""Answers which datasets, runs, predictions and exports saw a log, a scene or an example that must be withdrawn.

Nothing is left out in silence: a thing whose names are not known, or whose origin was not found, is listed with the
answer "cannot tell".
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.base import formatting
from engine.base.json_text import dumps, reason
from engine.lineage.graph import Found, Graph
from engine.lineage.things import DATASET, Thing, find_things
from engine.lineage.tree import UNKNOWN
from engine.readers.files import sample_hash
from engine.run import lineage
from engine.run.lineage import DATA, Input, Names

SAW, MAYBE, CANNOT_TELL, NOT = "saw it", "may have seen it", "cannot tell", "did not see it"
FILE = "file"
CACHED = 8  # files of names that are kept in memory
_ORDER = (SAW, MAYBE, CANNOT_TELL, NOT)
_SAMPLED = re.compile(r"(.+) (\d+) bytes ([0-9a-f]{12})")  # a file in a fingerprint (`readers/files.py`)


@dataclass(frozen=True)
class Answer:
    """What is known of one thing.

    Attributes:
        kind: "dataset", "run", "predictions", "export" or "unknown".
        path: its path, relative to the searched folder if it is below it.
        answer: SAW, MAYBE, CANNOT_TELL or NOT.
        reasons: sentences: which name matched, through which other thing, or why this is not known.
    """

    kind: str
    path: str
    answer: str
    reasons: Sequence[str] = ()


@dataclass(frozen=True)
class Seen:
    """The answer about all things below a folder.

    Attributes:
        query: what was asked for.
        folder: the searched folder.
        kinds: the kinds of names among which the query was found, such as "file" or "scene".
        recorded: the kinds of names that the things have.
        answers: one for each thing: those that saw it first, and within an answer by path.
        problems: sentences about records that could not be read.
    """

    query: str
    folder: str
    kinds: Sequence[str]
    recorded: Sequence[str]
    answers: Sequence[Answer]
    problems: Sequence[str] = ()

    @property
    def is_clear(self) -> bool:
        """Whether it is certain that nothing saw it."""
        return all(found.answer == NOT for found in self.answers) and not self.problems

    def to_json(self) -> str:
        """Returns the answers as JSON."""
        return dumps({**dataclasses.asdict(self), "clear": self.is_clear}, indent=1)


def who_saw(query: str, folder: Path) -> Seen:
    """Returns which things below a folder, and which that they were made from, saw a file, a group or an example.

    Args:
        query: the path of a file or a folder of files, a part of such a path, or the value of a text in the examples,
            such as a scene or a token. A file that exists here is also found by its content, under any name.
        folder: folder with runs, datasets, predictions and exports.

    Raises:
        RunError: the folder cannot be read.
    """
    things = find_things(folder)
    graph = Graph(folder, things)
    things += _ancestors(things, graph)
    search = _Search(Query(query), graph, things)
    answers = sorted(search.answers(), key=lambda found: (_ORDER.index(found.answer), found.path))
    problems = [*(thing.problem for thing in things if thing.problem), *search.problems]
    kinds, recorded = sorted(search.query.kinds), sorted(search.query.recorded)
    return Seen(query, str(folder), kinds, recorded, answers, list(dict.fromkeys(problems)))


def _ancestors(things: Sequence[Thing], graph: Graph) -> list[Thing]:
    """Returns the runs and datasets outside of the folder that things were made from."""
    known, waiting, found = {thing.path for thing in things}, list(things), list[Thing]()
    while waiting:
        for _, source in graph.upstream(waiting.pop()):
            if source.thing is not None and source.thing.path not in known:
                known.add(source.thing.path)
                waiting.append(source.thing)
                found.append(source.thing)
    return found


class Query:
    """What is asked for.

    Args:
        text: as for `who_saw`.
    """

    def __init__(self, text: str):
        self.text = text
        self.kinds: set[str] = set()
        """Kinds of names, "file" or texts such as "scene", among which the text occurs: filled by `learn`."""
        self.recorded: set[str] = set()
        """All kinds of names, likewise."""
        self._name = text.rstrip("/") or text
        path = Path(text).expanduser()
        self._paths = {self._name, str(path.absolute()), str(path.resolve())}
        self._content: tuple[int, str] | None = None
        if path.is_file():
            self._content = (path.stat().st_size, sample_hash(str(path)))
        if path.exists():
            self.kinds.add(FILE)

    def match(self, names: Names) -> str:
        """Returns which of the names is asked for, such as "scene = s1"; "" if none is. Notes its kind."""
        self.recorded |= {*names.values, *([FILE] if names.files else [])}
        reason = ""
        for path, about in names.files.items():
            if self.matches_path(path):
                self.kinds.add(FILE)
                reason = f"file {path}"
                break
            if self._content is not None and about == self._content:
                reason = reason or f"file {path}, which has the same content"
        for kind, values in names.values.items():
            if any(map(self._matches_value, values)):
                self.kinds.add(kind)
                reason = reason or f"{kind} = {self.text}"
        return reason

    def matches_path(self, path: str) -> bool:
        """Returns whether a path is the one asked for, lies below it, or has it as consecutive parts."""
        return path in self._paths or any(f"/{name.strip('/')}/" in f"/{path.strip('/')}/" for name in self._paths)

    def ask(self, one: Input, names: Names | None, matched: str) -> tuple[str, str]:
        """Returns the answer of one dataset, and its reason. All names must have been matched before.

        Args:
            one: the data.
            names: the names that it holds; None if none were recorded.
            matched: what `match` has returned for them.
        """
        if names is None:
            known = self._by_fingerprint(one, Names())
            return known or (CANNOT_TELL, f"{one.role}: no names were recorded of this data")
        if matched:
            return self._limited(one, f"{one.role}: {matched}")
        if found := self._by_fingerprint(one, names):
            return found
        if names.omitted:
            kinds = ", ".join(f"{count:,} of {name}" for name, count in names.omitted.items())
            return CANNOT_TELL, f"{one.role}: not all names were recorded ({kinds})"
        kinds = {*names.values, *([FILE] if names.files else [])}
        if self.kinds and not self.kinds & kinds:
            asked = " or ".join(sorted(self.kinds))
            return CANNOT_TELL, f"{one.role}: no name of the kind {asked} was recorded of it"
        if not self.kinds and not names.values:
            return CANNOT_TELL, f"{one.role}: only its files were recorded, not the keys and groups in them"
        return NOT, ""

    def _matches_value(self, value: str) -> bool:
        """Returns whether a value is what is asked for, or has it as consecutive parts, such as `scene-1/000034`."""
        if "/" not in value:
            return value == self.text
        return value == self.text or f"/{self._name.strip('/')}/" in f"/{value.strip('/')}/"

    def _limited(self, one: Input, reason: str) -> tuple[str, str]:
        """Returns the answer if data holds the name; a limit may have left it out, since names are those of all."""
        if "limit" in one.settings:
            return MAYBE, f"{reason}; only the first {one.settings['limit']} examples were used"
        return SAW, reason

    def _by_fingerprint(self, one: Input, names: Names) -> tuple[str, str] | None:
        """Returns the answer by content: by hashes in the fingerprint, else by the size of files without a hash."""
        if self._content is None:
            return None
        sampled = {(found[1], int(found[2])): found[3] for part in one.id.split("; ") if (found := _sampled(part))}
        for (name, size), text in sampled.items():
            if (size, text) == self._content:
                return self._limited(one, f"{one.role}: file {name}, which has the same content")
        for path, (size, text) in names.files.items():
            if not text and size == self._content[0] and (Path(path).name, size) not in sampled:
                return MAYBE, f"{one.role}: file {path} has the same size; its content was not recorded"
        return None


def _sampled(part: str) -> re.Match[str] | None:
    return _SAMPLED.fullmatch(part)


class _Search:
    """Answers for things: by their own data first, and then by what they were made from.

    Args:
        query: what is asked for.
        graph: joins the things.
        things: all of them.
    """

    def __init__(self, query: Query, graph: Graph, things: Sequence[Thing]):
        self.query, self._graph, self._things = query, graph, things
        self.problems: list[str] = []
        """Sentences about names that cannot be read."""
        self._read: dict[str, Mapping[str, Names]] = {}
        self._matched: dict[tuple[str, str], str] = {}

    def answers(self) -> list[Answer]:
        """Returns an answer for each thing."""
        for thing in self._things:  # all names are matched before anything is answered
            self._names(thing)
        own = {thing.path: self._own(thing) for thing in self._things}
        sources = {thing.path: [(one, source) for one, source in self._graph.upstream(thing)] for thing in self._things}
        best = {path: _worst(found) for path, found in own.items()}
        changed = True
        while changed:  # an answer only becomes worse, so cycles end, too
            changed = False
            for path, found in sources.items():
                answer = _worst([(best[path], ""), *(self._inherited(one, source, best) for one, source in found)])
                changed |= answer != best[path]
                best[path] = answer
        return [self._answer(thing, own[thing.path], sources[thing.path], best) for thing in self._things]

    def _answer(
        self,
        thing: Thing,
        own: Sequence[tuple[str, str]],
        sources: Sequence[tuple[Input, Found]],
        best: Mapping[Path, str],
    ) -> Answer:
        found = [reason for answer, reason in own if answer == best[thing.path] and reason]
        if best[thing.path] != SAW or not found:  # what it was made from is of interest only if it adds something
            inherited = [self._inherited(one, source, best) for one, source in sources]
            found += [reason for answer, reason in inherited if answer == best[thing.path] != NOT]
        return Answer(thing.kind, self._graph.name(thing.path), best[thing.path], list(dict.fromkeys(found)))

    def _own(self, thing: Thing) -> list[tuple[str, str]]:
        """Returns the answers of a thing's own data, and of what is not known of it."""
        if thing.kind == DATASET and lineage.record_path(Path(self.query.text).resolve()) == _record(thing):
            return [(SAW, "the file is a part of it")]
        content, names, problem = self._names(thing)
        found = [
            self.query.ask(one, names.get(one.key), self._matched.get((content, one.key), ""))
            for one in thing.inputs(DATA)
        ]
        found += [(CANNOT_TELL, text) for text in (problem, thing.problem) if text]
        if not thing.record.inputs and not thing.problem:
            found.append((CANNOT_TELL, "nothing is recorded of what it was made from"))
        return found

    def _inherited(self, one: Input, source: Found, best: Mapping[Path, str]) -> tuple[str, str]:
        """Returns the answer that a thing has from one that it was made from."""
        if source.thing is None:
            if one.kind == DATA:  # the names of an unknown dataset are in the record of what reads it
                return NOT, ""
            return CANNOT_TELL, f"{one.role}: {UNKNOWN} run {source.path}"
        answer = best[source.thing.path]
        through = f"{one.role}: through {source.thing.kind} {self._graph.name(source.thing.path)}"
        if source.sure or answer not in (SAW, NOT):
            return answer, through
        return (MAYBE if answer == SAW else CANNOT_TELL), f"{through} ({source.note})"

    def _names(self, thing: Thing) -> tuple[str, Mapping[str, Names], str]:
        """Returns a hash of a thing's names, the names by key of the data, and what is wrong with their file.

        Runs on one dataset have equal names, which are matched once. Only some are kept in memory.
        """
        if thing.names_path == Path():
            return "", {}, ""
        try:
            content = lineage.content_id(thing.names_path)
            if content not in self._read:
                while len(self._read) >= CACHED:
                    del self._read[next(iter(self._read))]
                self._read[content] = lineage.read_names(thing.names_path)
                for key, names in self._read[content].items():
                    if (content, key) not in self._matched:
                        self._matched[content, key] = self.query.match(names)
            return content, self._read[content], ""
        except FileNotFoundError:
            return "", {}, ""
        except (OSError, ValueError) as error:
            problem = f"{thing.names_path}: cannot be read ({reason(error)})."
            self.problems.append(problem)
            return "", {}, problem


def _worst(found: Sequence[tuple[str, str]]) -> str:
    return min((answer for answer, _ in found), key=_ORDER.index, default=NOT)


def _record(thing: Thing) -> Path:
    return thing.path.with_name(f"{thing.path.name}.{lineage.RECORD}")


def to_text(found: Seen) -> str:
    """Returns the answers for a terminal: what saw it, or cannot tell, with the reasons; others are counted."""
    lines = []
    for answer in (SAW, MAYBE, CANNOT_TELL):
        rows = [[f"  {one.kind}", one.path, "; ".join(one.reasons)] for one in found.answers if one.answer == answer]
        if rows:
            lines += [f"{answer}:", *formatting.aligned(rows)]
    clear = sum(one.answer == NOT for one in found.answers)
    if not found.answers:
        lines.append(f"Nothing with a lineage lies in {found.folder}.")
    elif clear:
        lines.append(f"{clear} of {len(found.answers)} things in {found.folder} did not see {found.query}.")
    if found.answers and not found.kinds:
        names = f"Names were recorded of: {', '.join(found.recorded)}." if found.recorded else "No names were recorded."
        lines.append(f"{found.query} is no name of a dataset there, and no file here: check its spelling. {names}")
    return "\n".join(lines)
