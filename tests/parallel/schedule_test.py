"""The schedule of a pipeline, simulated: each microbatch passes all layers once, in order, without waiting."""

import contextlib
import itertools

import numpy as np
import pytest

from engine.base.errors import ShardingError
from engine.parallel import schedule

CASES = [(2, 4, 1), (4, 5, 1), (4, 1, 1), (2, 2, 2), (2, 6, 3), (4, 8, 2), (8, 8, 4)]  # stages, microbatches, repeats


@pytest.mark.parametrize(("stages", "microbatches", "repeats"), CASES)
def test_each_microbatch_passes_all_layers_in_order(stages, microbatches, repeats):
    """A stage sends its result to the next stage, which uses it in the next tick; no stage stores results."""
    received: list = [None] * stages  # input of each stage: (microbatch, groups of layers that it has passed)
    finished = []
    for tick in range(schedule.ticks(stages, microbatches, repeats)):
        sent: list = [None] * stages
        for stage in range(stages):
            busy, microbatch, repeat = schedule.work(tick, stage, stages, microbatches, repeats)
            assert 0 <= microbatch < microbatches and 0 <= repeat < repeats
            if not busy:
                continue
            group = repeat * stages + stage  # index of the group of layers
            assert group == 0 or received[stage] == (microbatch, group)
            if group == stages * repeats - 1:
                finished.append(microbatch)
            sent[(stage + 1) % stages] = (microbatch, group + 1)
        received = sent
    assert sorted(finished) == list(range(microbatches))


@pytest.mark.parametrize(("stages", "microbatches", "repeats"), CASES)
def test_bubble_is_the_fraction_of_idle_ticks(stages, microbatches, repeats):
    ticks = np.arange(schedule.ticks(stages, microbatches, repeats))[:, None]
    busy, _, _ = schedule.work(ticks, np.arange(stages)[None], stages, microbatches, repeats)
    assert busy.sum(axis=0).tolist() == [microbatches * repeats] * stages
    assert schedule.bubble(stages, microbatches, repeats) == pytest.approx(1 - busy.mean())


@pytest.mark.parametrize(("stages", "microbatches", "repeats"), CASES)
def test_1f1b_computes_each_gradient_once_from_an_input_that_is_still_kept(stages, microbatches, repeats):
    """Gradients pass the stages in reverse order, as soon as the last stage has its input."""
    count = schedule.ticks(stages, microbatches, repeats) + repeats * stages - 1
    kept: list = [{} for _ in range(stages)]
    received: list = [None] * stages
    complete, idle = [], 0
    for tick in range(count):
        sent: list = [None] * stages
        for stage in range(stages):
            busy, microbatch, repeat = schedule.work(tick, stage, stages, microbatches, repeats)
            if busy:
                kept[stage][repeat, microbatch % schedule.kept_microbatches(stages, microbatches)] = microbatch
            time = tick - (repeats * stages - 1)
            busy, microbatch, repeat = schedule.work(time, stages - 1 - stage, stages, microbatches, repeats)
            if not busy:
                idle += 1
                continue
            repeat = repeats - 1 - repeat
            assert kept[stage][repeat, microbatch % schedule.kept_microbatches(stages, microbatches)] == microbatch
            group = repeat * stages + stage
            assert group == stages * repeats - 1 or received[stage] == (microbatch, group)
            if group == 0:
                complete.append(microbatch)
            sent[(stage - 1) % stages] = (microbatch, group - 1)
        received = sent
    assert complete == list(range(microbatches))
    assert idle == stages * (count - microbatches * repeats)


def test_memory_of_1f1b_does_not_grow_with_the_microbatches():
    assert schedule.memory(4, 8, 1, "1f1b") == schedule.memory(4, 64, 1, "1f1b") == (8, 1)
    assert schedule.memory(4, 64, 2, "1f1b") == (16, 1)
    assert schedule.memory(4, 8, 1) == (0, 11) and schedule.memory(4, 64, 1) == (0, 67)


