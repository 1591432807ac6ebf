"""Choices of loops, blocks and branches: on a CPU a program may be faster unrolled, in blocks or with a branch."""

from typing import NamedTuple

UNROLLED_LAYERS = 4
"""Largest stack of layers that is unrolled on a CPU. A loop over layers copies what each layer keeps for its
gradient: 10 % of a step in the decoder of benchmarks/decoder.py. More layers would take too long to compile."""
MAX_UNROLLED_STEPS = 128
"""Largest product of microbatches and steps per dispatch that may be unrolled. Each takes 2.6 s and 38 MiB to compile
in the CNN of configs/fashion_mnist.py."""
QUERY_BLOCK = 64
"""Queries per block of attention: few enough that the scores of a block stay in a CPU cache."""
MAX_QUERY_BLOCKS = 16
"""Longer sequences have larger blocks instead of more, since each block is traced and compiled separately."""


class StepControlFlow(NamedTuple):
    """How a train step is built."""

    unroll: bool  # unroll microbatches and steps instead of scanning
    branch: bool  # skip an update by a branch instead of a selection of each value


def step_control_flow(platform: str, has_convolution: bool) -> StepControlFlow:
    """Returns how to build the train step of a model.

    On a CPU a loop around a convolution is 10 times slower and rounds differently. Without convolutions a branch is
    faster on a CPU: selecting each value of the optimizer state costs 5 % of a small step.
    """
    on_cpu = platform == "cpu"
    return StepControlFlow(unroll=on_cpu and has_convolution, branch=on_cpu and not has_convolution)


def unrolls_layers(platform: str, count: int) -> bool:
    """Returns whether a stack of `count` layers is unrolled instead of scanned."""
    return platform == "cpu" and count <= UNROLLED_LAYERS


def layers_per_iteration(platform: str, count: int, gathered_from: int) -> int:
    """Returns how many layers of a stack one iteration of its loop computes, if the loop is not unrolled.

    XLA:TPU overlaps collectives within an iteration alone, so that the first weight of each iteration is gathered while
    the device waits. With two layers to an iteration that is every second layer.

    Args:
        platform: cpu, gpu or tpu.
        count: layers of the loop.
        gathered_from: devices that hold a part of each weight.
    """
    return 2 if platform == "tpu" and gathered_from > 1 and count % 2 == 0 and count > 2 else 1


def query_blocks(queries: int, size: int | None = None) -> list[tuple[int, int]]:
    """Returns (start, stop) of each block of queries. The last block may be shorter.

    Args:
        queries: number of queries.
        size: queries per block; None chooses.
    """
    size = size or max(QUERY_BLOCK, -(-queries // MAX_QUERY_BLOCKS))
    return [(start, min(start + size, queries)) for start in range(0, queries, size)]
