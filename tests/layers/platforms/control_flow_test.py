"""The choice of loops and blocks within a model, on CPUs and accelerators."""

from engine.layers.platforms.control_flow import (
    QUERY_BLOCK,
    UNROLLED_LAYERS,
    layers_per_iteration,
    query_blocks,
    unrolls_layers,
)


def test_few_layers_are_unrolled_only_on_cpu():
    assert unrolls_layers("cpu", UNROLLED_LAYERS) and not unrolls_layers("cpu", UNROLLED_LAYERS + 1)
    assert not unrolls_layers("tpu", 1)


def test_tpus_compute_two_layers_per_iteration_if_they_gather_weights():
    assert layers_per_iteration("tpu", 20, 16) == 2
    assert layers_per_iteration("tpu", 20, 1) == layers_per_iteration("gpu", 20, 16) == 1
    assert layers_per_iteration("tpu", 3, 16) == layers_per_iteration("tpu", 2, 16) == 1


def test_query_blocks_cover_all_queries_and_grow_for_long_sequences():
    assert query_blocks(150) == [(0, QUERY_BLOCK), (QUERY_BLOCK, 2 * QUERY_BLOCK), (2 * QUERY_BLOCK, 150)]
    assert query_blocks(48) == [(0, 48)]
    assert query_blocks(50, 20) == [(0, 20), (20, 40), (40, 50)]
    assert len(query_blocks(4096)) == 16 and query_blocks(4096)[-1] == (3840, 4096)
