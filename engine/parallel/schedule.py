"""The schedule of a pipeline, as integers: which microbatch and which layers a stage works on at which tick.

Owns: the formulas, the share of time that stages wait, and the checks of numbers that do not fit together. Does not
own: the computation that follows the schedule (`layers/pipeline.py`).

Terms. *Stage*: the devices at one place of the mesh axis `pipeline`. *Microbatch*: a part of the batch that goes
through all stages on its own. *Repeat*: one turn of a microbatch through the ring of stages; with R repeats a stage
holds R groups of layers, each 1/R as long. *Tick*: the time in which every stage does one group of layers for one
microbatch. *Bubble*: the share of ticks in which a stage has nothing to do.

With one repeat it is GPipe (Huang et al. 2019). With more it is the circular schedule of Narayanan et al. 2021
("interleaved"), run forward: microbatches go in groups of as many as there are stages, so that the last stage has
finished one just when the first stage can take it on for its next turn, and nothing is kept waiting.
"""

import math
from typing import Any

from engine.config.errors import ShardingError


def microbatches_of(asked: int | None, stages: int) -> int:
    """Returns the number of microbatches: two for each stage where none is asked for."""
    return asked or 2 * stages


def ticks(stages: int, microbatches: int, repeats: int) -> int:
    """Returns how many ticks a batch takes."""
    return microbatches * repeats + stages - 1


def bubble(stages: int, microbatches: int, repeats: int) -> float:
    """Returns the share of ticks that a stage waits, in [0, 1)."""
    return (stages - 1) / ticks(stages, microbatches, repeats)


def work(tick: Any, stage: Any, stages: int, microbatches: int, repeats: int) -> tuple[Any, Any, Any]:
    """Returns (whether a stage has work, the microbatch, the repeat) at a tick.

    `tick` and `stage` are integers or arrays of them, of NumPy or JAX. Where there is no work, the microbatch and the
    repeat are some that exist.
    """
    time = tick - stage
    busy = (time >= 0) & (time < microbatches * repeats)
    time = time % (microbatches * repeats)
    group, within = time // (repeats * stages), time % (repeats * stages)
    return busy, group * stages + within % stages, within // stages


def check_layers(count: int, stages: int, repeats: int) -> None:
    """Raises ShardingError when `count` layers do not divide over repeats and stages."""
    if count % (stages * repeats) == 0:
        return
    fits = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
    if count % stages:
        raise ShardingError(
            f"mesh.pipeline = {stages}: a stack of {count} layers does not divide over {stages} stages. Use "
            f"mesh.pipeline of {fits}, or {_multiples(count, stages)} layers."
        )
    turns = ", ".join(str(n) for n in range(1, count // stages + 1) if count // stages % n == 0)
    raise ShardingError(
        f"sharding.repeats = {repeats}: a stack of {count} layers over {stages} stages has {count // stages} layers a "
        f"stage, which do not divide into {repeats} repeats. Use sharding.repeats of {turns}, or "
        f"{_multiples(count, stages * repeats)} layers."
    )


def check_rows(rows: int, shards: int, stages: int, microbatches: int, repeats: int) -> None:
    """Raises ShardingError when a batch does not divide into microbatches.

    Args:
        rows: of the batch that the stack is given.
        shards: devices that the rows of a microbatch are split over.
        stages: of the pipeline.
        microbatches: that the batch is dealt out to.
        repeats: of the schedule; above 1, microbatches go in groups of `stages`.
    """
    if repeats > 1 and microbatches % stages:
        raise ShardingError(
            f"sharding.microbatches = {microbatches}: with sharding.repeats = {repeats}, microbatches go in groups of "
            f"mesh.pipeline = {stages}. Use {_multiples(microbatches, stages)}."
        )
    if rows % (microbatches * shards) == 0:
        return
    step = stages if repeats > 1 else 1
    fits = [n for n in range(step, rows + 1, step) if rows % (n * shards) == 0]
    fits = sorted(fits, key=lambda n: abs(math.log(n / microbatches)))[:3]
    instead = f", or sharding.microbatches of {', '.join(map(str, sorted(fits)))}" if fits else ""
    raise ShardingError(
        f"sharding.microbatches = {microbatches}: a batch of {rows} rows does not divide over {microbatches} "
        f"microbatches x {shards} shards of rows. Use a batch of {_multiples(rows, microbatches * shards)}{instead}."
    )


def _multiples(found: int, of: int) -> str:
    """The multiples next to a number, as "8 or 12"."""
    below = found // of * of
    return f"{below} or {below + of}" if below else str(of)
