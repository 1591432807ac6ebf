"""What the step and the evaluations of a run need on each device, by their compiled programs: memory, and time."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import jax

from engine.base.duration import RunSize
from engine.base.formatting import seconds_text, size_text
from engine.base.types import PyTree
from engine.cluster import group
from engine.compile.build import check_unrolled
from engine.compile.memory_limit import Limit
from engine.compile.program import Program
from engine.config.schema import Evaluation as EvaluationConfig
from engine.config.schema import Train
from engine.data.batch import abstract_batch
from engine.data.prefetch import IN_FLIGHT
from engine.data.source import BaseSource, example_spec
from engine.loop.evaluation import IN_FLIGHT as WAITING
from engine.loop.evaluation import Evaluator
from engine.loop.evaluations import build_evaluations
from engine.parallel.memory import HOST_MEMORY, compiled_bytes, device_bytes, working_bytes

COMPILE_S = 3600.0  # seconds that a process may compile longer than the others


class CompiledSizes:
    """Compiles programs of different sizes and remembers what they need; every process calls it with the same sizes.

    Args:
        build: returns the program of the run with another section `train`, and its total number of steps.
        evaluations: config sections of the evaluations, by name.
        evaluation_sources: name of an evaluation -> its data.
        examples: number of training examples.
        limit: memory that a program may use.
    """

    def __init__(
        self,
        build: Callable[[Train], tuple[Program, int]],
        evaluations: Mapping[str, EvaluationConfig],
        evaluation_sources: Mapping[str, BaseSource],
        examples: int,
        limit: Limit,
    ):
        self._build, self.evaluations, self._evaluation_sources = build, evaluations, evaluation_sources
        self.examples = examples
        self.limit = limit
        self.shares: dict[int | str, float] = {}
        """Size -> share of the limit that its step needs; infinite if the compiler found that it does not fit.

        The same in every process, also where the limits differ.
        """
        self.seconds: dict[int | str, float] = {}
        """Size -> estimated seconds of its step, by the primary."""

    def used(self, train: Train) -> Collection[str]:
        """Returns `Layout.used` of the model with these settings."""
        return self._build(train)[0].spec.layout.used

    def share(self, size: int | str, train: Train, *, timed: bool = False) -> float:
        """Returns the share of the limit that the step of these settings needs; compiles it.

        Args:
            size: name of the settings: the number, or the value of `train.remat`.
            train: the settings.
            timed: whether to estimate the time, too, if the compiler does not refuse the step.

        Raises:
            ConvoyError: the Task, the data, the mesh and the settings do not fit together.
        """
        program, _ = self._build(train)
        check_unrolled(program, train)
        compiled: list[jax.stages.Compiled] = []

        def need() -> float:
            compiled.append(program.trace(train.steps_per_dispatch).lower().compile())
            batch = _on_device(program.abstract_batch)
            # The program holds the batches of a dispatch.
            return compiled_bytes(compiled[0]) + IN_FLIGHT * train.steps_per_dispatch * batch

        def seconds() -> float:
            from engine.compile.step_time import step_seconds

            return step_seconds(compiled[0], program.mesh, train.precision) / train.steps_per_dispatch

        self.shares[size] = self._agreed(need, "the size of a step")
        if timed and self.shares[size] < math.inf:
            self.seconds[size] = group.run_on_primary(seconds, "the time of a step", COMPILE_S)
        return self.shares[size]

    def evaluation_shares(self, train: Train) -> dict[str, float]:
        """Returns the share of the limit that each evaluation needs, the train state included; compiles them.

        Evaluations that are never due are left out.
        """
        program, total = self._build(train)
        run = RunSize(train.global_batch_size, self.examples, total)
        built = build_evaluations(
            self.evaluations, self._evaluation_sources, program.evaluation, train.global_batch_size
        )
        return {
            each.name: self._agreed(
                lambda each=each: self._evaluation_bytes(program, each), f"the size of evaluation {each.name}"
            )
            for each in built
            if each.is_due(run)
        }

    def _evaluation_bytes(self, program: Program, evaluation: Evaluator) -> float:
        """Returns the bytes on each device while an evaluation runs: its program, the train state, and its batches."""
        state = program.abstract_state
        found = max(map(working_bytes, evaluation.compile(state, program.compiler)))
        example = example_spec(self._evaluation_sources[evaluation.name])
        batch = abstract_batch(example, evaluation.batch_size, program.spec.batch_sharding)
        return found + _on_device(state.to_tree()) + (1 + WAITING) * _on_device(batch)

    def _agreed(self, need: Callable[[], float], topic: str) -> float:
        """Returns the largest need of all processes as a share of their memory."""
        found: float | None = None  # the compiler for TPUs refuses a program that does not fit
        try:
            found = need()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
        answer = group.decide(
            [found, self.limit.bytes],
            lambda values, missing: _judge([values[process] for process in sorted(values)]),
            topic,
            COMPILE_S,
        )
        return math.inf if answer is None else answer

    def text(self, size: int | str) -> str:
        """Returns what the step of a size that was compiled needs."""
        return self.share_text(self.shares[size])

    def share_text(self, share: float) -> str:
        """Returns a share of the limit in bytes."""
        return "more than the compiler allows" if share == math.inf else size_text(share * self.limit.bytes)

    def __str__(self) -> str:
        """Returns the sizes that were tried with what they need."""
        sizes = sorted(self.shares, key=lambda size: size if isinstance(size, int) else 0)
        times = {size: f" and {seconds_text(seconds)}" for size, seconds in self.seconds.items()}
        texts = [f"{size}: {self.text(size)}{times.get(size, '')}" for size in sizes]
        plural = "s" * (len(texts) > 1)
        return f"{len(texts)} program{plural} compiled: {', '.join(texts)}; allowed are {self.limit.text}"


def _judge(values: Sequence[Sequence[float | None]]) -> float | None:
    """Returns the largest need as a share of the memory, of the processes' (need, memory); None if it is infinite."""
    shares = [math.inf if need is None else need / (limit or 1) for need, limit in values]
    return None if math.inf in shares else max(shares)


def _on_device(tree: PyTree) -> int:
    """Returns the bytes in the memory of each device of abstract arrays."""
    leaves = jax.tree.leaves(tree)
    return sum(device_bytes(leaf) for leaf in leaves if leaf.sharding.memory_kind != HOST_MEMORY)
