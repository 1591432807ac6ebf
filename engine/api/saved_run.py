"""Read access to an existing run: its config, its checkpoints and its trained model."""

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from engine.base import formatting
from engine.base.errors import CheckpointError, ConfigError, FieldError, RunError
from engine.checkpoint import timeouts
from engine.checkpoint.bucket_copy import add_step, readable
from engine.checkpoint.integrity import warn_of_incomplete
from engine.checkpoint.manifest import read_lock
from engine.checkpoint.policy import best_of, read_results
from engine.checkpoint.store import CheckpointStore, StepInfo
from engine.cluster import group
from engine.compile.build import build_evaluation_program, build_task
from engine.compile.evaluation_program import EvaluationProgram
from engine.compile.program import Program
from engine.config.draft import draft_of
from engine.config.instances import section_of
from engine.config.override import apply
from engine.config.schema import Config, Data, Evaluation, MeshSpec, Target, field_names
from engine.config.setting import AUTO
from engine.config.target import is_found, tag_functions
from engine.config.text import from_text
from engine.config.validation import validate
from engine.data.adapt import Readable
from engine.observe.goodput_table import goodput_text
from engine.parallel.mesh import make_mesh
from engine.run import code, status
from engine.run.code import Code
from engine.run.directory import RunDirectory
from engine.storage import background
from engine.training.state import TrainState, Weights, evaluation_params
from engine.training.task import Task

# Prefixes of the fields that an evaluation or a prediction may change.
CHANGEABLE = (
    *("evaluations.", "data.", "mesh.", "sharding.", "cache.", "log."),
    *("train.global_batch_size", "train.precision"),
)

_DATA_FIELDS = set(field_names(Data)) - {"target"}  # the other fields of a section `data` are arguments of its target


