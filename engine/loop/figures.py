"""Figures of an evaluation: the predictions of a few examples, drawn by the Task."""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from engine.base.errors import ConvoyError, TaskError
from engine.cluster import group
from engine.cluster.peer_failure import LostPeer
from engine.compile.compiler import ProgramCompiler
from engine.compile.evaluation_program import EvaluationProgram
from engine.compile.evaluation_step import with_rows_of
from engine.compile.prediction_program import prediction_step
from engine.config.schema import Data
from engine.data.batch import abstract_batch
from engine.data.examples import Example
from engine.data.feed import EvaluationFeed
from engine.data.source import BaseSource, example_spec
from engine.metrics.results import Image
from engine.training.arrays import Arrays
from engine.training.figures import check_figure, draw_example
from engine.training.state import Weights


class Figures:
    """Draws the predictions of chosen examples.

    Args:
        name: name of the evaluation.
        source: its examples.
        settings: how they are read.
        program: program with the Task.
        count: number of figures.
        batch_size: rows per batch of the evaluation, which fit into memory.

    Raises:
        TaskError: the Task has no valid `predict`, or no `figure`.
    """

    def __init__(
        self, name: str, source: BaseSource, settings: Data, program: EvaluationProgram, count: int, batch_size: int
    ):
        check_figure(program.task, f"evaluations.{name}.figures")
        self._name, self._source, self._program = name, source, program
        self._settings = Data(on_error=settings.on_error, threads=1)
        self._count = min(count, len(source))
        self.error: ConvoyError | None = None
        """What ended the latest drawing early, in every process: an error of the Task's `figure`, or of the source."""
        axes = jax.tree.leaves(tuple(program.batch_sharding.spec[:1]))
        shards = math.prod(program.mesh.shape[axis] for axis in axes)
        self._batch_size = min(batch_size, -(-self._count // shards) * shards)
        example = example_spec(source)
        self._batch = abstract_batch(example, self._batch_size, program.batch_sharding)
        where = f"evaluations.{name}.figures"
        program = with_rows_of(program, source, self._batch_size, where)
        self._step, _ = prediction_step(program, example, self._batch_size, where=where)
        if self._step.carried:
            raise TaskError(
                f"{where}: {type(program.task).__name__}.predict carries "
                f"{', '.join(self._step.carried)} from batch to batch, so that it cannot predict chosen examples. "
                "Remove figures."
            )

    def compile(self, weights: Weights, compiler: ProgramCompiler) -> jax.stages.Compiled:
        """Compiles the predictions that `draw` calls, and returns the program; `weights` are abstract."""
        return self._step.compile(f"figures of {self._name}", weights, self._batch, compiler)

    def draw(
        self,
        params: Arrays,
        model_state: Arrays,
        worst: Sequence[int],
        step: int,
        on_progress: Callable[[], None] = lambda: None,
    ) -> dict[str, Image]:
        """Returns "figures/<rank>" -> figure, in the primary. Every process calls it.

        It returns the figures before the first error, which it keeps: a picture must not end a training run.

        Args:
            params: parameters of the model.
            model_state: its state.
            worst: indices of the worst examples, which are drawn; if there are none, the first examples are.
            step: step of the weights.
            on_progress: called after each batch of predictions and each figure.
        """
        indices = list(worst or range(self._count))[: self._count]
        feed = EvaluationFeed(
            _Chosen(self._source, indices),
            self._settings,
            batch_size=self._batch_size,
            sharding=self._program.batch_sharding,
        )
        images: dict[str, Image] = {}
        self.error = None
        for number, batch in enumerate(feed):
            weight, found, _ = jax.device_get(self._step(params, model_state, batch))
            on_progress()
            for row in np.flatnonzero(weight).tolist():
                rank = number * self._batch_size + row
                prediction = {name: rows[row] for name, rows in found.items()}
                if self.error is None:
                    images |= self._draw_one(rank, indices[rank], prediction, step)
                on_progress()
        return images

    def _draw_one(self, rank: int, index: int, prediction: Mapping[str, np.ndarray], step: int) -> dict[str, Image]:
        """Returns the figure of an example by name, in the primary; the other processes wait for it.

        They wait for each figure by itself, so the timeout does not limit the time of all figures.
        """
        images: dict[str, Image] = {}

        def draw() -> None:
            file = f"{self._name}/{step}/{rank}-example-{index}.png"
            images[f"figures/{rank}"] = draw_example(self._program.task, self._source, index, prediction, file)

        try:
            group.run_on_primary(draw, f"a figure of {self._name}")
        except LostPeer:
            raise
        except ConvoyError as error:
            self.error = error
        return images


class _Chosen(BaseSource):
    """A source of some examples of another one."""

    def __init__(self, source: BaseSource, indices: Sequence[int]):
        self.source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[self._indices[index]]
