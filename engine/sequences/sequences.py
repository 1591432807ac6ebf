"""A source of windows: consecutive frames of a drive, whose rows may continue the drive from step to step."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from engine.base.errors import DataError
from engine.cluster import output
from engine.cluster.identity import is_primary
from engine.config.schema import Target
from engine.config.target import resolve
from engine.data.context import call
from engine.data.ragged.padded import Padded
from engine.data.sampling.sampler import read_examples
from engine.data.shared_arrays import empty
from engine.data.source import SEPARATOR, BaseSource, Example, Examples, Source, source_name
from engine.data.source_adapter import indexed
from engine.data.stages import stage
from engine.data.text import is_text
from engine.sequences.frame_index import Column, index_hash, read_index
from engine.sequences.row_plan import RowPlan
from engine.sequences.row_sampler import EvaluationOrder, RowSampler
from engine.sequences.windows import Cut, cut

ADDED = "sequence"
"""Entry that `carry=True` adds to an example."""


class Sequences(BaseSource):
    """A source of windows of consecutive frames; the entries of a frame become arrays `[length, ...]`.

    A *drive* is the frames with one value of `group`, in order of time. A step in time above `max_gap` ends a window,
    and with `carry` the drive: what follows is a drive of its own.

    Without `carry`, windows are examples like any others: they are shuffled, mixed and evaluated in any order. Frames
    after the last whole window of a drive are left out.

    With `carry=True`, row b of the next batch continues the drive of row b of this batch, so that a model can keep
    state for each row. Each drive is read from its start to its end, once in each epoch. An entry is added:

    - `sequence/starts`, bool: True for the first window of a drive. Reset the state there: `engine.reset_at_starts`.
    - `sequence/valid`, bool `[length]`: False in the last window of a drive after its last frame, which is repeated
      there.

    A row without a drive at the end of an epoch is idle: its weight is 0. An evaluation runs each drive once from its
    start, whatever its batch size.

    A random `transform` is the same for all frames of a window, since it receives the whole window. With `carry`, its
    generator is the same for all windows of a drive in an epoch: draw the numbers that belong to the drive first.
    A subclass may define `transform(window, rng)` instead of passing it.
    """

    _given: Callable[..., Example] | None = None  # the transform that was passed

    def __init__(
        self,
        source: Source,
        group: Column = "drive",
        order: Column = "time",
        length: int = 8,
        stride: int | None = None,
        max_gap: float | None = None,
        *,
        carry: bool = False,
        transform: Callable[..., Example] | str | None = None,
        longest: int | None = None,
        cache: str | None = None,
    ):
        """Reads the groups and the times of all frames, and cuts them into windows.

        Args:
            source: source of frames, each a dict, with random access. Its frames have no random transform.
            group: the drive of each frame, an integer or text: the name of an entry such as "drive" or "scene/name", a
                function of a frame or its dotted path, an array `[frames]`, or an `.npy`, `.npz` or `.parquet` file.
            order: the time of each frame, a finite number, likewise. It increases within each drive.
            length: frames of a window.
            stride: frames from the begin of a window to that of the next one; None, and always with `carry`: `length`.
            max_gap: largest step in time within a window, in the unit of `order`; None: 1.5 times the median step of
                the drive.
            carry: whether row b of a batch continues row b of the batch before.
            transform: random transform of a window in training, or its dotted path: `transform(window, rng) -> window`.
                It may declare a parameter `context`, an `engine.Context`.
            longest: most frames of a drive, as a check of `group`; None for any number.
            cache: file for groups and times that are read from the examples. None: a dataset that `convoy data write`
                wrote has it beside its other files; other sources are read at each start.

        Raises:
            DataError: an argument is invalid, or the frames do not fit: the text names the dataset, group and example.
        """
        name = source_name(self)
        self.source = source = indexed(source, f"{name}: source")
        _check_source(source, name)
        how = Cut(length, length if stride is None else stride, max_gap, pads=carry, longest=longest)
        _check_arguments(how, name)
        if carry and not self.keeps("take"):
            raise DataError(
                f"{name} overrides __getitem__, but rows that continue drives are read with `take`, which it inherits. "
                "Override `take` instead, or pass `transform`."
            )
        self.continues_rows, self.reads_blocks = carry, source.has_take
        index = read_index(source, group, order, cache, name)
        self.windows, self.names = cut(index, how, source_name(source), name), index.names
        """The windows, as frames of `source`, and the name of each group."""
        self._drives = len(self.windows.sizes)  # without a limit
        self._kind = f"windows of {length} frames, {how.stride} apart{', in rows that continue' * carry}"
        if transform is not None:
            self._set_transform(transform, name)
        self._bind()
        if (unused := self.windows.unused) and is_primary():
            output.show(
                f"{name}: {unused:,} of {len(source):,} frames of {source_name(source)} are in no window of {length}."
            )

    def _bind(self) -> None:
        """Sets the optional members of a source that this one has."""
        if self.continues_rows:
            self.batch_sampler, self.evaluation_order = self._batch_sampler, self._evaluation_order
            self.sampler, self.stored_order = self._no_sampler, self._stored_order
        if self._given is not None:
            self.transform = self._transform

    def _set_transform(self, transform: Callable[..., Example] | str, name: str) -> None:
        if self.defines("transform"):
            raise DataError(f"{name}: the class defines `transform`, and another one is passed. Remove one of them.")
        if isinstance(transform, str):
            transform = resolve(Target(target=transform), f"{name}: transform")
        if not callable(transform):
            raise DataError(f"{name}: transform = {transform!r}: allowed is a function of (window, rng), or its path.")
        self._given = transform

    def _transform(self, window: Example, rng: np.random.Generator, context: Any = None) -> Example:
        assert self._given is not None
        return call(self._given, window, rng, context=context)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> Example:
        return jax.tree.map(lambda rows: rows[0], self.take(np.array([index])))

    def take(self, indices: np.ndarray) -> Examples:
        """Returns the windows at `indices` `[batch]` as arrays `[batch, length, ...]`; reads each frame once."""
        frames, valid = self.windows.rows(indices)
        unique, places = np.unique(frames, return_inverse=True)
        found = read_examples(self.source, unique)
        if not isinstance(found, Mapping):
            raise DataError(
                f"{source_name(self)}: an example of {source_name(self.source)} is a {type(found).__name__}. A frame "
                "is a dict of arrays."
            )
        places = places.reshape(frames.shape)
        with stage("collate"):
            windows = dict(jax.tree.map(lambda array: _placed(array, places), found))
        if not self.continues_rows:
            return windows
        if ADDED in windows:
            raise DataError(
                f"{source_name(self)}: the examples of {source_name(self.source)} have an entry {ADDED!r}, which the "
                "engine adds itself. Rename it."
            )
        return {**windows, ADDED: {"starts": self.windows.locate(indices)[1] == 0, "valid": valid}}

    def group_of(self, index: int) -> str:
        """Returns the name of the group of a window."""
        return self.names[self.windows.groups[self.windows.locate(np.array([index]))[0][0]]]

    def batch_text(self, rows: int) -> str:
        """Returns how many steps an epoch takes, and the share of idle rows; "" without `carry`."""
        if not self.continues_rows:
            return ""
        plan = RowPlan(self.windows.sizes, rows, seed=0, shuffle=False)
        return (
            f"one pass through {len(self.windows.sizes):,} drives takes {plan.steps:,} steps, in which "
            f"{plan.idle:.1%} of the rows are idle."
        )

    def fingerprint(self) -> str:
        windows = self.windows
        content = index_hash(windows.frames, windows.begins, windows.ends)
        return f"{self.source.fingerprint()}{SEPARATOR}{self._kind}: {len(self)} from {content}"

    def limited(self, count: int) -> "Sequences":
        """Returns a source of the first `count` windows, in the order of the drives.

        With `carry`, rows of a batch for which no drive is left are idle.
        """
        part = copy.copy(self)
        part.windows = self.windows.limited(count)
        part._bind()  # its own methods
        return part

    def record_name(self, index: int) -> str:
        """Returns the file of the first frame of a window and the record in it; "" if it is not known."""
        return self.source.record_name(int(self.windows.rows(np.array([index]))[0][0, 0]))

    def _batch_sampler(self, seed: int, shuffle: bool, batch_size: int) -> RowSampler:
        """Returns the sampler of a training run with batches of so many rows."""
        if self._drives < batch_size:
            raise DataError(
                f"{source_name(self)}: {batch_size} rows, but {source_name(self.source)} has {self._drives} drives, so "
                f"that {batch_size - self._drives} rows would always be idle. Set train.global_batch_size to "
                f"{self._drives} or less."
            )
        return RowSampler(self, RowPlan(self.windows.sizes, batch_size, seed, shuffle))

    def _evaluation_order(self, batch_size: int) -> EvaluationOrder:
        return EvaluationOrder(self, batch_size)

    def _stored_order(self, batch_size: int) -> None:
        """Checks that windows in stored order continue each other. Raises DataError if they do not."""
        if batch_size > 1:
            raise DataError(
                f"{source_name(self)}: predictions are in stored order, in which the rows of a batch of {batch_size} "
                "do not continue drives. Use a batch size of 1."
            )

    def _no_sampler(self, seed: int, shuffle: bool) -> Any:
        raise DataError(
            f"{source_name(self)} with carry=True cannot be a part of a mixture, in which rows do not continue. Mix "
            "windows without carry."
        )


def _placed(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns the rows of an array at `places` `[batch, length]`; in a worker process in shared memory."""
    if is_text(array):
        return array[places]
    return np.take(array, places, axis=0, out=empty((*places.shape, *array.shape[1:]), array.dtype), mode="clip")


