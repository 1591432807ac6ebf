"""Builds the program of a config, from its Task, mesh, data and settings, and its compiler.

Settings that do not fit together raise an error here, before anything is compiled.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from engine.base.duration import MAX_STEPS, RunSize
from engine.base.errors import ConfigError, FieldError
from engine.base.types import PyTree
from engine.compile.compiler import ProgramCompiler
from engine.compile.evaluation_program import EvaluationProgram
from engine.compile.options import MAX_UNROLLED_STEPS, check_options, compiler_options
from engine.compile.program import DTYPES, Program
from engine.config.hardware import check_precision
from engine.config.schema import Config, Data, Optimizer, Sharding, Target, Train
from engine.config.target import build
from engine.data.batch import abstract_batch
from engine.data.sampling.sampler import evaluation_positions
from engine.data.source import BaseSource, example_spec
from engine.metrics.values import describe_value
from engine.parallel.layout import active, make_layout
from engine.parallel.mesh import check_batch
from engine.storage.mounts import local_text
from engine.training.arrays import AbstractArrays
from engine.training.model import Model, describe
from engine.training.optimizer import RunOptimizer, build_optimizer, needs_trace
from engine.training.roles import Roles, earlier_roles, untraced_roles
from engine.training.step_spec import StepSpec
from engine.training.task import Task, check_examples, check_methods


def build_task(section: Target) -> Task:
    """Returns the Task of the config section `task`.

    Raises:
        ConfigError: `task.target` gives something else.
        TaskError: a method of the Task does not take the arguments that the engine passes.
    """
    task = build(section, "task")
    if not isinstance(task, Task):
        problem = f"{section.target} returned {describe_value(task)}, which is not a Task"
        raise FieldError("task.target", problem, "Name a subclass of engine.Task, or a function that returns one.")
    check_methods(task)
    return task


def build_evaluation_program(
    task: Task, mesh: Mesh, train: Train, sharding: Sharding, trainable: str
) -> EvaluationProgram:
    """Returns the program of the evaluations of a run. Needs no data; compiles nothing and allocates no array.

    Args:
        task: the Task.
        mesh: the devices.
        train: config section `train`.
        sharding: config section `sharding`.
        trainable: `optimizer.trainable`.

    Raises:
        TaskError, ShardingError, ConfigError: the Task, the mesh and the settings do not fit together.
    """
    layout = make_layout(mesh, sharding, train)
    with active(layout):
        model = describe(task, trainable)
    return EvaluationProgram(
        task, model, layout, DTYPES[train.precision], seed=train.seed, rows=train.global_batch_size
    )


def build_program(
    task: Task, mesh: Mesh, source: BaseSource, config: Config, roles: str | None = None, step: int | None = None
) -> tuple[Program, int]:
    """Returns the program of a config and its total number of steps. Allocates no array.

    It compiles nothing but a program of one number, which checks `compiler.options` if there are any.

    Args:
        task: the Task.
        mesh: the devices.
        source: the training data.
        config: the config.
        roles: the roles of the parameters, as a resumed run has stored them; "" if it has stored none, since the rules
            of earlier versions decide as well; None for a new run.
        step: the next step, which decides which groups are frozen (`frozen_until`); None: those of the last step.

    Raises:
        ConvoyError: the Task, the data, the mesh, the hardware and the settings do not fit together.
    """
    train, size = config.train, len(source)
    check_precision(mesh.devices.flat[0].device_kind, train.precision)
    check_batch(mesh, train.global_batch_size, train.accumulate)
    example = example_spec(source)
    check_examples(task, example, "data")
    total = train.total.steps(train.global_batch_size, size)
    if total > MAX_STEPS:
        raise ConfigError(f"train.total: {total} steps, allowed are at most {MAX_STEPS}. Write a shorter duration.")
    evaluation = build_evaluation_program(task, mesh, train, config.sharding, config.optimizer.trainable)
    options = compiler_options(evaluation.layout.platform, config.compiler.options)
    if config.compiler.options:
        check_options(mesh, options)
    model = _with_frozen_norms(evaluation.model, config.optimizer.frozen_statistics)
    run_size = RunSize(train.global_batch_size, size, total)
    spec = StepSpec(
        task=task,
        model=model,
        optimizer=_first_optimizer(config.optimizer, run_size, model, roles),
        layout=evaluation.layout,
        accumulate=train.accumulate,
        approximate_accumulation=train.approximate_accumulation,
        compute_dtype=evaluation.compute_dtype,
        ema_decay=train.ema_decay,
        skip_bad=config.data.on_error == "skip",
        idle_rows=evaluation_positions(source, train.global_batch_size) > size,
        spike=config.resilience.spike,
        total_steps=total,
        steps_per_epoch=size / train.global_batch_size,
        compiler_options=options,
    )
    spec = _with_roles(spec, config, run_size, example, roles)
    spec = _in_interval(spec, config.optimizer, run_size, step, train.seed)
    shapes = source.shape_specs()
    check_consecutive(source, len(shapes), train.steps_per_dispatch)
    program = Program(spec, example, batch_size=train.global_batch_size, seed=train.seed, shapes=shapes)
    if config.resilience.gradient_check:
        from engine.compile.local_gradient import check_supported

        check_supported(program)
    program.spec = _with_data_warnings(program.spec, config.data, source, train.global_batch_size)
    return program, total


def _with_frozen_norms(model: Model, expression: str) -> Model:
    """Returns the model with the modules whose batch statistics match `optimizer.frozen_statistics`."""
    if not expression:
        return model
    from engine.training.batch_statistics import frozen_norms

    return dataclasses.replace(model, frozen_norms=frozen_norms(model, expression))


def _first_optimizer(optimizer: Optimizer, size: RunSize, model: Model, stored: str | None) -> RunOptimizer:
    """Returns the optimizer for the roles that are known without a trace of the loss."""
    found = None if stored == "" else untraced_roles(model.roles, _trained(model), model.names)
    return build_optimizer(optimizer, size, _trained(model), model.names, found)


def _with_roles(spec: StepSpec, config: Config, size: RunSize, example: PyTree, stored: str | None) -> StepSpec:
    """Returns the parts of a step with the optimizer for the roles that are stored, or that the loss decides."""
    params, names, optimizer = _trained(spec.model), spec.model.names, config.optimizer
    if stored:
        roles = Roles.from_text(stored, earlier_roles(params, names))
    elif needs_trace(optimizer, is_resumed=stored is not None):
        from engine.training.traced_roles import traced_roles

        roles = traced_roles(spec, abstract_batch(example, size.batch_size, spec.batch_sharding))
    else:
        return spec
    spec = dataclasses.replace(spec, optimizer=build_optimizer(optimizer, size, params, names, roles))
    if not optimizer.mup:
        return spec
    from engine.compile.base_width import with_base_width

    return with_base_width(spec, config, size)


def _trained(model: Model) -> AbstractArrays:
    """Returns path -> shape of each trained parameter."""
    return {path: model.params[path] for path in model.trained}


def _in_interval(spec: StepSpec, optimizer: Optimizer, size: RunSize, step: int | None, seed: int) -> StepSpec:
    """Returns the parts of a step without the groups that are frozen until a later step."""
    if all(group.frozen_until is None for group in optimizer.groups.values()):
        return spec
    from engine.training.unfreezing import in_interval

    return in_interval(spec, optimizer, size, step, seed)


def _with_data_warnings(spec: StepSpec, data: Data, source: BaseSource, rows: int) -> StepSpec:
    """Returns the parts of a step with the warnings about data that does not fit the state of the rows."""
    found = _row_state_warnings(spec, data, source, rows)
    if spec.changed_state and len(spec.model.trained) < len(spec.model.params):
        from engine.training.batch_statistics import moving_warnings

        found += moving_warnings(spec)
    return dataclasses.replace(spec, data_warnings=found)


def _row_state_warnings(spec: StepSpec, data: Data, source: BaseSource, rows: int) -> tuple[str, ...]:
    """Returns a warning if rows of successive batches do not continue each other, but the model carries their state."""
    if source.continues_rows:
        return ()
    carries = f"the model carries {', '.join(spec.row_state)} for each of the {rows} rows from batch to batch"
    if spec.row_state and data.shuffle:
        advice = (
            f"Use engine.Sequences with carry=True, or data.shuffle=False with example n x {rows} + r as the n-th part "
            "of what row r reads."
        )
        return (f"data.shuffle=True: {carries}, but shuffled rows do not continue each other. {advice}",)
    if spec.row_state and (size := len(source)) % rows:
        return (
            f"data: {carries}, but its {size} examples are not a multiple of {rows}, so that after each epoch a row "
            "continues another one.",
        )
    return ()


def open_compiler(programs: str | None, config: str, say: Callable[[str], None]) -> ProgramCompiler:
    """Returns the compiler of a run, which loads the programs of `cache.programs`.

    Args:
        programs: the folder; None: every program is compiled.
        config: text of the config of the run.
        say: called with sentences for the user.

    Raises:
        ConfigError: `cache.programs` is not a folder, or other users may write to it.
    """
    if programs is None:
        return ProgramCompiler(say)
    from engine.compile.program_store import StoredPrograms

    return StoredPrograms(Path(local_text(programs)), config=config, say=say)


def check_consecutive(source: BaseSource, shapes: int, k: int) -> None:
    """Raises ConfigError if a dispatch of k steps needs more batches of one shape than the source gives in a row."""
    consecutive = source.consecutive
    if shapes > 1 and consecutive % k:
        raise ConfigError(
            f"train.steps_per_dispatch = {k}: the steps of a dispatch need batches of one shape, and the source of "
            f"data gives {consecutive} of its {shapes} lengths in a row. Set its argument consecutive={k}, or "
            "train.steps_per_dispatch=1."
        )


def check_unrolled(program: Program, train: Train) -> None:
    """Raises ConfigError if a dispatch has so many unrolled steps that its compilation would take hours."""
    count = train.steps_per_dispatch * train.accumulate
    if program.spec.unroll and count > MAX_UNROLLED_STEPS:
        field = "steps_per_dispatch" if train.steps_per_dispatch > train.accumulate else "accumulate"
        raise ConfigError(
            f"train.{field}: found steps_per_dispatch = {train.steps_per_dispatch} x accumulate = {train.accumulate} "
            f"= {count:,}. The model has convolutions, so a CPU needs each step and microbatch compiled separately: "
            f"allowed are at most {MAX_UNROLLED_STEPS}. Use train.steps_per_dispatch=1, or fewer microbatches."
        )
