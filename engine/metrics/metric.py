"""`Metric`, the base class of all metrics: a state that merges by addition or concatenation, and its final computation.

A subclass lists its fields like a dataclass and defines `compute`; the base class registers it as a pytree.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

import jax

from engine.base.errors import TaskError
from engine.base.types import PyTree

if TYPE_CHECKING:
    from engine.metrics.resampling import Resampler

_COLLECTED = "collected"
_FILL = "fill"
_ADDED = "added"


def collected(fill: float = 0) -> Any:
    """Returns the default of a field whose entries are kept for each example instead of being summed.

    class Quartiles(Metric):
        errors: jax.Array = collected(fill=math.nan)

    Args:
        fill: value of padding. Batches of several lengths, as of `engine.Bucketed`, may give entries of several shapes;
            they are padded to the largest.
    """
    return dataclasses.field(metadata={_COLLECTED: True, _FILL: fill})


def added() -> Any:
    """Returns the default of a summed field that an earlier version of the metric did not have, the last of its class.

    A checkpoint of the earlier version then continues its row of training metrics, with 0 for this field.
    """
    return dataclasses.field(metadata={_ADDED: True})


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(collected, added, dataclasses.field))
class Metric:
    """Base class of metrics. A subclass has fields and a method `compute`.

    A field annotated as an array, such as `jax.Array`, is `[batch, ...]`: one entry for each example. By default the
    entries are summed over all examples. With `= collected()` they are kept, in the order of the dataset. All other
    fields are settings: the same hashable values for every batch. A subclass is a frozen dataclass and a pytree.

        class Bias(Metric):
            error: jax.Array  # [batch]
            count: jax.Array  # [batch]
            unit: str = "m"

            def compute(self):
                return {self.unit: self.error / self.count}
    """

    higher_is_better: ClassVar[bool | None] = None
    """Whether a larger result is better, which decides what the worst examples of an evaluation are; None: it depends
    on the name, such as "loss" or "accuracy"."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        dataclasses.dataclass(frozen=True, eq=False)(cls)
        names = {True: [], False: []}
        for field in _fields(cls):
            names[_is_array(field)].append(field.name)
        jax.tree_util.register_dataclass(cls, data_fields=names[True], meta_fields=names[False])

    def compute(self) -> Any:
        """Returns the result, from the state of all examples. It runs once, on the host, in numpy.

        Summed fields are `[...]`, float64 or int64. Collected fields are `[examples, ...]`. The result is a number, an
        array, an `Image`, a `Curve`, `Bins`, a `Table`, a figure of matplotlib, or a dict of such values by name. The
        name "" stands for the name of the metric itself. A division by zero gives NaN or infinity without a warning.
        """
        raise TaskError(f"{type(self).__name__} has no compute(self). Define it and return a number, or a dict.")

    def compute_each(self, key: str) -> Iterator[Any]:
        """Yields what `compute` returns for each example alone; the engine ranks worst examples with it.

        Here summed fields are `[examples, ...]`, too. Override it where examples can share work.

        Args:
            key: name of the only entry that is of interest, such as "car" or "car/iou"; "" for the number of the metric
                itself. Other entries may be left out.
        """
        field, _ = next(array_fields(self))
        for row in range(len(getattr(self, field))):
            yield one_example(self, row).compute()

    def resampler(self) -> "Resampler | None":
        """Returns what computes the numbers of many resamples of the examples at once, for `convoy compare`.

        None, the default, calls `compute` for each resample. Here summed fields are `[examples, ...]`, too. A subclass
        that has its own `compute` does not use the resampler of its base class.
        """
        return None


def one_example[M: Metric](metric: M, row: int) -> M:
    """Returns the state of one example of a state whose fields are all `[examples, ...]`."""
    one: dict[str, Any] = {}
    for field, is_collected in array_fields(metric):
        x = getattr(metric, field)
        one[field] = x[row : row + 1] if is_collected else x[row]
    state: PyTree = metric
    return dataclasses.replace(state, **one)


def array_fields(metric: Metric) -> Iterator[tuple[str, bool]]:
    """Yields the name of each array of a metric, and whether it is collected."""
    for field in _fields(metric):
        if _is_array(field):
            yield field.name, _COLLECTED in field.metadata


def fill_of(metric: Metric, name: str) -> float:
    """Returns the value of padding of a collected field."""
    return next(field.metadata[_FILL] for field in _fields(metric) if field.name == name)


def is_added(metric: Metric, name: str) -> bool:
    """Whether earlier versions of a metric did not have a field."""
    return next(_ADDED in field.metadata for field in _fields(metric) if field.name == name)


def settings(metric: Metric) -> dict[str, object]:
    """Returns the fields of a metric that are not arrays."""
    return {field.name: getattr(metric, field.name) for field in _fields(metric) if not _is_array(field)}


def _fields(metric: Metric | type[Metric]) -> tuple[dataclasses.Field, ...]:
    """Returns the fields of a subclass, which `__init_subclass__` makes a dataclass."""
    of_dataclass: Any = metric
    return dataclasses.fields(of_dataclass)


def _is_array(field: dataclasses.Field) -> bool:
    text = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    return _COLLECTED in field.metadata or "Array" in text or "ndarray" in text
