"""Figures of predictions, which `Task.figure` draws for one example."""

import sys
from collections.abc import Mapping

import numpy as np

from engine.config.errors import ConfigError, ConvoyError, TaskError
from engine.config.user_errors import location
from engine.metrics.results import Image, named_results
from engine.training.task import Task
from engine.types import PyTree


def check_figure(task: Task, where: str) -> None:
    """Raises TaskError if a Task draws no figures; `where` is the setting that asks for them."""
    if type(task).figure is Task.figure:
        name = type(task).__name__
        raise TaskError(
            f"{where}: {name} has no figure(self, example, prediction). Define it and return a figure of matplotlib, "
            "which engine.plot draws."
        )


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
    try:
        figure = task.figure(example, prediction)
        results = named_results("figure", figure, where)
    except ConvoyError:
        raise
    except Exception as error:
        raise _described(error, where, example, prediction) from error
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and hasattr(figure, "savefig"):  # `close` refuses what is no figure
        pyplot.close(figure)  # pyplot keeps the figures that it has made
    image = results.get("figure")
    if not isinstance(image, Image):
        raise TaskError(f"{where} returned a {type(figure).__name__}. Return a figure of matplotlib, or an Image.")
    return Image(image.pixels, file)


def _described(error: Exception, where: str, example: PyTree, prediction: Mapping[str, np.ndarray]) -> ConvoyError:
    """Returns what the author's function has raised as an error of one sentence, with its line."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "matplotlib":
        return ConfigError(f"{where} needs matplotlib, which is not installed: pip install 'convoy-engine[plot]'.")
    if isinstance(error, KeyError) and error.args:
        names = ", ".join(map(str, example)) if isinstance(example, Mapping) else ""
        return TaskError(
            f"{where}: there is no {error.args[0]!r} ({location(error)}). The example holds {names}; the prediction "
            f"holds {', '.join(prediction)}."
        )
    return TaskError(f"{where} failed: {type(error).__name__}: {error} ({location(error)}). Correct it there.")
