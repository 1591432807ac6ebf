"""Writes rows to TensorBoard event files: numbers, histograms, tables as text, and curves and images as PNG.

The tags are grouped: `train/` for rows of training, `system/` for what the engine measures outside of the steps, and
the name of the evaluation or hook for its results. Those of an evaluation `train` are in the group `evaluation train`.
"""

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.config.schema import Config
from engine.config.text import flatten
from engine.data.stages import STAGES
from engine.metrics.results import Bins, Curve, Image, Table

type Row = Mapping[str, Any]

ROW_KEYS = ("step", "attempt", "batch", "time")  # keys of a row that are not metrics
MEASURED = (
    "examples_per_s", "step_time_s", "data_wait", "flop_per_s", "mfu", "hfu", "host_rss_gib", "device_peak_gib",
    "compile_s", "data_padding", "data_imbalance", *(f"data_{name}_s" for name in STAGES),
)  # fmt: skip
"""Names of the metrics that the engine measures outside of the step."""
_ALWAYS = ("optimizer.learning_rate", "train.total", "train.global_batch_size", "train.seed", "train.precision")
_NO_HYPERPARAMETERS = (
    "name", "tiny.", "log.", "cache.", "checkpoint.", "profile.", "evaluations.", "hooks.", "data.threads",
    "data.workers",
)  # fmt: skip
_TRAIN, _SYSTEM = "train", "system"  # groups of tags
_numbers = itertools.count()  # of the files of this process: two of one second would have one name
_FLUSH_S = 5.0  # between two flushes of the event file, each of which waits for the disk


def hyperparameters(config: Config) -> dict[str, bool | float | str]:
    """Returns the settings that TensorBoard lists: those that are not defaults, and a few that every run has."""
    before = dict(flatten(Config()))
    return {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in flatten(config)
        if is_hyperparameter(name, value == before.get(name))
    }


def is_hyperparameter(name: str, is_default: bool) -> bool:
    """Returns whether a setting belongs to the few that are listed beside the results of a run."""
    return name in _ALWAYS or not (is_default or name.startswith(_NO_HYPERPARAMETERS))


def tag_of(name: str, of_training: bool) -> str:
    """Returns the tag of a value of a row; `of_training` if the row is one of training."""
    if name in MEASURED:
        return f"{_SYSTEM}/{name}"
    if of_training:
        return f"{_TRAIN}/{name}"
    return f"evaluation {name}" if name.partition("/")[0] in (_TRAIN, _SYSTEM) else name


class EventFiles:
    """TensorBoard event files: every value of a row under its tag, at its step.

    Rows are collected until the next flush: writing many at once takes a tenth of the time per row. tensorboardX's
    EventsWriter is used directly, since its asynchronous queue loses the error of a full disk.

    Args:
        directory: folder of the files.
        hyperparameters: returns the settings of the run, for the page HPARAMS.
        tag: as `tag_of`.
    """

    def __init__(
        self,
        directory: Path,
        hyperparameters: Callable[[], Mapping[str, Any]] = dict,
        tag: Callable[[str, bool], str] = tag_of,
    ):
        self.directory, self._hyperparameters, self._tag = directory, hyperparameters, tag
        self._writer = None
        self._rows: list[Row] = []
        self._flush_at = time.monotonic() + _FLUSH_S  # not at once: the import in `flush` takes 0.1 s

    def add(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        if time.monotonic() > self._flush_at:
            self.flush()

    def flush(self) -> None:
        rows, self._rows = self._rows, []
        self._flush_at = time.monotonic() + _FLUSH_S
        if not rows:
            return
        from tensorboardX import summary as summaries
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        events: Any = event_pb2  # its names are made at import
        proto: Any = summary_pb2
        if self._writer is None:
            self.directory.mkdir(exist_ok=True)
            self._writer = EventsWriter(str(self.directory / "events"), f".{os.getpid()}.{next(_numbers)}")
            if settings := dict(self._hyperparameters()):
                # Without a description of the experiment, TensorBoard finds the metrics of all runs itself.
                _, start, _ = summaries.hparams(settings, {})
                self._writer.write_event(events.Event(summary=start, step=0, wall_time=time.time()))
        for row in rows:
            shown = {name: value for name, value in row.items() if name not in ROW_KEYS}
            found = {name: fields for name, value in shown.items() if (fields := _fields(value))}
            tags = {name: self._tag(name, "batch" in row) for name in found}
            values = [proto.Summary.Value(tag=tags[name], **fields) for name, fields in found.items()]
            summary = proto.Summary(value=values)
            wall_time = row.get("time", time.time())
            self._writer.write_event(events.Event(summary=summary, step=row["step"], wall_time=wall_time))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file without writing the collected rows."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _fields(value: Any) -> dict[str, Any]:
    """Returns the fields of a `Summary.Value` for a number or a result; {} for a value that is not shown."""
    from tensorboardX import summary
    from tensorboardX.proto import summary_pb2

    proto: Any = summary_pb2  # its names are made at import
    if isinstance(value, Bins):
        return {"histo": proto.HistogramProto(**_histogram(value))}
    if isinstance(value, Image | Curve):
        from engine.observe.drawing import draw, png_size
        from engine.observe.figure_files import png_bytes

        data = png_bytes(Image(draw(value)) if isinstance(value, Curve) else value)
        height, width = png_size(data)
        return {"image": proto.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)}
    if isinstance(value, Table):
        [shown] = summary.text("", _markdown(value)).value
        return {"metadata": shown.metadata, "tensor": shown.tensor}
    is_number = isinstance(value, int | float) or getattr(value, "ndim", None) == 0
    return {"simple_value": float(value)} if is_number and not isinstance(value, bool) else {}


def _markdown(table: Table) -> str:
    """Returns a table in Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *zip(*table.columns.values(), strict=True)]
    return "\n".join("| " + " | ".join(_cell(entry) for entry in line) + " |" for line in lines)


def _cell(entry: float | str) -> str:
    return str(entry).replace("|", "\\|").replace("\n", " ")


def _histogram(bins: Bins) -> dict[str, Any]:
    """Returns the fields of a HistogramProto; the sums take each value for the middle of its bin."""
    edges, counts = np.asarray(bins.edges, np.float64), np.asarray(bins.counts, np.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    sums = {"num": counts.sum(), "sum": counts @ middles, "sum_squares": counts @ middles**2}
    limits = {"bucket_limit": edges.tolist(), "bucket": [0.0, *counts.tolist()]}
    return {"min": edges[0], "max": edges[-1], **sums, **limits}
