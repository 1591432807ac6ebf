"""The plan: the minutes of each chunk on one core, from measured times of a step, and what is done."""

import dataclasses
from collections.abc import Mapping, Sequence

from benchmarks.optimizers import further, spaces, widths
from benchmarks.optimizers.chunks import Chunk
from benchmarks.optimizers.groups import TUNE
from benchmarks.optimizers.problems import PROBLEMS
from benchmarks.optimizers.rows import Row, Run
from benchmarks.optimizers.tables import markdown

STEP_MS = {"cnn": 7.6, "vit": 16.0, "lm": 27.0, "forecast": 18.0, "digits": 0.5}
"""CPU milliseconds of a step of AdamW with one core."""
COST = {"sam": 2.0, "mars": 1.2, "adam_mini": 1.1, "ademamix": 1.1, "muon": 1.1, "soap": 1.3, "soap cnn": 2.0}
"""Milliseconds of a step of an optimizer, over those of AdamW: on a task, or on all."""
BATCH = {"lm": 8}
"""Batch size of a task whose batch size is changed."""
EVALUATIONS_S, START_S = 4.0, 1.5
"""Seconds of the evaluations of a run, and of its start."""
COMPILE_S = 14.0
"""Seconds until a program of the step and of the evaluation is compiled, and the data of a seed is read."""
PROBLEM_S = 0.3
MOST_MINUTES = 25.0


def table(found: Mapping[str, Chunk], known: Sequence[Row]) -> str:
    """Returns the chunks with their minutes, and what is done."""
    lines, total, left = [], 0.0, 0.0
    for chunk in found.values():
        runs = planned(chunk, known)
        keys = {row.run.key for row in known if row.run.chunk == chunk.name}
        done = min(len(keys), len(runs))
        minutes = estimate(runs)
        total, left = total + minutes, left + minutes * (1 - done / len(runs))
        needs = f"after {', '.join(chunk.needs)}" if chunk.needs else ""
        lines.append([chunk.name, f"{minutes:.1f}", f"{done} of {len(runs)}", chunk.what, needs])
    head = ["chunk", "minutes", "runs done", "what", ""]
    note = (
        f"{total:.0f} minutes of one core in all, {left:.0f} of them are left. Two chunks run at a time on two cores."
    )
    return f"{markdown(head, lines)}\n\n{note}"


def planned(chunk: Chunk, known: Sequence[Row]) -> list[Run]:
    """Returns the runs of a chunk; the repetitions of a group have the settings of its first run."""
    try:
        groups = chunk.groups(known)
    except further.MissingRows:
        groups = chunk.groups([*known, _stand_in()])
    return [
        run
        for group in groups
        for run in (*group.tuning, *(dataclasses.replace(group.tuning[0], seed=seed) for seed in group.seeds))
    ]


def _stand_in() -> Row:
    """Returns a row in place of the best run that further chunks vary."""
    settings = spaces.points(further.SPEC)[0]
    run = Run(further.BASE, "trials", further.TASK, further.OPTIMIZER, TUNE, settings, 0, 1)
    return Row(run, [1.0], [], 0.0, 0.0, 0, 0, diverged=False)


def estimate(runs: Sequence[Run]) -> float:
    """Returns the minutes that runs take with one core."""
    seconds = 0.0
    compiled = set[object]()
    for run in runs:
        if run.task in PROBLEMS:
            seconds += PROBLEM_S
            continue
        cost = COST.get(f"{run.optimizer} {run.task}", COST.get(run.optimizer, 1.0))
        batch = float(run.settings.get("batch", BATCH.get(run.task, 1))) / BATCH.get(run.task, 1)
        wide = widths.STEP_COST.get(int(run.settings.get("width", widths.BASE)), 1.0)
        slow = 1.2 if run.settings.get("precision") == "bfloat16" else 1.0
        seconds += run.steps * STEP_MS[run.task] / 1000 * cost * batch * wide * slow + EVALUATIONS_S + START_S
        program = (run.task, run.optimizer, run.steps, spaces.program_key(run.settings))
        if program not in compiled:
            seconds += COMPILE_S
            compiled.add(program)
    return seconds / 60