class SavedRun:
    """The directory, the config and the checkpoints of a run.

    Args:
        path: the run directory, or its address in a bucket. With CONVOY_DATA_CACHE, the bucket is read without a mount;
            the run is then as it was when this object was made.

    Raises:
        RunError: the directory is not a run.
    """

    def __init__(self, path: str | Path):
        self.directory = RunDirectory(readable(path))
        self.config = from_text(self.directory.read_config_text(), str(self.directory.config))
        self._store = CheckpointStore(self.directory.checkpoints)

    def checkpoints(self) -> list[StepInfo]:
        """Returns step, size, time and results of each checkpoint, oldest first."""
        return self._store.describe()

    @property
    def total_steps(self) -> int | None:
        """Number of steps of the run; None if it has not begun, or its status cannot be read."""
        try:
            return status.read(self.directory.status).total_steps
        except RunError:
            return None

    def choose(self, step: int | str | None) -> int:
        """Returns the step for a number, "latest", "best" or None; None, like "best": the best, else the newest.

        Raises:
            CheckpointError: there is no such checkpoint; the message lists the existing ones.
        """
        steps, best = self._store.steps(), self._best()
        if not steps:
            run = shlex.quote(str(self.directory))
            raise CheckpointError(
                f"{self.directory}: no checkpoint yet. Train first: convoy train --config={run} --workdir={run}"
            )
        if step in (None, "best", "latest"):
            warn_of_incomplete(self.directory.checkpoints, steps)
        if step in (None, "best") and best is not None and best[0] in steps:
            return best[0]
        if step in (None, "best", "latest"):
            return steps[-1]
        if str(step).isdecimal() and int(str(step)) in steps:
            return int(str(step))
        found = ", ".join(map(str, steps))
        raise CheckpointError(f"{self.directory}: no checkpoint {step!r}. Found: {found}, latest, best.")

    def _best(self) -> tuple[int, float] | None:
        """Returns the step and the value of the best result of the run; None if it selects none.

        Any process may call it alone: it does not communicate.
        """
        c = self.config.checkpoint
        return best_of(read_results(self.directory.checkpoints), c.best, c.best_mode)

    def describe_choice(self, step: int, asked: int | str | None) -> str:
        """Returns a chosen step with the reason: "step 562 (best heldout/accuracy, 0.9833)"."""
        c, best = self.config.checkpoint, self._best()
        if asked in (None, "best") and best is not None and best[0] == step:
            return f"step {step} (best {c.best}, {formatting.number(best[1])})"
        return f"step {step} (the newest)" if asked in (None, "best", "latest") else f"step {step}"

    def changed_config(
        self,
        overrides: Sequence[str],
        *,
        data: Mapping[str, Any] | None = None,
        evaluation_data: Mapping[str, Readable] | None = None,
    ) -> Config:
        """Returns the config of the run with other settings for evaluations and predictions.

        Args:
            overrides: each "evaluations.test.batch_size=64".
            data: replaces the section `data`; None keeps it.
            evaluation_data: sources of evaluations, by name; a new name is a new evaluation. Fields of the engine, such
                as `limit`, stay as the config sets them.

        Raises:
            ConfigError: an override is not valid, or changes the model or the training.
        """
        if not overrides and data is None and not evaluation_data:
            return self.config
        for text in overrides:
            name = text.partition("=")[0].strip()
            if not name.startswith(CHANGEABLE):
                raise ConfigError(
                    f"--config.{name}: the run's own config gives the model and its training. Allowed here: "
                    f"{', '.join(f'{prefix}NAME' if prefix.endswith('.') else prefix for prefix in CHANGEABLE)}."
                )
        draft = draft_of(self.config)
        if data is not None or any(text.startswith("data.target=") for text in overrides):
            draft.data = data or {}
        for name, source in (evaluation_data or {}).items():
            before = draft.evaluations.get(name, {})
            kept = {field: x for field, x in before.get("data", {}).items() if field in _DATA_FIELDS}
            draft.evaluations[name] = {**before, "data": {**kept, **section_of(source)}}
        apply(draft, overrides, "--config.")
        changed = validate(draft, "the command line")
        if changed.train.global_batch_size == AUTO:
            raise FieldError("train.global_batch_size", "found auto", "Only a training chooses it. Give a number.")
        return changed

    @property
    def code(self) -> Code:
        """Where the code of the run lies, as its latest attempt stored it."""
        return code.read(self.directory.code)

    def build_task(self) -> Task:
        """Returns the Task of the run, imported from where the run has imported it if it is not found otherwise.

        Raises:
            ConfigError: its code cannot be imported; the text says where the run was started.
        """
        with self.code_importable(self.config.task, self.config.evaluations):
            return build_task(self.config.task)

    @contextlib.contextmanager
    def code_importable(self, task: Target, evaluations: Mapping[str, Evaluation]) -> Iterator[None]:
        """Appends the folders of the run's code to sys.path if a target is not found; explains a ConfigError inside."""
        found, names = self.code, [task.target, *(e.data.target for e in evaluations.values())]
        names += [section.target for e in evaluations.values() for section in e.slices.values()]
        names += tag_functions(evaluations)
        inside = self.directory.path.resolve()  # never import from there, see docs/runs.md
        folders = [Path(folder) for folder in found.folders if not Path(folder).resolve().is_relative_to(inside)]
        if not all(map(is_found, names)):
            sys.path += [str(folder) for folder in folders if folder.is_dir() and str(folder) not in sys.path]
        try:
            yield
        except ConfigError as error:
            if not str(found):
                raise
            gone = [folder for folder in folders if not folder.is_dir()]
            advice = [f"{folder} does not exist here: copy the code there, or set PYTHONPATH." for folder in gone[:1]]
            raise ConfigError(" ".join([f"{error} The run was started with the code in {found}.", *advice])) from error

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints, oldest first."""
        return self._store.steps()

    def incomplete(self) -> list[int]:
        """Returns the steps without a manifest: damaged ones, and some that a bucket is just receiving."""
        return sorted(set(self._store.candidates()) - set(self._store.steps()))

    def weights(self, step: int, program: EvaluationProgram) -> Weights:
        """Returns the weights of a checkpoint, sharded as the program requires; the other arrays are not read.

        Every process must call it. Raises CheckpointError, in every process if the checkpoint no longer exists.
        """
        optional = () if self.config.train.ema_decay is not None else ("ema",)  # of a schedule-free optimizer
        wanted = program.abstract_weights(averaged=True).to_tree()
        with self._reading(step):
            found = self._store.restore(step, wanted, program.model.stacked, partial=optional)
        return Weights.from_tree({name: part for name, part in found.items() if part or name not in optional})

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Keeps a checkpoint from being removed while the block runs. Every process must call it.

        The primary decides whether the checkpoint exists, so that no process waits in a restore that another one cannot
        begin. Raises CheckpointError in every process if it does not.
        """
        path = self.directory.checkpoints / str(step)
        with contextlib.ExitStack() as stack:

            def lock() -> list[int]:
                with contextlib.suppress(OSError):  # the restore, which has a timeout too, reports a storage that fails
                    background.bounded(lambda: stack.enter_context(read_lock(path)), timeouts.LIST_S)
                return self.steps()

            found = group.run_on_primary(lock, "the checkpoint to read")
            if step not in found:
                raise CheckpointError(
                    f"{self.directory.checkpoints}: there is no checkpoint of step {step}. "
                    f"Existing steps: {', '.join(map(str, found)) or 'none'}."
                )
            add_step(path)
            yield

    def restore(self, step: int, program: Program) -> TrainState:
        """Returns the state of a checkpoint, sharded as the program requires."""
        abstract, stacked = program.abstract_state, program.spec.model.stacked
        partial = () if abstract.is_schedule_free else None
        return TrainState.from_tree(self._store.restore(step, abstract.to_tree(), stacked, partial=partial))


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained model and the parts of its run.

    Attributes:
        task: the Task of the run.
        model: the model in evaluation mode, with the averaged weights if the run has them. The
            parameters have their stored precision, whatever `train.precision`.
        config: the config of the run.
        step: the step of the checkpoint.
    """

    task: Task
    model: nnx.Module
    config: Config
    step: int


def load(run: str | Path, *, step: int | str | None = None, task: Task | None = None) -> LoadedRun:
    """Loads a trained model from a run directory, onto the first device. Reads no dataset.

    The code of the Task is imported as usual; if it is not found, from the folder where the run imported it.

    Args:
        run: the run directory.
        step: step of the checkpoint, "latest", or "best". None, like "best": the best checkpoint if the run selects
            one, else the newest.
        task: the Task, if the run was started with a Task object.

    Raises:
        CheckpointError: there is no such checkpoint, or it belongs to another model than the code builds.
        ConfigError: the code of the Task cannot be imported.
    """
    saved = SavedRun(run)
    chosen = saved.choose(step)
    task = saved.build_task() if task is None else task
    mesh = make_mesh(MeshSpec(), jax.local_devices()[:1])
    config = saved.config
    program = build_evaluation_program(task, mesh, config.train, config.sharding, config.optimizer.trainable)
    weights = saved.weights(chosen, program)
    model = program.model.module(evaluation_params(weights, use_ema=True), weights.model_state, None)
    model.eval()
    return LoadedRun(task, model, config, chosen)


def goodput(run: str | Path) -> str:
    """Returns a table of how the time of a run was spent, per attempt; does not initialize devices."""
    return goodput_text(RunDirectory(readable(run)))
