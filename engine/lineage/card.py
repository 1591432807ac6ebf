"""The model card of an export: what is known of a model, as Markdown for people who decide about its use.

It is made of what is stored, and says "unknown" for the rest. The same export gives the same bytes.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.base.errors import ConfigError, RunError
from engine.base.files import read_text
from engine.base.formatting import number, printable
from engine.base.json_text import reason
from engine.config.schema import Config, Evaluation
from engine.config.text import field_texts
from engine.experiments.record import plain
from engine.experiments.statistics import FEWEST_GROUPS
from engine.lineage.card_results import Results, read_results_of
from engine.lineage.graph import Found, Graph
from engine.lineage.scores import WHOLE, Score
from engine.lineage.things import EXPORT, Thing, find_things, thing_at
from engine.lineage.tree import UNKNOWN, Node, branches, origin
from engine.run import code, lineage
from engine.run.atomic import write_text
from engine.run.lineage import DATA, digest
from engine.storage.mounts import shown

SUFFIX = ".MODEL_CARD.md"
_MARK = re.compile(r"<!-- Written by Convoy; hash of the text below: ([0-9a-f]{16}) -->\n")
_NOT_COMPARED = ("name", "log.", "cache.", "tiny.")  # settings that change no result


@dataclass(frozen=True)
class TeamText:
    """What only the team knows: the texts of files that it gives; "" for none.

    Attributes:
        intended_use: for what the model may be used, and for what not.
        limits: what is known to be wrong with it.
    """

    intended_use: str = ""
    limits: str = ""


def card_path(file: Path) -> Path:
    """Returns where the card of an exported file lies."""
    return file.with_name(file.name + SUFFIX)


def check_replaceable(file: Path) -> None:
    """Raises ConfigError if a card exists that Convoy has not written, or that was changed since."""
    path = card_path(file)
    if not path.exists():
        return
    try:
        found = _MARK.match(text := read_text(path))
        if found is not None and digest(text[found.end() :]) == found[1]:
            return
    except OSError:
        pass
    raise ConfigError(
        f"{path}: was changed by hand, or is no model card of Convoy, and would be replaced. Move it away, or write no "
        "card with --no-card. Texts of the team belong into files: --intended-use=FILE and --limits=FILE."
    )


def read_team_text(path: str | None, flag: str) -> str:
    """Returns the text of a file of the team; "" for None. Raises ConfigError if it cannot be read, or is empty."""
    if path is None:
        return ""
    try:
        text = read_text(Path(path)).strip()
    except OSError as error:
        raise ConfigError(f"{flag}={path}: cannot be read ({reason(error)}). Name a text file.") from error
    if not text:
        raise ConfigError(f"{flag}={path}: the file is empty. Write the text, or leave the flag out.")
    return text


def write_card(
    file: Path,
    team: TeamText = TeamText(),
    group: str = "",
    run: Path | None = None,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Writes the card of an exported file next to it, and returns its path.

    Args:
        file: the exported file, which has a record of lineage.
        team: texts of the team.
        group: tag whose values are resampled for intervals; "" for single examples.
        run: the run directory; None: where the record says, or where its checkpoint is found.
        on_part: called with the number of finished parts of an evaluation and of all.

    Raises:
        RunError: the file has no record that can be read, its run is not found, or the card cannot be written.
        ConfigError: an evaluation has no such tag.
    """
    text = model_card(file, team, group, run, on_part)
    path = card_path(file)
    write_text(path, f"<!-- Written by Convoy; hash of the text below: {digest(text)} -->\n{text}")
    return path


