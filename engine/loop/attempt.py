"""One attempt of a run: restores or initializes its state, and opens its batches and its metric files."""

import contextlib
import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np

from engine.base.duration import Period
from engine.checkpoint import warm_start
from engine.checkpoint.checkpointer import Checkpointer
from engine.cluster import group
from engine.compile.program import Program
from engine.compile.shapes import CompiledSteps
from engine.compile.xla_warnings import rematerialization_explained
from engine.config import hardware
from engine.config.schema import Config
from engine.data.bad_examples import BadExampleCounter
from engine.data.batch import Batch
from engine.data.feed import TrainFeed
from engine.data.prefetch import dispatches_in_flight
from engine.data.ragged.report import report
from engine.data.sampling.drawn import DrawnShares
from engine.data.source import Source
from engine.loop.observers import LateObserver
from engine.loop.phases import COMPILING, RESTORING, Phases
from engine.loop.stragglers.monitor import StragglerMonitor
from engine.observe.flops_count import FlopsCount
from engine.observe.recorder import Recorder, Sums
from engine.observe.throughput import Throughput
from engine.observe.writer import open_writer
from engine.parallel.memory import device_memory_limit
from engine.run.directory import RunDirectory
from engine.run.jsonl import JsonLines
from engine.run.ledger import Ledger
from engine.training.precision import rounding_note
from engine.training.state import TrainState
from engine.training.step import BAD_EXAMPLES

SILENCE_S = 20.0  # a compilation that takes longer is reported
READ_S = 0.01  # between two readings of results; several processes read each dispatch, so that all read at one step


