"""The schedule of a pipeline: which microbatch and which layers each stage computes in each tick.

With one repeat it is GPipe (Huang et al. 2019). With R repeats it is the circular ("interleaved") schedule of Narayanan
et al. 2021, run forward: a stage holds R groups of layers, and a microbatch passes the ring of stages R times. In a
*tick* every stage applies one group of layers to one microbatch. Microbatches go in groups, as many as stages, so that
the last stage finishes a microbatch exactly when the first stage needs it for the next repeat.

"gpipe" differentiates these ticks, so each keeps its activations for the backward pass. "1f1b" (Narayanan et al. 2019)
runs them once for the results, and once more together with the backward pass, which starts as soon as the last stage
receives a microbatch. Its memory does not grow with the number of microbatches.
"""

import math

import jax
import numpy as np
from jax.sharding import Mesh

from engine.base.errors import ShardingError
from engine.parallel.mesh import BATCH_AXES

WHOLE_SHARE = 0.25
"""Share of the memory of a device that whole parameters of a stage, and the sums of their gradients, may take. The rest
is for the state, activations and other gradients. Frameworks with pipelines on GPUs gather them once by default."""


def microbatch_count(setting: int | None, stages: int) -> int:
    """Returns the number of microbatches; by default two per stage."""
    return setting or 2 * stages


def row_unit(mesh: Mesh, microbatches: int | None) -> int:
    """Returns the number of which the rows of a microbatch are a multiple.

    It is the number of devices that split the rows, in a pipeline times its microbatches.

    Args:
        mesh: the devices.
        microbatches: `sharding.microbatches`.
    """
    shards, stages = math.prod(mesh.shape[axis] for axis in BATCH_AXES), mesh.shape["pipeline"]
    return shards * (microbatch_count(microbatches, stages) if stages > 1 else 1)


def ticks(stages: int, microbatches: int, repeats: int) -> int:
    """Returns the number of ticks of a batch."""
    return microbatches * repeats + stages - 1


def bubble(stages: int, microbatches: int, repeats: int, kind: str = "gpipe") -> float:
    """Returns the fraction of the time in which a stage has no work, in [0, 1).

    A backward pass takes twice the time of a forward pass. With "1f1b" it follows a forward pass of its own, and each
    of its ticks also runs the layers on another microbatch.
    """
    count = ticks(stages, microbatches, repeats)
    if kind == "gpipe":
        return (stages - 1) / count
    return 1 - 5 * microbatches * repeats / (count + 4 * (count + repeats * stages - 1))


def whole_bytes(elements: float, width: int, kind: str = "gpipe") -> float:
    """Returns the bytes of whole parameters and of the sums of their gradients, which "1f1b" adds up in float32.

    Args:
        elements: elements of the parameters that a device holds.
        width: bytes of an element in the precision of the computation.
        kind: the schedule.
    """
    return elements * (width + (max(width, 4) if kind == "1f1b" else width))


def gathers_once(whole: float, memory: float | None) -> bool:
    """Returns whether a stage gathers its parameters once, and scatters their gradients once, after the last tick.

    Otherwise each tick gathers and scatters those that it uses.

    Args:
        whole: `whole_bytes` of the parameters of a stage.
        memory: bytes of a device by the hardware table; None if it is not known, as for CPUs.
    """
    return memory is None or whole <= WHOLE_SHARE * memory


def passes(stages: int, microbatches: int, repeats: int, kind: str = "gpipe") -> tuple[float, float]:
    """Returns (passes, sums): how often a stage uses the parameters of all its layers, and sums their gradients.

    Where the parameters are split and not gathered once, each tick gathers those that it uses, in each pass, and
    scatters their gradients.
    """
    count = ticks(stages, microbatches, repeats)
    if kind == "gpipe":
        return 2 * count / repeats, count / repeats
    backward = count + repeats * stages - 1
    return (count + 3 * backward) / repeats, backward / repeats


def kept_microbatches(stages: int, microbatches: int) -> int:
    """Returns the number of microbatches whose inputs a stage keeps for each repeat in the schedule "1f1b".

    A microbatch needs less than twice the ticks of its group until its gradient is complete.
    """
    return min(microbatches, 2 * stages)


def memory(stages: int, microbatches: int, repeats: int, kind: str = "gpipe") -> tuple[int, int]:
    """Returns (inputs, activations) that a stage keeps: both for the layers of one repeat and one microbatch."""
    if kind == "gpipe":
        return 0, ticks(stages, microbatches, repeats)
    return repeats * kept_microbatches(stages, microbatches), 1


def work[T: (int, np.ndarray, jax.Array)](
    tick: T, stage: T | int, stages: int, microbatches: int, repeats: int
) -> tuple[T, T, T]:
    """Returns (whether a stage has work, the microbatch, the repeat) at a tick.

    `tick` and `stage` are integers or integer arrays. Without work, microbatch and repeat are in range but meaningless.
    """
    time = tick - stage
    busy = (time >= 0) & (time < microbatches * repeats)
    time = time % (microbatches * repeats)
    group, within = time // (repeats * stages), time % (repeats * stages)
    return busy, group * stages + within % stages, within // stages


def check_layers(count: int, stages: int, repeats: int) -> None:
    """Raises ShardingError if `count` layers do not divide over repeats and stages."""
    if count % (stages * repeats) == 0:
        return
    fits = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
    if count % stages:
        raise ShardingError(
            f"mesh.pipeline = {stages}: a stack of {count} layers does not divide over {stages} stages. Use "
            f"mesh.pipeline of {fits}, or {_multiples(count, stages)} layers."
        )
    repeats_allowed = ", ".join(str(n) for n in range(1, count // stages + 1) if count // stages % n == 0)
    raise ShardingError(
        f"sharding.repeats = {repeats}: a stack of {count} layers over {stages} stages has {count // stages} layers a "
        f"stage, which do not divide into {repeats} repeats. Use sharding.repeats of {repeats_allowed}, or "
        f"{_multiples(count, stages * repeats)} layers."
    )


def check_rows(rows: int, shards: int, stages: int, microbatches: int, repeats: int) -> None:
    """Raises ShardingError if a batch does not divide into microbatches.

    Args:
        rows: rows of the batch.
        shards: devices over which the rows of a microbatch are split.
        stages: stages of the pipeline.
        microbatches: microbatches per batch.
        repeats: repeats of the schedule; above 1, microbatches go in groups of `stages`.
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
    """Returns the multiples of `of` next to a number, such as "8 or 12"."""
    below = found // of * of
    return f"{below} or {below + of}" if below else str(of)
