from engine.planning.weight_traffic import Weight, weight_traffic, zero1_divides

AXES = {"pipeline": 2, "data": 4, "fsdp": 8, "expert": 1, "context": 1, "tensor": 2}
SHAPES = {"stack": (6, 64, 128), "head": (64, 10), "norm": (64,)}
SPECS = {"stack": [("pipeline",), ("fsdp",), ("tensor",)], "head": [("fsdp",), ()], "norm": [()]}


def traffic(trained=("stack", "head", "norm"), **changes):
    weights = [Weight(SHAPES[path], SPECS[path], path in trained, path == "stack") for path in SHAPES]
    return weight_traffic(weights, AXES, **{"width": 4, "loops": 6, **changes})


def test_parameters_are_gathered_in_both_passes_of_a_loop_and_gradients_scattered_once():
    stack, head = 4 * 6 * 64 * 128 / (2 * 2), 4 * 64 * 10  # parts of a stage and of `tensor`
    found = traffic()
    assert found.gathered == 2 * stack + head
    assert found.scattered == stack + head
    assert traffic(passes=1.0).gathered == stack + head


def test_devices_of_data_sum_the_gradients_of_trained_parameters():
    stack, head, norm = 4 * 6 * 64 * 128 / (2 * 2 * 8), 4 * 64 * 10 / 8, 4 * 64
    found = traffic()
    assert found.summed == stack + head + norm
    assert found.zero1 == stack + head + norm  # each has a dimension that 4 divides
    assert found.copied == {"fsdp": norm, "pipeline": head + norm, "expert": found.summed, "context": found.summed}
    assert traffic(trained={"norm"}).summed == norm


def test_ticks_of_a_pipeline_gather_and_scatter_the_parameters_of_stacks_again():
    once, ticks = traffic(), traffic(passes=18.0, sums=9.0, ticks=9.0)
    head = 4 * 64 * 10
    assert ticks.gathered == 9 * (once.gathered - head) + head
    assert ticks.scattered == 9 * (once.scattered - head) + head
    assert (ticks.summed, ticks.zero1) == (once.summed, once.zero1)  # data sums once


def test_stage_that_gathers_once_sums_over_other_axes_in_each_tick():
    once, ticks = traffic(passes=1.0, loops=1), traffic(passes=1.0, loops=1, ticks=9.0)
    assert (ticks.gathered, ticks.scattered, ticks.collectives) == (once.gathered, once.scattered, 2 + 2)
    head, norm = 4 * 64 * 10 / 8, 4 * 64
    assert ticks.copied["fsdp"] == once.copied["fsdp"] == norm
    assert ticks.copied["expert"] == 9 * (once.copied["expert"] - head - norm) + head + norm


def test_zero1_divides_a_parameter_by_a_dimension_that_is_left():
    assert zero1_divides((6, 8), [(), ()], AXES)
    assert not zero1_divides((6, 10), [(), ()], AXES)
    assert not zero1_divides((16, 10), [("fsdp",), ()], AXES)  # 2 rows are left