class Attempt:
    """Opens what one attempt needs, and closes it at the end. A context manager.

    Args:
        program: the compiled steps.
        source: the training examples.
        config: config of the run.
        directory: run directory.
        checkpoints: checkpoints of the run.
        phase: enters a phase.
        say: called with sentences for the user.
        observers: as for `Trainer`.
    """

    def __init__(
        self,
        program: Program,
        source: Source,
        config: Config,
        directory: RunDirectory,
        checkpoints: Checkpointer,
        phase: Phases,
        say: Callable[[str], None],
        observers: Sequence[str] = (),
    ):
        self._program, self._source, self._config, self._directory = program, source, config, directory
        self._checkpoints, self._phase, self._say, self._observers = checkpoints, phase, say, observers
        self._stack = contextlib.ExitStack()
        self.skipped: set[int] = set()
        """Numbers of the skipped batches in the restored checkpoint."""
        self._position: Mapping[str, Any] = {}  # in the data, of the restored checkpoint
        self._feed: TrainFeed | None = None  # the latest one
        self._flops: FlopsCount | None = None
        self.unfinished: Sums = {}
        """Sums of the row of metrics that was unfinished in the restored checkpoint."""
        self.data_metrics: dict[str, float] = {}
        """Padding and imbalance of the batches, for sources that know them."""
        train, shuffle = config.train, config.data.shuffle
        self._drawn = DrawnShares(source, batch_size=train.global_batch_size, seed=train.seed, shuffle=shuffle)

    def __enter__(self) -> "Attempt":
        who = (group.index(), group.count(), self._directory.attempt)
        self._ledger = self._bad_examples = None
        if self._config.log.examples:
            ledger = Ledger(self._directory.examples, *who)
            self._ledger = self._stack.enter_context(contextlib.closing(ledger))
        if self._config.data.on_error == "skip":
            lines = self._stack.enter_context(contextlib.closing(JsonLines(self._directory.bad_examples, *who)))
            self._bad_examples = BadExampleCounter(lines.add, self._say)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._flops is not None:
            self._flops.close(wait=kind is None)  # a run that is asked to stop may have only seconds to end
        self._stack.__exit__(kind, error, traceback)

    def restore(self) -> tuple[TrainState, int]:
        """Returns the state and step of the newest valid checkpoint, or a new state if the run has no checkpoint."""
        store, program = self._checkpoints.store, self._program
        with self._phase(RESTORING):
            found = store.restore_latest(program.abstract_state.to_tree(), program.spec.model.stacked, self._say)
        self.skipped, self.unfinished, self._position = set(), {}, {}
        if found is None:
            with self._phase(COMPILING):
                return self._initial_state(), 0
        tree, step = found
        position = self._position = store.position(step)
        self.skipped, self.unfinished = set(position.get("skipped", ())), position.get("row", {})
        self._say(f"resuming from step {step}")
        return TrainState.from_tree(tree), step

    def _initial_state(self) -> TrainState:
        """Returns the state of step 0, with random weights or those of `init.checkpoint`."""
        if not warm_start.is_set(self._config.init):
            return self._program.init()
        abstract = self._program.abstract_state.to_tree()
        weights = warm_start.read_weights(self._config.init, abstract, self._program.spec.model.stacked)
        self._say(weights.message)
        return self._program.init(weights.params, weights.model_state)

    def compile(self, finished: str = "") -> dict[int, CompiledSteps]:
        """Returns the compiled programs by their number of steps; none if the run is finished, for the given reason."""
        for text in self._program.warnings:
            self._say(f"warning: {text}")
        spec = self._program.spec
        examples = self._program.abstract_batch.examples
        if note := rounding_note(spec.task, examples, spec.compute_dtype, spec.layout.precision):
            self._say(note)
        for text in spec.optimizer.messages:
            self._say(text)
        if finished:
            self._say(finished)
            return {}
        split = self._program.mesh.size > 1
        explained = rematerialization_explained(self._say) if split else contextlib.nullcontext()
        with self._phase(COMPILING), explained, reported_if_long(self._say, SILENCE_S):
            self._report_data()
            return {k: self._program.steps(k) for k in {1, self._config.train.steps_per_dispatch}}

    def _report_data(self) -> None:
        """Reports the padding and the costs of ragged examples, and that each length is compiled by itself."""
        train, sharding = self._config.train, self._program.spec.batch_sharding
        ranks = train.global_batch_size // sharding.shard_shape((train.global_batch_size,))[0]
        found = report(
            self._source,
            batch_size=train.global_batch_size,
            seed=train.seed,
            shuffle=self._config.data.shuffle,
            ranks=ranks,
        )
        if found is None:
            return
        self.data_metrics = found.metrics
        self._say(f"data: {found}")
        if len(found.shares) > 1:
            self._program.shape_shares = found.shares
            self._say(f"compiling a program for each of {len(found.shares)} lengths")

    def open_recorder(
        self,
        period: Period,
        on_row: Callable[[dict[str, float]], None],
        on_phase: Callable[[str], None],
        on_values: Callable[[int, np.ndarray], None],
    ) -> Recorder:
        """Opens the metric files and returns the recorder that writes rows to them; arguments as for `Recorder`."""
        train, directory, program = self._config.train, self._directory, self._program
        writer = self._stack.enter_context(open_writer(directory, self._config.log.tensorboard))
        self._stack.enter_context(directory.stopwatch.written_by(writer.push))
        peak = hardware.peak_flops(jax.devices()[0].device_kind, train.precision, program.mesh.size)
        self._flops = flops = FlopsCount(lambda: program.flops_per_step, self._say)
        recorder = Recorder(
            program.metric_names,
            metrics=program.training_metrics,
            last_value=program.spec.optimizer.rate_names,
            summed=("skipped", BAD_EXAMPLES),
            writer=writer,
            throughput=Throughput(train.global_batch_size, flops, program.hardware_flops_per_step, peak),
            period=period,
            attempt=directory.attempt,
            on_row=self._observed(on_row),
            on_phase=on_phase,
            on_values=on_values,
            more=self._drawn.metrics if group.index() == 0 else lambda first, last: {},
            read_every_s=READ_S if group.count() == 1 else 0.0,
            in_flight=self._dispatches_in_flight(),
        )
        self._stack.callback(recorder.close)
        return recorder

    def _observed(self, on_row: Callable[[dict[str, float]], None]) -> Callable[[dict[str, float]], None]:
        """Returns `on_row`, on the primary with the observers of the run, which it opens."""
        if not group.is_primary():
            return on_row
        observers = [
            LateObserver(path, self._program, self._config, self._directory, self._say) for path in self._observers
        ]
        for observer in observers:
            # Before the callback that closes the recorder, and so called after it, with all rows.
            self._stack.push(lambda kind, error, traceback, observer=observer: observer.close(wait=kind is None))

        def receive(row: dict[str, float]) -> None:
            for observer in observers:
                observer.row(row)
            on_row(row)

        return receive

    def count_flops(self) -> None:
        """Starts to count the model FLOPs of a step, in a thread; the recorder must be open."""
        assert self._flops is not None
        self._flops.start()

    def _dispatches_in_flight(self) -> int:
        leaves = jax.tree.leaves(self._program.abstract_batch)
        size = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
        count, prefetch = self._config.train.steps_per_dispatch, self._config.data.prefetch
        found = dispatches_in_flight(prefetch, count * size, device_memory_limit(self._program.mesh))
        if prefetch != "auto":
            return found
        # The memories of devices may differ a little, but all processes must read results at the same steps.
        return group.run_on_primary(lambda: found, "the number of dispatches in flight")

    def read_batch(self, number: int, total_steps: int) -> Batch:
        """Returns a batch of a run by its number, once more; it is not counted or logged again."""
        settings = dataclasses.replace(self._config.data, workers=0, threads=1, prefetch=1)
        bad = None if self._bad_examples is None else BadExampleCounter(lambda record: None, lambda text: None)
        saved = None if self._feed is None else self._feed.saved_before(number)
        feed = TrainFeed(
            self._source,
            settings,
            batch_size=self._config.train.global_batch_size,
            seed=self._config.train.seed,
            sharding=self._program.spec.batch_sharding,
            start=number,
            stop=number + 1,
            total=total_steps,
            bad=bad,
            saved=saved or self._position,
        )
        with contextlib.closing(feed):
            return feed.next(1)[0]

    def watch_stragglers(self, recorder: Recorder, on_slowest: Callable[[str], None]) -> StragglerMonitor | None:
        """Starts the monitor that names the slowest process and returns it; None in a single process.

        Args:
            recorder: of the run.
            on_slowest: called with a sentence when the slowest process changes, in the thread of the writer.
        """
        if group.count() == 1:
            return None
        with self._phase(COMPILING):
            monitor = StragglerMonitor(
                self._program.mesh.local_devices,
                drain=recorder.drain,
                hooks_s=lambda: self._phase.hooks_s,
                say=self._say,
                on_slowest=lambda text: recorder.call(lambda: on_slowest(text)),
                stopwatch=self._directory.stopwatch,
            )
        return self._stack.enter_context(monitor)

    def open_feed(self, step: int, stop: int) -> contextlib.closing[TrainFeed]:
        """Returns the feed of the batches from number `step` to `stop`; the caller closes it."""
        train = self._config.train
        self._feed = feed = TrainFeed(
            self._source,
            self._config.data,
            batch_size=train.global_batch_size,
            seed=train.seed,
            sharding=self._program.spec.batch_sharding,
            start=step,
            stop=stop,
            steps_per_dispatch=train.steps_per_dispatch,
            on_batch=self._ledger and self._ledger.write,
            bad=self._bad_examples,
            on_message=self._say,
            saved=self._position,
        )
        return contextlib.closing(feed)


@contextlib.contextmanager
def reported_if_long(say: Callable[[str], None], seconds: float) -> Iterator[None]:
    """Calls `say`, in a thread, if the body takes longer than `seconds`. The body compiles the step."""
    text = f"compiling the step, for {seconds:.0f} s so far; a large model takes minutes"
    timer = threading.Timer(seconds, say, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join(1.0)  # it ends at once, unless the output blocks