def _check_arguments(how: Cut, owner: str) -> None:
    """Raises DataError if an argument is invalid."""
    for argument, value in (("length", how.length), ("stride", how.stride), ("longest", how.longest)):
        if (value is not None or argument != "longest") and not _is_count(value):
            raise DataError(f"{owner}: {argument} = {value!r}: allowed is a whole number from 1.")
    if how.max_gap is not None and not (isinstance(how.max_gap, int | float | np.number) and how.max_gap > 0):
        raise DataError(f"{owner}: max_gap = {how.max_gap!r}: allowed is a number above 0, in the unit of `order`.")
    if how.pads and how.stride != how.length:
        raise DataError(
            f"{owner}: stride = {how.stride} with carry=True and length = {how.length}: the windows of a drive must "
            "follow each other, or its frames pass through the state twice or not at all. Leave stride out."
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_source(source: BaseSource, owner: str) -> None:
    """Raises DataError if a source has a random transform or an order of its own."""
    advice = f"Pass `transform` to {owner}, which gets whole windows"
    if source.has_transform:
        raise DataError(
            f"{owner}: {source_name(source)} has a random transform, which would differ from frame to frame. {advice}."
        )
    if source.has_sampler and not (isinstance(source, Padded) and len(source.shapes) == 1):
        raise DataError(
            f"{owner}: {source_name(source)} has its own order, which windows do not follow. Make windows of its "
            f"source first; ragged frames may be in engine.Padded with one length."
        )