def test_bubble_of_1f1b_is_that_of_its_two_passes():
    # 11 ticks forward; 14 ticks of one computation of the layers and a gradient that takes three.
    assert schedule.bubble(4, 8, 1, "1f1b") == pytest.approx(1 - 8 * 5 / (11 + 14 * 4))
    assert schedule.bubble(4, 64, 1, "1f1b") < schedule.bubble(4, 8, 1)


def test_repeats_and_microbatches_reduce_the_bubble():
    assert schedule.bubble(4, 8, 1) == 3 / 11
    assert schedule.bubble(4, 8, 2) == 3 / 19
    assert schedule.bubble(4, 16, 1) == 3 / 19
    assert schedule.bubble(1, 8, 1) == 0


def test_default_is_two_microbatches_per_stage():
    assert schedule.microbatch_count(None, 4) == 8
    assert schedule.microbatch_count(3, 4) == 3


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((6, 4, 1), "mesh.pipeline = 4: a stack of 6 layers does not divide over 4 stages. "
                    "Use mesh.pipeline of 1, 2, 3, 6, or 4 or 8 layers."),
        ((3, 4, 1), "mesh.pipeline = 4: a stack of 3 layers does not divide over 4 stages. "
                    "Use mesh.pipeline of 1, 3, or 4 layers."),
        ((8, 2, 3), "sharding.repeats = 3: a stack of 8 layers over 2 stages has 4 layers a stage, which do not divide "
                    "into 3 repeats. Use sharding.repeats of 1, 2, 4, or 6 or 12 layers."),
    ],
)  # fmt: skip
def test_indivisible_layers_raise_sharding_error_with_alternatives(numbers, sentence):
    with pytest.raises(ShardingError) as error:
        schedule.check_layers(*numbers)
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((12, 2, 4, 8, 1), "sharding.microbatches = 8: a batch of 12 rows does not divide over 8 microbatches x 2 "
                           "shards of rows. Use a batch of 16, or sharding.microbatches of 2, 3, 6."),
        ((40, 2, 4, 8, 2), "sharding.microbatches = 8: a batch of 40 rows does not divide over 8 microbatches x 2 "
                           "shards of rows. Use a batch of 32 or 48, or sharding.microbatches of 4, 20."),
        ((3, 2, 2, 4, 1), "sharding.microbatches = 4: a batch of 3 rows does not divide over 4 microbatches x 2 shards "
                          "of rows. Use a batch of 8."),
        ((48, 1, 4, 6, 2), "sharding.microbatches = 6: with sharding.repeats = 2, microbatches go in groups of "
                           "mesh.pipeline = 4. Use 4 or 8."),
    ],
)  # fmt: skip
def test_indivisible_batch_raises_sharding_error_with_alternatives(numbers, sentence):
    with pytest.raises(ShardingError) as error:
        schedule.check_rows(*numbers)
    assert str(error.value) == sentence


def test_check_layers_raises_only_for_indivisible_counts():
    for count, stages, repeats in itertools.product(range(1, 13), (1, 2, 3, 4), (1, 2, 3)):
        fits = count % stages == 0 and count // stages % repeats == 0
        with contextlib.nullcontext() if fits else pytest.raises(ShardingError):
            schedule.check_layers(count, stages, repeats)


def test_each_tick_uses_the_parameters_of_a_group_of_layers():
    """As counted in programs for 8 H100, with parameters split over 4 devices and 8 microbatches on 2 stages."""
    assert schedule.passes(2, 8, 1) == (2 * 9, 9)
    assert schedule.passes(2, 8, 2) == (2 * 17 / 2, 17 / 2)
    assert schedule.passes(2, 8, 1, "1f1b") == (9 + 3 * 10, 10)
    assert schedule.passes(2, 8, 2, "1f1b") == ((17 + 3 * 20) / 2, 20 / 2)


def test_parameters_of_a_stage_are_gathered_once_if_they_and_their_gradients_fit_a_quarter_of_a_device():
    assert schedule.whole_bytes(100, 2) == 400 and schedule.whole_bytes(100, 2, "1f1b") == 600
    assert schedule.gathers_once(400, 1600) and not schedule.gathers_once(401, 1600)
    assert schedule.gathers_once(1e15, None)  # a CPU
