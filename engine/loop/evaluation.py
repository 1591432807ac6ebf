"""Named evaluations: metrics of a Task over a finite dataset, in which each example counts exactly once.

`data/feed.py` pads the last batch with rows of weight 0. `events.py` decides which steps are evaluated.
"""

import contextlib
import functools
import itertools
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import jax

from engine.base.duration import Period, RunSize
from engine.base.errors import ConvoyError, TaskError, did_you_mean
from engine.compile.compiler import ProgramCompiler
from engine.compile.evaluation_program import EvaluationProgram
from engine.compile.evaluation_step import Built, evaluation_step, with_rows_of
from engine.compile.memory_check import check_memory, evaluation_batches
from engine.config.schema import Evaluation
from engine.data.batch import Batch, abstract_batch
from engine.data.feed import EvaluationFeed, last_rows, padding_text
from engine.data.ragged.packing import is_packed
from engine.data.sampling.sampler import evaluation_positions
from engine.data.source import BaseSource, example_spec, first_example, source_name
from engine.loop.preemption import Preemption
from engine.metrics.mean import Mean
from engine.metrics.metric import Metric
from engine.metrics.results import Result, Table, scalars
from engine.metrics.slices import Ranking, SlicedMerger, worst_slices
from engine.metrics.state import Reduced, compute
from engine.parallel.mesh import check_batch, replicated
from engine.training.slices import NO_SLICES, Slices, build_slices
from engine.training.state import TrainState, Weights, evaluation_params
from engine.training.task import Task, check_examples

IN_FLIGHT = 2  # batches whose results are not waited for
MODES = {"auto": None, "max": True, "min": False}  # config field worst_mode -> whether the largest score is worst
WORST_SLICES, WORST_EXAMPLES = "worst_slices", "worst_examples"  # names of results


type ReducedBatch = tuple[Reduced, int] | None
"""The metrics of a batch, and the position of its first example; None if the run was asked to stop."""


class _End:
    """Follows the last batch."""


_END = _End()


