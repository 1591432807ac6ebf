"""The losses and the metrics of the models are proved to keep rows apart, so that no run has to try them."""

import functools

import pytest

from engine.api import prepared
from engine.compile.row_check import RowCheck
from engine.compile.row_results import evaluated, losses
from engine.config import load
from tests.configs import step_digests

BATCH_STATISTICS = "cnn, 2 microbatches, 2 steps"
ROWS = (
    "mlp, data",
    BATCH_STATISTICS,
    "detection",
    "vit, tensor, dropout, bfloat16",
    "decoder, int8, saved attention",
    "decoder, 1f1b, context",
    "experts",
    "experts, dropless, tensor",
    "gan",
    "mean teacher",
    "actor-critic",
    "bucketed scenes",
)


@pytest.mark.parametrize("row", ROWS)
def test_trace_proves_that_rows_are_independent(row):
    name, overrides = step_digests.ROWS[row]
    config = load(f"configs.{name}", [*step_digests.COMMON, f"mesh.cpu_devices={step_digests.DEVICES}", *overrides])
    found = prepared.prepare(prepared.set_up(config))
    program, task = found.build_program()[0].evaluation, found.task
    if name != "actor_critic":  # its Task has an update instead of a loss
        loss = RowCheck(program, found.source, functools.partial(losses, task), training=True, splits=True)
        assert (loss.unproved(8) is None) == (row != BATCH_STATISTICS)
    if row not in step_digests.WITHOUT_EVALUATION:
        metrics = RowCheck(program, found.source, functools.partial(evaluated, task), training=False, splits=False)
        assert metrics.unproved(8) is None
