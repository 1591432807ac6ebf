"""Figures of predictions, which `Task.figure` draws for one example."""

import contextlib
import sys
from collections.abc import Iterator, Mapping

import numpy as np

from engine.base.errors import ConfigError, ConvoyError, DataError, TaskError
from engine.base.types import PyTree
from engine.base.user_errors import describe
from engine.data.source import BaseSource, source_name
from engine.metrics.results import Image, named_results
from engine.training.author_errors import errors_described
from engine.training.task import Task


def check_figure(task: Task, where: str) -> None:
    """Raises TaskError if a Task draws no figures; `where` is the setting that asks for them."""
    if type(task).figure is Task.figure:
        name = type(task).__name__
        raise TaskError(
            f"{where}: {name} has no figure(self, example, prediction). Define it and return a figure of matplotlib, "
            "which engine.plot draws."
        )


def draw_example(task: Task, source: BaseSource, index: int, prediction: Mapping[str, np.ndarray], file: str) -> Image:
    """Reads an example of a dataset once more, with its text, and returns its figure; otherwise as `draw_figure`.

    Raises:
        DataError: the example cannot be read.
    """
    try:
        example = source[index]
    except ConvoyError:
        raise
    except Exception as error:
        raise DataError(
            f"example {index} of {source_name(source)}: cannot be read for its figure: {describe(error)}"
        ) from error
    return draw_figure(task, example, prediction, file)


def draw_figure(task: Task, example: PyTree, prediction: Mapping[str, np.ndarray], file: str) -> Image:
    """Returns the figure of an example as PNG.

    Args:
        task: the Task.
        example: the example of the dataset, with its text.
        prediction: name of a prediction -> its value for this example.
        file: see `Image`.

    Raises:
        TaskError: the Task fails, or returns something else.
        ConfigError: matplotlib is not installed.
    """
    where = f"{type(task).__name__}.figure"
    with errors_described(where, example=example, prediction=prediction), _matplotlib_needed(where):
        figure = task.figure(example, prediction)
        results = named_results("figure", figure, where)
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None and hasattr(figure, "savefig"):  # `close` refuses what is no figure
            pyplot.close(figure)  # pyplot keeps the figures that it has made
    image = results.get("figure")
    if not isinstance(image, Image):
        raise TaskError(f"{where} returned a {type(figure).__name__}. Return a figure of matplotlib, or an Image.")
    return Image(image.pixels, file)


@contextlib.contextmanager
def _matplotlib_needed(where: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        from engine.base.extras import install_command

        raise ConfigError(f"{where} needs matplotlib, which is not installed: {install_command('plot')}.") from error
