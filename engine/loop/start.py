"""The start of an attempt: restores or initializes the state, and compiles the steps."""

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.base.types import PyTree
from engine.checkpoint.store import CheckpointStore
from engine.cluster import group
from engine.compile.program import Program
from engine.compile.shapes import CompiledSteps
from engine.config.schema import Init
from engine.loop.events.save import Rebuild
from engine.loop.phases import COMPILING, RESTORING, Phases
from engine.observe.recorder import Sums
from engine.run.directory import RunDirectory
from engine.training.model import Model
from engine.training.state import TrainState
from engine.training.task import rounding_note

if TYPE_CHECKING:
    from engine.run import lineage

FROZEN = 5  # parts that a note lists
SILENCE_S = 20.0  # a compilation that takes longer is reported


@dataclass
class Start:
    """The state from which the loop starts or continues."""

    state: TrainState
    step: int
    position: Mapping[str, Any]
    """Position in the data that the checkpoint holds; {} for a new run."""
    inputs: "Sequence[lineage.Input]" = ()
    """Checkpoints that gave the weights of a new run."""

    @property
    def skipped(self) -> set[int]:
        """Numbers of the batches whose updates the run skips."""
        return set(self.position.get("skipped", ()))

    @property
    def row(self) -> Sums:
        """Sums of the row of metrics that was unfinished."""
        return self.position.get("row", {})


def restore(store: CheckpointStore, program: Program, init: Init, phase: Phases, say: Callable[[str], None]) -> Start:
    """Returns the newest valid checkpoint, or a new state if the run has no checkpoint.

    Args:
        store: checkpoints of the run.
        program: the program of the run.
        init: config section `init`.
        phase: enters a phase.
        say: called with sentences for the user.
    """
    with phase(RESTORING):
        abstract = program.abstract_state
        partial = () if abstract.is_schedule_free else None  # a checkpoint also holds averages, which are computed
        wanted = functools.partial(_stored_state, program)
        found = store.restore_latest(wanted, program.spec.model.stacked, say, partial)
        store.keep_frozen(program.spec.constant)
    if found is None:
        with phase(COMPILING):
            state, inputs = _initial_state(program, init, say)
            return Start(state, 0, {}, inputs)
    tree, step = found
    state, interval = TrainState.from_tree(tree), program.spec.interval
    if interval is not None and interval.first == step > 0:
        from engine.training.unfreezing import begin

        with phase(COMPILING):
            make = program.compile_optimizer_state()
            state = begin(state, make({path: state.params[path] for path in program.spec.model.averaged})[0])
    else:
        say(f"resuming from step {step}")
    return Start(state, step, store.position(step))


def _stored_state(program: Program, step: int) -> PyTree:
    """Returns the abstract state that a checkpoint of the run has. Raises Rebuild for one of an earlier interval."""
    state, interval = program.abstract_state, program.spec.interval
    if interval is None or interval.first == 0 or step > interval.first:
        return state.to_tree()
    if step < interval.first:
        raise Rebuild(f"step {step}: other groups of parameters are frozen than from step {interval.first} on")
    return dataclasses.replace(state, opt_state=interval.earlier).to_tree()


def record_inputs(start: Start, directory: RunDirectory) -> None:
    """Records the checkpoints that gave a new run its weights, instead of those of an earlier start from step 0."""
    recorded = (directory.path / "lineage.json").exists()  # maybe with checkpoints that this start has not read
    if not start.position and group.is_primary() and (start.inputs or recorded):
        from engine.run import lineage

        lineage.update_run(directory, start.inputs, kept=lambda one: one.kind != lineage.CHECKPOINT)


def _initial_state(
    program: Program, init: Init, say: Callable[[str], None]
) -> tuple[TrainState, "Sequence[lineage.Input]"]:
    """Returns the state of step 0, with random weights or those of `init.checkpoint`, and these checkpoints."""
    if not (init.checkpoint or init.sources):
        return program.init(), ()
    from engine.checkpoint import warm_start  # few runs need it

    model = program.spec.model
    weights = warm_start.read_weights(init, program.abstract_state.to_tree(), model.stacked, model.without_values())
    say(weights.message)
    return program.init(weights.params, weights.model_state), weights.inputs


def say_notes(program: Program, say: Callable[[str], None]) -> None:
    """Says what the user should know of a program: warnings, rounded inputs, and notes of the optimizer."""
    spec = program.spec
    for text in program.warnings:
        say(f"warning: {text}")
    if note := rounding_note(spec.task, program.abstract_batch.examples, spec.compute_dtype, spec.layout.precision):
        say(note)
    if note := frozen_note(spec.model):
        say(f"until step {spec.until} {note}" if spec.until < math.inf else note)
    for text in spec.optimizer.messages:
        say(text)


def frozen_note(model: Model) -> str:
    """Returns a sentence that names the frozen parts of a model; "" if none is."""
    trained = set(model.trained)
    sizes = {path: math.prod(x.shape) for path, x in model.params.items()}
    parts: dict[str, int] = {}
    for path in sizes.keys() - trained:
        names = path.split("/")
        prefixes = ["/".join(names[:count]) for count in range(1, len(names) + 1)]
        part = next(part for part in prefixes if not any(f"{other}/".startswith(f"{part}/") for other in trained))
        parts[part] = parts.get(part, 0) + sizes[path]
    if not parts:
        return ""
    total, frozen = sum(sizes.values()), sum(parts.values())
    listed = [f"{part} ({count:,})" for part, count in sorted(parts.items(), key=lambda item: (-item[1], item[0]))]
    names = ", ".join(listed[:FROZEN]) + (f" and {len(listed) - FROZEN} more" if len(listed) > FROZEN else "")
    return f"the run trains {total - frozen:,} of {total:,} parameters; frozen: {names}"


def compile_steps(program: Program, k: int, say: Callable[[str], None]) -> dict[int, CompiledSteps]:
    """Returns the compiled programs of 1 and of k steps by their number of steps; reports a long compilation."""
    with contextlib.ExitStack() as stack:
        if program.mesh.size > 1:
            from engine.compile.xla_warnings import rematerialization_explained

            stack.enter_context(rematerialization_explained(say))
        stack.enter_context(reported_if_long(say, SILENCE_S))
        return {count: program.steps(count) for count in {1, k}}


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