def model_card(
    file: Path,
    team: TeamText = TeamText(),
    group: str = "",
    run: Path | None = None,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Returns the text of the card; arguments and errors as for `write_card`."""
    export = thing_at(file)
    if export is None or export.kind != EXPORT or not export.inputs(lineage.CHECKPOINT):
        why = export.problem if export is not None and export.problem else "it has no record of an export"
        raise RunError(f"{file}: no model card can be made: {why}. Export the weights again.")
    if export.record.id != lineage.content_id(file):
        raise RunError(f"{file}: no model card can be made: it was changed after its export. Export the weights again.")
    graph = Graph(file.absolute().parent, [])
    [one, *_] = export.inputs(lineage.CHECKPOINT)
    found = graph.run_of(one, export) if run is None else Found(thing_at(run), str(run))
    thing = found.thing
    if thing is None or thing.run is None or one.step is None:
        raise RunError(f"{file}: its run is not found ({found.note}). Export the weights again.")
    results, tree = read_results_of(thing, one.step, group, on_part), origin(export, graph)
    if any(_unknown(tree)):  # something was moved
        tree = origin(export, Graph(graph.folder, find_things(thing.path.parent)))
    sections = [
        ("", _summary(file, export, thing, one.step, one.id)),
        ("Intended use", [team.intended_use or "The team has given none."]),
        ("Data", _data(thing, graph)),
        ("Results", _results(results)),
        ("Limits", _limits(team, thing, results, tree)),
        ("Training", _training(thing)),
        ("Lineage", ["```text", f"{tree.kind} {tree.name}", *branches(tree.nodes), "```"]),
    ]
    parts = ["\n".join(([f"## {title}", ""] if title else []) + [*lines]) for title, lines in sections]
    return "\n\n".join([f"# Model card: {_text(file.name)}", *parts]) + "\n"


def _summary(file: Path, export: Thing, run: Thing, step: int, checkpoint: str) -> list[str]:
    config = _config(run)
    rows = [
        ["Task", _code(str(config.get("task.target") or UNKNOWN))],
        ["Run", f"{_text(shown(run.path))}, step {step}"],
        ["Checkpoint", checkpoint or UNKNOWN],
        ["Weights", f"{export.record.settings.get('weights', UNKNOWN)}, {_weight_count(file)}"],
        ["File", f"{_text(file.name)}, {export.record.id or 'content unknown'}"],
    ]
    return _table(["Model", ""], rows)


def _weight_count(file: Path) -> str:
    """Returns the number of arrays and of their entries, from the head of the exported file."""
    try:
        from safetensors import safe_open

        with safe_open(file, "np") as stored:
            shapes = [stored.get_slice(name).get_shape() for name in stored.keys()]  # noqa: SIM118, no mapping
    except Exception:  # safetensors raises its own class for a damaged file
        return "number unknown"
    total = 0
    for shape in shapes:
        size = 1
        for extent in shape:
            size *= extent
        total += size
    return f"{total:,} numbers in {len(shapes)} arrays"


def _data(run: Thing, graph: Graph) -> list[str]:
    inputs = run.inputs(DATA)
    if not inputs:
        return [f"{UNKNOWN}: the run has recorded none."]
    names = _names(run)
    rows = []
    for one in inputs:
        filters = [f"{name}={text}" for name, text in one.settings.items() if name != "target"]
        held = names.get(one.key)
        kinds = {} if held is None else {"file": len(held.files), **{k: len(v) for k, v in held.values.items()}}
        rows.append(
            [
                one.role + (f" (since attempt {one.attempt})" if one.attempt > 1 else ""),
                _code(one.settings.get("target") or UNKNOWN),
                _text(one.examples or UNKNOWN),
                digest(one.id) if one.id else UNKNOWN,
                _text(", ".join(filters) or "none"),
                _text("; ".join(f"{kind}: {count:,}" for kind, count in kinds.items() if count) or "not recorded"),
            ]
        )
    head = ["Used as", "Source", "Examples", "Content", "Arguments and filters", "Recorded names"]
    lines = _table(head, rows)
    written = {found.path: found for one in inputs for found in graph.datasets_of(one)}
    for path, found in written.items():
        record = found.thing.record if found.thing is not None else None
        if record is None:
            lines += ["", f"{_text(path)}: {found.note}."]
        else:
            left_out = f", {record.left_out} that could not be read were left out" if record.left_out else ""
            lines += ["", f"{_text(path)}: a written dataset of {record.examples} examples{left_out}."]
    return lines


def _names(run: Thing) -> Mapping[str, lineage.Names]:
    try:
        return lineage.read_names(run.names_path)
    except (OSError, ValueError):
        return {}


def _results(found: Results) -> list[str]:
    if not found.evaluations:
        return ["The run has no evaluations: nothing is known of the quality of this model."]
    lines = []
    for name in found.evaluations:
        scores = [one for one in found.scores if one.evaluation == name]
        lines += ["", f"### {_text(name)}", "", _text(found.notes[name])]
        if scores:
            whole = [[_text(one.metric), number(one.value), _interval(one)] for one in scores if one.part == WHOLE]
            lines += ["", *_table(["Metric", "Value", "95 % interval"], whole)]
        slices = [
            [_text(one.part), _text(one.metric), number(one.value), _interval(one), _count(one)]
            for one in scores
            if one.part != WHOLE
        ]
        if slices:
            lines += ["", *_table(["Slice", "Metric", "Value", "95 % interval", "Examples"], slices)]
    return lines[1:]


def _interval(one: Score) -> str:
    if one.has_interval:
        return f"{number(one.low)} to {number(one.high)}"
    is_small = one.groups is not None and one.groups < FEWEST_GROUPS
    return "too few examples" if is_small else UNKNOWN


def _count(one: Score) -> str:
    return f"{one.examples:,}" if one.examples is not None else UNKNOWN


def _limits(team: TeamText, run: Thing, results: Results, tree: Node) -> list[str]:
    lines = [team.limits or "The team has given none.", "", "Known from what is stored:", ""]
    known = [*_known_limits(run, results), *(f"Of unknown origin: {text}." for text in _unknown(tree))]
    return lines + [f"- {_text(text)}" for text in known or ["nothing more."]]


def _known_limits(run: Thing, results: Results) -> Iterator[str]:
    assert run.run is not None
    if run.run.state != "done":
        yield f"The run has not reached its end: its state is {run.run.state!r}."
    found = code.read(run.path / "code.json")
    if not found.commit:
        yield "The commit of the code is unknown, so the run cannot be repeated from it."
    elif found.dirty is not False:
        changed = "had uncommitted changes" if found.dirty else "may have had uncommitted changes"
        yield f"The code {changed}, so the commit alone does not repeat the run."
    if not results.evaluations:
        yield "There are no evaluations."
    for name in results.evaluations:
        yield from _evaluation_limits(name, [one for one in results.scores if one.evaluation == name])


def _evaluation_limits(name: str, scores: Sequence[Score]) -> Iterator[str]:
    if not any(one.has_interval for one in scores):
        yield f"{name}: how sure its results are is unknown."
    parts = {one.part: one for one in scores if one.part != WHOLE}
    few = [
        f"{part} ({one.examples:,})"
        for part, one in parts.items()
        if one.examples is not None and one.groups is not None and one.groups < FEWEST_GROUPS
    ]
    if few:
        yield f"{name}: slices with too few examples to say anything: {', '.join(few)}."
    for whole in (one for one in scores if one.part == WHOLE and one.higher_is_better is not None):
        of_slices = [one for one in scores if one.part != WHOLE and one.metric == whole.metric]
        shown = [one for one in of_slices if one.has_interval] or of_slices
        if shown:
            worst = (min if whole.higher_is_better else max)(shown, key=lambda one: one.value)
            limits = f", 95 % interval {_interval(worst)}" if worst.has_interval else ""
            yield (
                f"{name}: worst slice by {whole.metric}: {worst.part}, {number(worst.value)}{limits}; "
                f"all examples: {number(whole.value)}."
            )


def _unknown(node: Node) -> Iterator[str]:
    if node.kind == UNKNOWN:
        yield f"{node.role}: {node.name}"
    for each in node.nodes:
        yield from _unknown(each)


def _training(run: Thing) -> list[str]:
    assert run.run is not None
    found, record = code.read(run.path / "code.json"), run.run
    changed = {True: ", with uncommitted changes", False: "", None: ", uncommitted changes unknown"}[found.dirty]
    total = f"{record.total_steps}" if record.total_steps is not None else UNKNOWN
    rows = [
        ["State", f"{record.state}, {record.step} of {total} steps, attempt {record.attempt or UNKNOWN}"],
        ["Code", f"{found.commit}{changed}" if found.commit else UNKNOWN],
        ["Packages", ", ".join(f"{name} {text}" for name, text in found.packages.items()) or UNKNOWN],
        ["Environment", ", ".join(f"{name} {text}" for name, text in found.environment.items()) or UNKNOWN],
    ]
    lines = _table(["Run", ""], [[name, _text(text)] for name, text in rows])
    differing = _differences(_config(run))
    if not differing:
        return [*lines, "", "Settings: unknown."]
    head = ["Setting", "Value", "Default"]
    return [*lines, "", "Settings that differ from the defaults:", "", *_table(head, differing)]


def _config(run: Thing) -> Mapping[str, Any]:
    return run.run.config if run.run is not None else {}


def _differences(config: Mapping[str, Any]) -> list[list[str]]:
    evaluations = {name.split(".")[1]: Evaluation() for name in config if name.startswith("evaluations.")}
    usual = {name: plain(text) for name, text in field_texts(Config(evaluations=evaluations)).items()}
    return [
        [_code(name), _code(str(value)), _code(str(usual[name])) if name in usual else "none"]
        for name, value in config.items()
        if not name.startswith(_NOT_COMPARED) and (name not in usual or usual[name] != value)
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _text(text: str) -> str:
    """Returns a text in which no character starts Markdown or ends a cell."""
    return re.sub(r"([\\|*_`<>\[\]#&~$])", r"\\\1", printable(" ".join(text.split())))


def _code(text: str) -> str:
    """Returns a text as code in a cell."""
    if not text:
        return "empty"
    text = printable(" ".join(text.split())).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"
