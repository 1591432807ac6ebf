"""Choices of loops and blocks within a model: on a CPU a program may be faster unrolled or in blocks."""

UNROLLED_LAYERS = 4
"""Largest stack of layers that is unrolled on a CPU. A loop over layers copies what each layer keeps for its
gradient: 10 % of a step in the decoder of benchmarks/decoder.py. More layers would take too long to compile."""
QUERY_BLOCK = 64
"""Queries per block of attention: few enough that the scores of a block stay in a CPU cache."""
MAX_QUERY_BLOCKS = 16
"""Longer sequences have larger blocks instead of more, since each block is traced and compiled separately."""


def unrolls_layers(platform: str, count: int) -> bool:
    """Returns whether a stack of `count` layers is unrolled instead of scanned."""
    return platform == "portable" or (platform == "cpu" and count <= UNROLLED_LAYERS)


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
