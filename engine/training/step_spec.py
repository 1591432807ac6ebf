"""The parts and settings of a train step: its Task, model, optimizer and layout, and how it splits and guards the work.

`gradients.py`, `update.py` and `step.py` all take it as their first argument.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from engine.base.types import PyTree
from engine.data.context import Context, WatchedContext
from engine.parallel.layout import Layout
from engine.parallel.mesh import batch_sharding
from engine.training.model import Model
from engine.training.objective import Objective
from engine.training.optimizer import RunOptimizer
from engine.training.state import Shardings
from engine.training.task import Task

if TYPE_CHECKING:
    from engine.training.unfreezing import Interval

ENGINE_METRICS = ("grad_norm", "learning_rate", "skipped")
BAD_EXAMPLES = "bad_examples"  # additional metric with data.on_error=skip


class OffloadShardings(NamedTuple):
    """Shardings of an offloaded optimizer state: between the steps, and within a step."""

    host: PyTree
    device: PyTree


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """The parts and settings of a train step."""

    task: Task
    model: Model
    optimizer: RunOptimizer
    layout: Layout
    accumulate: int = 1
    approximate_accumulation: bool = False
    compute_dtype: DTypeLike = jnp.float32
    ema_decay: float | None = None
    skip_bad: bool = False  # unreadable examples have weight 0 and are counted in a metric
    idle_rows: bool = False  # rows in which no drive continues have weight 0
    unroll: bool = False  # unroll microbatches and K steps: a while loop around a convolution is slow on CPU
    loss_on_each_device: bool = True  # the loss may be called with a part of a microbatch, in a `jax.shard_map`
    grad_shardings: Shardings = dataclasses.field(default_factory=dict)  # path -> sharding of the summed gradient
    opt_shardings: OffloadShardings | None = None  # None: the optimizer state is not offloaded
    spike: float | None = None  # skip an update whose loss is above this many times the median of the loss window
    objective: Objective = dataclasses.field(default_factory=Objective)  # names of the losses
    total_steps: int = 0  # for the context, as is the next one
    steps_per_epoch: float = 1.0
    changed_frozen: tuple[str, ...] = ()  # paths of frozen parameters that the Task changes in `after_step` or `update`
    reads: list[str] = dataclasses.field(default_factory=list)  # see `WatchedContext`; filled while tracing
    compiler_options: Mapping[str, bool | int | float | str] = dataclasses.field(default_factory=dict)  # options of XLA
    row_state: tuple[str, ...] = ()  # paths of the model state that the loss carries for each row of a batch
    changed_state: frozenset[str] = frozenset()  # paths of the model state that the loss changes
    data_warnings: tuple[str, ...] = ()  # about data that does not fit such state
    interval: "Interval | None" = None  # of steps in which the same groups are frozen; None: none ever is
    branch: bool = False  # the guard branches instead of selecting each value: faster on CPU without convolutions

    @property
    def tx(self) -> optax.GradientTransformationExtraArgs:
        """The transformation of the trained parameters."""
        return self.optimizer.tx

    @property
    def constant(self) -> tuple[str, ...]:
        """Paths of the parameters that no step of the run changes."""
        changed = {*self.model.averaged, *self.changed_frozen}
        return tuple(path for path in self.model.params if path not in changed)

    @property
    def until(self) -> float:
        """The step at which a frozen group begins to be trained, so that the run needs other programs."""
        return math.inf if self.interval is None else self.interval.until

    @property
    def suffix(self) -> str:
        """End of the names of the programs that begin at another step than the first."""
        return "" if self.interval is None or self.interval.first == 0 else f" from step {self.interval.first}"

    @property
    def splits_params(self) -> bool:
        """Whether each device of `data` stores a part of the trained parameters: with ZeRO-1 in half precision.

        A step then gathers them in half precision. In float32, gathering the updated parameters moves as much.
        """
        return self.layout.zero1 and jnp.dtype(self.compute_dtype).itemsize < 4

    @property
    def packs(self) -> bool:
        """Whether small arrays are computed as few vectors: on GPUs of which each has all arrays (`packing.py`)."""
        whole = all(sharding.is_fully_replicated for sharding in self.grad_shardings.values())
        return self.layout.platform == "gpu" and self.opt_shardings is None and whole

    @property
    def ignored_rows(self) -> tuple[str, str]:
        """What gives rows weight 0, and the name of such a row; empty if every row has weight 1."""
        if self.skip_bad:
            return "data.on_error=skip", "the filler of a bad example"
        return ("data: rows without a drive are idle", "an idle row") if self.idle_rows else ("", "")

    @property
    def groups(self) -> Mapping[str, str]:
        """Path of a trained parameter -> optimizer group; "" for none."""
        return self.optimizer.labels

    def with_numbers(self, numbers: jax.Array) -> "StepSpec":
        """Returns the settings with the learning rates of the optimizer as traced numbers."""
        return dataclasses.replace(self, optimizer=self.optimizer.with_numbers(numbers))

    @property
    def mesh(self) -> Mesh:
        """The mesh of the step."""
        assert self.layout.mesh is not None
        return self.layout.mesh

    @property
    def engine_metrics(self) -> tuple[str, ...]:
        """Names of the engine's metrics, which follow the Task's."""
        rates = [name for name in self.optimizer.rate_names if name not in ENGINE_METRICS]
        return (*ENGINE_METRICS, *([BAD_EXAMPLES] if self.skip_bad else []), *rates)

    def context(self, step: jax.Array | int, rng: jax.Array, weight: jax.Array | np.ndarray | None = None) -> Context:
        """Returns the context of a step with the weights of its rows, for the methods of the Task that ask for it."""
        mask = None if weight is None else jnp.asarray(weight) > 0
        epoch = jnp.asarray(step, jnp.float32) / self.steps_per_epoch
        return WatchedContext(jnp.asarray(step, jnp.int32), epoch, self.total_steps, rng, mask, self.reads)

    @property
    def batch_sharding(self) -> NamedSharding:
        """Sharding of the rows of a batch."""
        return batch_sharding(self.mesh)
