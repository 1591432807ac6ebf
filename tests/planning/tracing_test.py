import copy
import dataclasses

import jax
import numpy as np
import pytest

from engine.config.schema import Sharding
from engine.planning.tracing import Traces
from tests import zoo
from tests.planning import tiny


def test_work_is_linear_in_the_rows_and_counts_the_flops_of_a_step():
    traces = tiny.traces()
    four, twelve = (traces.work("none", "float32", rows) for rows in (4, 12))
    assert twelve.flops == pytest.approx(3 * four.flops)
    assert twelve.flops == pytest.approx(12 * traces.flops, rel=0.01)


def test_peak_is_that_of_the_activations_and_that_of_what_no_row_changes():
    traces = tiny.traces()
    fixed, slope = traces.peak("none", "float32")
    assert slope > 3 * 64 * 4  # two hidden layers and the input, float32
    assert fixed >= 4 * tiny.numbers()  # the gradients
    assert slope * 4096 == pytest.approx(traces._at("none", "float32", 4096).peak, rel=0.1)


@pytest.mark.parametrize("nested", [True, False])
def test_tokens_are_those_of_an_entry_of_the_examples_that_is_an_array(nested):
    array = jax.ShapeDtypeStruct((tiny.ROWS, 512), np.int32)
    traces = copy.copy(tiny.traces())
    traces.program = copy.copy(tiny.program())
    examples = {"tokens": {"text": array} if nested else array}
    traces.program.abstract_batch = dataclasses.replace(tiny.program().abstract_batch, examples=examples)
    assert traces.tokens == (0 if nested else 512)


@pytest.mark.parametrize(("precision", "quantized"), [("float8", 3), ("int8", 2)])
def test_quantized_products_take_the_rate_of_eight_bits_and_others_that_of_bfloat16(precision, quantized):
    """A dense layer has three products; with int8 the gradient of its kernel stays in 16 bits."""
    rows, fast, slow = 64, 2e-3, 1e-3  # so slow that no operation waits for memory
    balance = {precision: fast, "bfloat16": slow}
    built = zoo.program(tiny.Deep(), batch_size=rows, devices=jax.devices()[:1])
    work = Traces(built, Sharding(), 2, balance, rows, print).work("none", precision, rows)
    product = 2 * rows * tiny.WIDTH * tiny.HIDDEN * 2 * tiny.DEPTH
    first = 2 * (2 * rows * zoo.SIZE * tiny.WIDTH)  # without a gradient of its input
    assert work.flops == 3 * product + first
    expected = quantized * product / fast + ((3 - quantized) * product + first) / slow
    assert work.cost == pytest.approx(expected, rel=0.01)
