"""`exported`, which marks methods of a Task as entry points of its bundles."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, overload

from engine.base.errors import TaskError

PREDICT = "predict"
_MARK = "_exported_entry"

type Inputs = Callable[[Any], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry point of a bundle.

    Attributes:
        name: name of the method.
        inputs: returns example inputs of a Task, name -> array `[rows, ...]`; None for the entries of its dataset.
        shapes: name of an input -> its dimensions: "batch, length".
    """

    name: str
    inputs: Inputs | None = None
    shapes: Mapping[str, str] = dataclasses.field(default_factory=dict)


@overload
def exported[F: Callable[..., Any]](method: F, /) -> F: ...
@overload
def exported[F: Callable[..., Any]](
    *, inputs: Inputs | None = None, shapes: Mapping[str, str] | None = None
) -> Callable[[F], F]: ...
def exported(method: Any = None, /, *, inputs: Inputs | None = None, shapes: Mapping[str, str] | None = None) -> Any:
    """Marks a method of a Task as an entry point of its bundles, in addition to `predict`.

    The method is called like `predict`, with the model in evaluation mode and a batch, and returns a pytree of arrays.

        @engine.exported(inputs=lambda task: {"text": np.zeros((2, 16), np.int32)}, shapes={"text": "batch, length"})
        def embed(self, model, batch):
            return {"embedding": model.embed(batch["text"])}  # [batch, length, width]

    Args:
        method: the method, for use without parentheses.
        inputs: function of the Task that returns example inputs, name -> array `[rows, ...]`. By default, the inputs
            are those entries of the dataset of an evaluation that the method reads.
        shapes: name of an input -> its dimensions, of which the first is the batch: numbers, or names of dimensions of
            any size. By default, only the batch has any size. `convoy export --shape` overrides them.
    """

    def mark(method: Any) -> Any:
        setattr(method, _MARK, (inputs, dict(shapes or {})))
        return method

    return mark if method is None else mark(method)


def entries_of(task: Any) -> list[Entry]:
    """Returns the entry points of a Task: `predict`, if it has one, and the methods that are marked.

    Raises:
        TaskError: it has none.
    """
    from engine.training.task import Task

    kind = type(task)
    found = [Entry(PREDICT)] if kind.predict is not Task.predict and not hasattr(kind.predict, _MARK) else []
    for name in dir(kind):
        if (mark := getattr(getattr(kind, name, None), _MARK, None)) is not None:
            found.append(Entry(name, *mark))
    if not found:
        raise TaskError(
            f"{kind.__name__}: has no entry point to export. Define predict(self, model, batch), or mark a method with "
            "@engine.exported."
        )
    return found
