"""Opens the recorder of an attempt: its metric files, its rates, and the observers of its rows."""

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax

from engine.base.duration import Period
from engine.base.errors import TaskError
from engine.cluster import group
from engine.compile.program import Program
from engine.config import hardware
from engine.config.schema import Config
from engine.data.prefetch import dispatches_in_flight
from engine.loop.observers import LateObserver
from engine.observe.recorder import Columns, Pace, Receivers, Recorder, Row
from engine.observe.throughput import FlopsCount, Throughput
from engine.observe.writer import MEASURED, ROW_KEYS, open_writer
from engine.parallel.memory import device_memory_limit
from engine.run.directory import RunDirectory
from engine.training.step_spec import BAD_EXAMPLES, ENGINE_METRICS
from engine.training.update import has_own_update

READ_S = 0.01  # between two readings of results; several processes read each dispatch, so that all read at one step


def check_metric_names(program: Program, evaluations: Collection[str], hooks: Collection[str] = ()) -> None:
    """Checks the training metrics of a Task, which share rows and the status with other values.

    Args:
        program: program of the Task.
        evaluations: names of the evaluations.
        hooks: names of the hooks.

    Raises:
        TaskError: the engine, an evaluation or a hook uses the name of a metric.
    """
    task = program.spec.task
    taken = dict.fromkeys((*ROW_KEYS, *MEASURED, *ENGINE_METRICS, BAD_EXAMPLES, *program.spec.engine_metrics))
    where = f"{type(task).__name__}.{'update' if has_own_update(task) else 'loss'}"
    for name in program.training_metrics.names:
        if name in taken:
            raise TaskError(
                f"{where}: the engine uses the metric name {name!r} itself. Rename this metric. Names of the engine: "
                f"loss, {', '.join(taken)}."
            )
        if (prefix := name.partition("/")[0]) in (*evaluations, *hooks):
            section = "evaluations" if prefix in evaluations else "hooks"
            raise TaskError(
                f"{where}: metric {name!r} has the name of an evaluation or hook. Rename the metric, or "
                f"{section}.{prefix}."
            )


@contextlib.contextmanager
def open_recorder(
    program: Program,
    config: Config,
    directory: RunDirectory,
    period: Period,
    receivers: Receivers,
    observers: Sequence[LateObserver[Any]],
    flops: FlopsCount,
) -> Iterator[Recorder]:
    """Opens the metric files of a run; yields the recorder that writes rows to them.

    Args:
        program: the program of the run.
        config: its config.
        directory: its run directory.
        period: the steps at which a row ends.
        receivers: what the recorder calls.
        observers: also receive the rows, on the primary.
        flops: counts the FLOPs of a step.
    """
    train, k = config.train, config.train.steps_per_dispatch
    peak = hardware.peak_flops(jax.devices()[0].device_kind, train.precision, program.mesh.size)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(open_writer(directory, config))
        stack.enter_context(directory.stopwatch.written_by(writer.push))
        for observer in observers:  # they are closed after the recorder, and so have all rows
            stack.push(lambda kind, error, traceback, observer=observer: observer.close(wait=kind is None))
        recorder = Recorder(
            Columns(
                program.metric_names,
                metrics=program.training_metrics,
                last_value=program.spec.optimizer.rate_names,
                summed=("skipped", BAD_EXAMPLES),
            ),
            _with_observers(receivers, observers),
            Pace(READ_S if group.count() == 1 else 0.0, _dispatches_in_flight(program, k, config.data.prefetch)),
            writer=writer,
            throughput=Throughput(train.global_batch_size, flops, program.hardware_flops_per_step, peak),
            period=period,
            attempt=directory.attempt,
        )
        stack.callback(recorder.close)
        # Before the recorder, whose rows wait for it. A run that is asked to stop may have only seconds to end.
        stack.push(lambda kind, error, traceback: flops.close(wait=kind is None))
        yield recorder


def _with_observers(receivers: Receivers, observers: Sequence[LateObserver[Any]]) -> Receivers:
    def on_row(row: Row) -> None:
        for observer in observers:
            observer.row(row)
        receivers.on_row(row)

    return receivers._replace(on_row=on_row) if observers else receivers


def _dispatches_in_flight(program: Program, count: int, prefetch: int | str) -> int:
    leaves = jax.tree.leaves(program.abstract_batch)
    size = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    found = dispatches_in_flight(prefetch, count * size, device_memory_limit(program.mesh))
    if prefetch != "auto":
        return found
    # The memories of devices may differ a little, but all processes must read results at the same steps.
    return group.run_on_primary(lambda: found, "the number of dispatches in flight")
