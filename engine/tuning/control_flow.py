"""Loops, blocks and branches: where a program on a CPU is faster without a loop, in blocks or with a branch."""

from typing import NamedTuple

UNROLLED_LAYERS = 4
"""Layers of a stack that are unrolled on a CPU: there a loop over layers copies what each keeps for its gradient, a
tenth of a step's time in the decoder of benchmarks/decoder.py. More layers would take too long to compile."""
QUERY_BLOCK = 64
"""Queries of a block of attention: few enough that its scores stay in a cache of the processor."""
MAX_QUERY_BLOCKS = 16
"""A longer sequence has larger blocks instead of more, since each block is traced and compiled by itself."""


class StepControlFlow(NamedTuple):
    """How a train step repeats and skips work."""

    unroll: bool  # microbatches and steps are unrolled instead of scanned
    branch: bool  # a skipped update is a branch instead of a selection for each number


def step_control_flow(platform: str, has_convolution: bool) -> StepControlFlow:
    """Returns how the train step of a model is built.

    On a CPU a loop around a convolution is 10 times slower and rounds differently. Without convolutions a branch is
    faster there: to select each number of the optimizer's state costs 5 % of a small step.
    """
    on_cpu = platform == "cpu"
    return StepControlFlow(unroll=on_cpu and has_convolution, branch=on_cpu and not has_convolution)


def unrolls_layers(platform: str, count: int) -> bool:
    """Returns whether a stack of `count` layers is unrolled instead of scanned."""
    return platform == "cpu" and count <= UNROLLED_LAYERS


def query_blocks(queries: int, size: int | None = None) -> list[tuple[int, int]]:
    """Returns where each block of queries starts and stops. The last block may be shorter.

    Args:
        queries: of all blocks.
        size: of a block; None chooses.
    """
    size = size or max(QUERY_BLOCK, -(-queries // MAX_QUERY_BLOCKS))
    return [(start, min(start + size, queries)) for start in range(0, queries, size)]