class Evaluator:
    """A named evaluation of a program's Task.

    Args:
        name: prefix of its metrics: "heldout" gives "heldout/accuracy".
        config: config section of the evaluation.
        source: examples, which are read in order.
        program: program with the Task to evaluate.
        batch_size: rows per batch; the last batch is padded.

    Raises:
        TaskError, ShardingError, DataError: the source, the Task and the mesh do not fit together.
        ConfigError: its batches do not fit into memory.
    """

    def __init__(self, name: str, config: Evaluation, source: BaseSource, program: EvaluationProgram, batch_size: int):
        where = f"evaluations.{name}"
        check_batch(program.mesh, batch_size, 1, f"{where}.batch_size")
        spec = example_spec(source)
        check_examples(program.task, spec, where)
        program = with_rows_of(program, source, batch_size, where)
        self.name, self.config, self.batch_size = name, config, batch_size
        self._source, self._program = source, program
        self.batches = -(-evaluation_positions(source, batch_size) // batch_size)
        batches = evaluation_batches(name, config.data, spec, batch_size, len(source))
        self.warnings = check_memory(batches, program.mesh, program.abstract_weights(averaged=False).to_tree())
        self.unweighted: list[str] = []
        """Metrics of the latest run whose total weight was 0, so that they have no value."""
        functions = build_slices(config.slices, where)
        if functions or config.worst:
            _check_unpacked(source, f"{where}.{'slices' if functions else 'worst'}")
        self._slices = Slices.of(functions, first_example(source), where) if functions else NO_SLICES
        ranking = Ranking(config.worst, config.score, MODES[config.worst_mode], config.per_example)

        def build(adds_loss: bool) -> Built:
            return evaluation_step(program, spec, batch_size, self._slices, ranking, where, adds_loss)

        if type(program.task).evaluate is Task.evaluate:
            built = build(False)
        else:
            from engine.loop.evaluation_loss import with_loss

            built, missing = with_loss(build, program, source, batch_size, self._unweighted_rows())
            self.warnings += [f"{where}: {text}" for text in missing]
        self._step, self._states, self._by_row = built
        dict(self._named(self._states.merger()))  # checks the names
        if not self._states.names:
            raise TaskError(f"{where}: {type(program.task).__name__}.evaluate returned no metric.")
        if config.score is not None or config.worst:
            self._check_score(where)
        self._by_row = self._by_row and not program.task.mixes_rows
        self._remainder = 0 if self._by_row else last_rows(source, batch_size)
        if self._remainder:
            evaluation_step(program, spec, self._remainder, where=where, adds_loss=self._step.adds_loss)
        self._full = len(source) >= batch_size or not self._remainder  # whether a batch of the full size is read
        self._figures = self._worst = self._per_example = None
        if config.figures:  # few evaluations have figures and tables, so that other runs do not import them
            from engine.loop.figures import Figures

            self._figures = Figures(name, source, config.data, program, config.figures, batch_size)
        if config.worst:
            from engine.loop.worst_examples import WorstExamples

            self._worst = WorstExamples(source)
        if config.per_example:
            from engine.loop.per_example import PerExample

            self._per_example = PerExample(config, source, self._states, where)
            if is_packed(source):
                self.warnings.append(
                    f"{where}.per_example: a row of {source_name(source)} holds several packed examples. The metrics "
                    "of each row are kept, as if it were one example."
                )

    def check_rows(self) -> None:
        """Raises TaskError if rows that do not count would change the metrics. It may run the Task on the devices."""
        if self._by_row and (text := self._unweighted_rows()):
            from engine.compile.row_check import check_evaluation

            check_evaluation(self._program, self._source, self.batch_size, f"evaluations.{self.name}", text)

    def _unweighted_rows(self) -> str:
        """Returns which rows of batches have weight 0; "" if none has."""
        skipped = "data.on_error=skip replaces bad examples by fillers" * (self.config.data.on_error == "skip")
        return padding_text(self._source, self.batch_size) or skipped

    @functools.cached_property
    def _feed(self) -> EvaluationFeed:
        """The batches; made by the first run, since devices for which a program is only compiled hold no arrays."""
        return EvaluationFeed(
            self._source,
            self.config.data,
            batch_size=self.batch_size,
            sharding=self._program.batch_sharding,
            exact_last=not self._by_row,
            keep_text=bool(self._slices.on_host) or bool(self._per_example and self._per_example.reads_batches),
        )

    def period(self, run: RunSize) -> Period:
        """Returns the steps of a run at which the evaluation is due."""
        return run.period(self.config.every, self.config.at_start, self.config.at_end)

    def is_due(self, run: RunSize, step: int = 0) -> bool:
        """Returns whether the evaluation is due at a step of a run or later."""
        period = self.period(run)
        return period.due(period.next_after(step - 1))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Full names of its metrics, such as "heldout/accuracy", without those of slices."""
        return tuple(f"{self.name}/{name}" for name in self._states.names)

    @property
    def figure_error(self) -> ConvoyError | None:
        """What ended the drawing of figures early in the latest run, in every process; None if all were drawn."""
        return self._figures.error if self._figures is not None else None

    def compile(self, state: TrainState, compiler: ProgramCompiler) -> list[jax.stages.Compiled]:
        """Compiles the programs that `run` calls, and returns them.

        Args:
            state: abstract train state; ZeRO-1 may split its parameters, which an evaluation alone does not.
            compiler: compiles the programs, or loads them.
        """
        name, found = f"evaluation {self.name}", []
        own = self._program.abstract_weights(averaged=False).model_state
        model_state = {**state.model_state, **{path: own[path] for path in self._step.carried}}
        weights = Weights(dict(evaluation_params(state, self.config.use_ema)), model_state)
        kinds = [(name, self.batch_size, self._program.batch_sharding)] if self._full else []
        if self._remainder:
            kinds.append((f"last batch of {name}", self._remainder, replicated(self._program.mesh)))
        shapes = self._source.shape_specs()
        for text, rows, sharding in kinds:
            for number, spec in enumerate(shapes, 1):
                of_length = f" of length {number}" if len(shapes) > 1 else ""
                batch = abstract_batch(spec, rows, sharding)
                found.append(self._step.compile(f"{text}{of_length}", weights, batch, compiler))
        return found if self._figures is None else [*found, self._figures.compile(weights, compiler)]

    @functools.cached_property
    def scalars(self) -> Mapping[str, tuple[str, ...] | None]:
        """Full name of each metric -> full names of the numbers that it gives; None if only a run can show them.

        They are those that `compute` gives without examples.
        """
        found = {}
        for full, metric in self._named(self._states.merger()):
            try:
                with warnings.catch_warnings(action="ignore"):
                    found[full] = tuple(scalars(compute(full, metric)))
            except Exception:  # the author's code may need examples
                found[full] = None
        return found

    def _check_score(self, where: str) -> None:
        """Raises TaskError if the metric of the score is known not to give this number."""
        assert self._states.score is not None
        score, metric = self._states.score
        known = self.scalars[f"{self.name}/{metric}"]
        if known is not None and f"{self.name}/{score}" not in known:
            names = [name.removeprefix(f"{self.name}/") for name in known]
            raise TaskError(
                f"{where}.score = {score!r}: {metric!r} gives no number of this name.{did_you_mean(score, names)} "
                f"Numbers of it: {', '.join(names) or 'none'}."
            )
        if self._states.largest is None:
            self.warnings.append(
                f"{where}.worst_mode: it is not known whether a large or a small {score} is bad, so the largest count "
                "as worst. Set it to max or min."
            )

    def gives(self, name: str) -> bool:
        """Returns whether a full name is that of a number of this evaluation, as far as that is known before a run."""
        return any(
            name in names if names is not None else f"{name}/".startswith(f"{metric}/")
            for metric, names in self.scalars.items()
        )

    def is_known(self, results: Mapping[str, float]) -> bool:
        """Returns whether numbers that were stored for a step are all that this evaluation gives."""
        return results.keys() >= {name for names in self.scalars.values() for name in names or ()} and any(
            name.startswith(f"{self.name}/") for name in results
        )

    def run(
        self,
        state: TrainState | Weights,
        preemption: Preemption | None = None,
        on_progress: Callable[[], None] = lambda: None,
        step: int = 0,
        reduced: Iterable[ReducedBatch] | None = None,
    ) -> dict[str, Result] | None:
        """Returns full name -> result over the whole dataset; NaN for a `Mean` whose total weight is 0.

        Args:
            state: the train state, or the weights, to evaluate. With `reduced`, only figures need them.
            preemption: checked after each batch; if the run was asked to stop, the result is None.
            on_progress: called after each dispatched batch, at most IN_FLIGHT batches before its result is complete,
                and then after each slice, each text that is read and each figure.
            step: step of the weights, for Tasks that ask for the context.
            reduced: what `reduce` yields for all batches, computed elsewhere. None: computed here.
        """
        merged = self._states.merger(self._feed.addresses)
        found = self.reduce(state, step, None, preemption, on_progress) if reduced is None else reduced
        with contextlib.closing(found) if isinstance(found, Generator) else contextlib.nullcontext():
            for batch in found:
                if batch is None:
                    return None
                merged.add(*batch)
        results = self._results(merged, on_progress)
        results |= self._rankings(merged, results, on_progress)
        if self._figures is not None:
            drawn = self._figures.draw(*self._arrays(state), merged.worst()[1].tolist(), step, on_progress)
            results |= {f"{self.name}/{name}": image for name, image in drawn.items()}
        if self._per_example is not None:
            results |= self._per_example.results(self.name, step, merged)
        return results

    def reduce(
        self,
        state: TrainState | Weights,
        step: int = 0,
        numbers: range | None = None,
        preemption: Preemption | None = None,
        on_progress: Callable[[], None] = lambda: None,
    ) -> Generator[ReducedBatch]:
        """Yields the metrics of each batch, reduced on the devices, and the position of its first example.

        Args:
            state: as for `run`.
            step: as for `run`.
            numbers: consecutive numbers of the batches; None: all of them.
            preemption: as for `run`; if the run was asked to stop, None follows, and nothing after it.
            on_progress: called after each dispatched batch, and after the last ones once more.
        """
        numbers = range(len(self._feed)) if numbers is None else numbers
        params, model_state = self._arrays(state)
        waiting: deque[tuple[Reduced, int]] = deque()
        with contextlib.closing(self._batches(numbers)) as batches:
            draw = functools.partial(next, batches, _END)
            for number in itertools.count(numbers.start):
                drawn = draw() if preemption is None else preemption.unless_stopped(draw)
                if drawn is None:
                    yield None
                    return
                if isinstance(drawn, _End):
                    break
                batch, members = drawn
                first = number * self.batch_size
                found: Any = self._step(params, model_state, batch, self._program.point(step, first), members)
                if self._step.carried:
                    found, after = found
                    model_state |= after
                waiting.append((found, first))
                if len(waiting) > IN_FLIGHT:
                    yield waiting.popleft()
                on_progress()
        for entry in waiting:
            yield entry
            on_progress()

    def _arrays(self, state: TrainState | Weights) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Returns the parameters and the model state of the first batch."""
        # Plain dicts: a hook's state has others, for which JAX would compile the step once more.
        params, model_state = dict(evaluation_params(state, self.config.use_ema)), dict(state.model_state)
        if self._step.carried:  # the state of rows belongs to the rows of training
            model_state |= self._program.first_state(self._step.carried)
        return params, model_state

    def _batches(self, numbers: range) -> Generator[tuple[Batch, Mapping[str, jax.Array] | None]]:
        """Yields each batch, and the masks of its slices that are computed on the host."""
        if self._per_example is not None:
            self._per_example.start()
        with contextlib.closing(self._feed.with_host_batches(numbers)) as pairs:
            for number, (batch, on_host) in enumerate(pairs, numbers.start):
                members = None
                if self._per_example is not None:
                    self._per_example.add(on_host, self._feed.positions(number), self._feed.addresses)
                if self._slices.on_host:
                    members = self._feed.to_global(self._slices.members(on_host), number)
                yield batch, members

    @property
    def inseparable(self) -> str:
        """Why its batches cannot be reduced by several `Evaluator`s; "" if they can."""
        if self._step.carried:
            carried = ", ".join(self._step.carried)
            return f"{type(self._program.task).__name__}.evaluate carries {carried} from batch to batch"
        if self._per_example is not None and self._per_example.reads_batches:
            return f"evaluations.{self.name}.tags are read from the batches, in order"
        return ""

    def _named(self, merged: SlicedMerger) -> Iterator[tuple[str, Metric]]:
        """Yields full name and metric: over all examples, then over those of each slice. Raises TaskError."""
        for name, metric in merged.metrics().items():
            yield f"{self.name}/{name}", metric
        taken = set(self._states.names)
        for part, metrics in merged.slices():
            for name, metric in metrics.items():
                if (full := f"{part}/{name}") in taken:
                    raise TaskError(
                        f"evaluations.{self.name}.slices: a slice and a metric, or two slices, give {full!r}. Rename "
                        "the slice."
                    )
                taken.add(full)
                yield f"{self.name}/{full}", metric

    def _results(self, merged: SlicedMerger, on_progress: Callable[[], None]) -> dict[str, Result]:
        """Returns the results by full name. Raises TaskError if two metrics give the same name."""
        self.unweighted = []
        found: dict[str, Result] = {}
        for full, metric in self._named(merged):
            if full in self.metrics and isinstance(metric, Mean) and not metric.weight:
                self.unweighted.append(full)
            new = compute(full, metric)
            if taken := found.keys() & new.keys():
                raise TaskError(f"evaluations.{self.name}: two metrics give {min(taken)!r}. Rename one of them.")
            found |= new
            on_progress()
        return found

    def _rankings(
        self, merged: SlicedMerger, results: Mapping[str, Result], on_progress: Callable[[], None]
    ) -> dict[str, Result]:
        """Returns the tables of the worst slices and the worst examples."""
        found: dict[str, Result] = {}
        if self._states.score is None:
            return found
        score, _ = self._states.score
        prefix, states = f"{self.name}/", self._states
        if states.slices:
            numbers = {full.removeprefix(prefix): value for full, value in scalars(results).items()}
            found[f"{prefix}{WORST_SLICES}"] = worst_slices(states, numbers)
        if self._worst is not None:
            table = self._worst.table(score, *merged.worst(), on_progress)
            found[f"{prefix}{WORST_EXAMPLES}"] = Table(table.columns, states.order_text)
        return found


def _check_unpacked(source: BaseSource, field: str) -> None:
    """Raises TaskError if a row of a batch holds several examples."""
    if is_packed(source):
        raise TaskError(
            f"{field}: a row of {source_name(source)} holds several packed examples, and a metric has one entry for "
            "each row. Evaluate padded examples: engine.Padded or engine.Bucketed."
        )
