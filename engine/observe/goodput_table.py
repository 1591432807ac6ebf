"""`convoy goodput`: a table of how the time of a run was spent.

Goodput is the time of steps that were not lost, divided by the wall time since the start of the first attempt.
"""

from collections.abc import Mapping, Sequence

from engine.base import formatting
from engine.base.errors import RunError
from engine.base.formatting import aligned
from engine.observe.throughput import Reading
from engine.run.directory import RunDirectory
from engine.run.goodput import KINDS, SLOW, Entry, Time, read_all, sums

ATTEMPTS = 20  # number of last attempts that have a row of their own


def goodput_text(run: RunDirectory) -> str:
    """Returns a headline and a table with one row per attempt, the total, and the share of each kind of time.

    Raises:
        RunError: the run has no goodput ledger.
    """
    found = read_all(run.goodput)
    entries = [entry for entry in found.values if entry["kind"] != SLOW]
    if not entries:
        raise RunError(
            f"{run.goodput}: {'damaged' if found.damaged else 'missing or empty'}, so the time of this run is unknown. "
            "Pass the --workdir of a `convoy train` that has started."
        )
    attempts = sums(entries)
    total = {kind: Time() for kind in KINDS}
    for kinds in attempts.values():
        for kind, time in kinds.items():
            total[kind].seconds += time.seconds
            total[kind].steps += time.steps
    shown = list(attempts.items())[-ATTEMPTS:]
    rows = [["attempt", *KINDS, "wall", "steps", "lost steps", "goodput"]]
    if len(attempts) > len(shown):
        rows.append([f"({len(attempts) - len(shown)} earlier)"])
    rows += [_row(str(attempt), kinds) for attempt, kinds in shown]
    rows += [_row("total", total), ["share", *(f"{_share(total, kind):.1%}" for kind in KINDS)]]
    wall = sum(time.seconds for time in total.values())
    lines = [
        f"{run}: goodput {_share(total, 'step'):.1%} of {formatting.duration(wall)}, {total['step'].steps:,} steps in "
        f"{len(attempts):,} attempt{'s' * (len(attempts) != 1)}; seconds:",
        *(f"  {line}" for line in aligned(rows, right=True)),
    ]
    lines += _reading(entries, total)
    lines += _slow_processes([entry for entry in found.values if entry["kind"] == SLOW])
    if note := found.note(run.goodput):
        lines.append(f"warning: {note} The times above leave them out.")
    if any(entry.get("wall") for entry in entries):
        lines.append("Down times across machines or reboots are by the wall clock, which may have been adjusted.")
    return "\n".join(lines)


def _reading(entries: Sequence[Entry], total: Mapping[str, Time]) -> list[str]:
    """Returns lines about the stages of reading data; none if they were not measured."""
    measured = [entry for entry in entries if "reading" in entry]
    if not measured:
        return []
    seconds: dict[str, float] = {}
    for entry in measured:
        for name, value in entry.get("reading", {}).items():
            seconds[name] = seconds.get(name, 0.0) + value
    wall = sum(total[kind].seconds for kind in ("step", "lost", "data wait"))
    wait = total["data wait"].seconds / wall if wall > 0 else 0.0
    reading = Reading(wait, seconds, wall, measured[-1].get("readers", 1), measured[-1].get("cores", 1))
    sentence = reading.sentence()
    text = f"Reading data: {reading.shares_text()} of the readers' time."
    return [text, f"The run {sentence}."] if sentence else [text]


def _slow_processes(entries: Sequence[Entry]) -> list[str]:
    """Returns a line for each process that slowed down the run and each cause, the longest time first."""
    seconds: dict[tuple[str, str], float] = {}
    for entry in entries:
        key = (entry.get("process", ""), entry.get("cause", ""))
        seconds[key] = seconds.get(key, 0.0) + entry["seconds"]
    return [
        f"Of this time, about {formatting.duration(lost)} were lost to {process} ({cause})."
        for (process, cause), lost in sorted(seconds.items(), key=lambda item: -item[1])
    ]


def goodput(kinds: Mapping[str, Time]) -> float:
    """Returns the useful step time divided by the wall time, 0 to 1, of an attempt or of the total."""
    return _share(kinds, "step")


def _share(kinds: Mapping[str, Time], kind: str) -> float:
    wall = sum(time.seconds for time in kinds.values())
    return kinds[kind].seconds / wall if wall else 0.0


def _row(name: str, kinds: Mapping[str, Time]) -> list[str]:
    wall = sum(time.seconds for time in kinds.values())
    seconds = [f"{kinds[kind].seconds:,.2f}" for kind in KINDS]
    steps = (f"{kinds['step'].steps:,}", f"{kinds['lost'].steps:,}")
    return [name, *seconds, f"{wall:,.2f}", *steps, f"{_share(kinds, 'step'):.1%}"]
