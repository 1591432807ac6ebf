"""The batches of a training run: opens feeds at any step, and reads a batch once more."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from engine.cluster import group
from engine.config.schema import Data
from engine.data.batch import Batch
from engine.data.feed import Batching, FeedCallbacks, TrainFeed
from engine.data.source import BaseSource, inner_sources
from engine.run.directory import RunDirectory

if TYPE_CHECKING:
    from engine.data.bad_examples import BadExampleCounter
    from engine.data.file_states import FileWatch
    from engine.data.ragged.report import RaggedReport
    from engine.data.sampling.drawn import DrawnShares
    from engine.run.ledger import Ledger


class TrainInputs(contextlib.ExitStack):
    """Opens the feeds of an attempt, and the files that list its examples. A context manager.

    Args:
        source: the training examples.
        data: config section `data`.
        batching: how the examples become batches, as many as its `total_steps`.
        steps_per_dispatch: `train.steps_per_dispatch`.
        directory: run directory.
        say: called with sentences for the user.
        logs_examples: whether to list the examples of each step (`log.examples`).
    """

    def __init__(
        self,
        source: BaseSource,
        data: Data,
        batching: Batching,
        steps_per_dispatch: int,
        directory: RunDirectory,
        say: Callable[[str], None],
        logs_examples: bool = False,
    ):
        super().__init__()
        self._source, self._data, self._batching = source, data, batching
        self._steps = range(batching.total_steps or 0)
        self._steps_per_dispatch, self._directory, self._say = steps_per_dispatch, directory, say
        self._logs_examples = logs_examples
        self.watched = [source]
        """Sources of the run, whose files are watched while it trains."""
        self._watch: FileWatch | None = None
        self._ledger: Ledger | None = None
        self._bad_examples: BadExampleCounter | None = None
        self._position: Mapping[str, Any] = {}  # position in the data at which the latest feed begins
        self._feed: TrainFeed | None = None  # the latest one
        self._drawn = self._drawn_shares() if source.has_sampler else None

    def __enter__(self) -> "TrainInputs":
        if any(map(_notices_changes, self.watched)):
            from engine.data.file_states import FileWatch

            self._watch = self.enter_context(FileWatch(self.watched, self._say, group.index(), group.count()))
        who = (group.index(), group.count(), self._directory.attempt)
        if self._logs_examples:
            from engine.run.ledger import Ledger

            self._ledger = self.enter_context(contextlib.closing(Ledger(self._directory.examples, *who)))
        if self._data.on_error == "skip":
            from engine.data.bad_examples import BadExampleCounter
            from engine.run.jsonl import JsonLinesWriter

            lines = self.enter_context(contextlib.closing(JsonLinesWriter(self._directory.bad_examples, *who)))
            self._bad_examples = BadExampleCounter(lines.add, self._say)
        return self

    def check(self) -> None:
        """Reports files that have changed. Raises FileChangedError if `data.on_change` is error."""
        if self._watch is not None:
            self._watch.check()

    def open(self, step: int, position: Mapping[str, Any]) -> contextlib.closing[TrainFeed]:
        """Returns the feed of the batches from number `step` on; the caller closes it.

        Args:
            step: number of the first batch.
            position: position in the data of the checkpoint from which the run resumes; {} for a new run.
        """
        self._position = position
        self._feed = TrainFeed(
            self._source,
            self._data,
            self._batching,
            self._steps[step:],
            steps_per_dispatch=self._steps_per_dispatch,
            callbacks=FeedCallbacks(self._ledger and self._ledger.write, self._bad_examples, self._say),
            saved=position,
        )
        return contextlib.closing(self._feed)

    def read_again(self, number: int) -> Batch:
        """Returns a batch of the run by its number, once more; it is not counted or logged again."""
        bad = None if self._bad_examples is None else self._bad_examples.silent()
        saved = None if self._feed is None else self._feed.saved_before(number)
        feed = TrainFeed(
            self._source,
            dataclasses.replace(self._data, workers=0, threads=1, prefetch=1),
            self._batching,
            range(number, number + 1),
            callbacks=FeedCallbacks(bad=bad),
            saved=saved or self._position,
        )
        with contextlib.closing(feed):
            return feed.next(1)[0]

    def drawn_shares(self, first: int, last: int) -> dict[str, float]:
        """Returns the shares of sources and tags that the steps of a row have drawn; {} where none are known."""
        return {} if self._drawn is None else self._drawn.metrics(first, last)

    def _drawn_shares(self) -> "DrawnShares":
        """Returns the shares of a source with an order of its own, which may have tags."""
        from engine.data.sampling.drawn import DrawnShares

        batch_size, seed = self._batching.batch_size, self._batching.seed
        return DrawnShares(self._source, batch_size=batch_size, seed=seed, shuffle=self._data.shuffle)

    @functools.cached_property
    def ragged(self) -> "RaggedReport | None":
        """The padding and the costs of ragged examples; None for a source without them."""
        if not self._source.has_sampler:
            return None
        from engine.data.ragged.report import report

        rows, seed = self._batching.batch_size, self._batching.seed
        ranks = rows // self._batching.sharding.shard_shape((rows,))[0]
        return report(self._source, batch_size=rows, seed=seed, shuffle=self._data.shuffle, ranks=ranks)


def _notices_changes(source: BaseSource) -> bool:
    """Returns whether a source, or one within it, knows the states of its files."""
    return source.file_states is not None or any(map(_notices_changes, inner_sources(source)))
