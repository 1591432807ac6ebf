"""The border of the package: makes a source of what a user gives, with every optional member that the engine reads.

Behind `as_source` all sources are a `BaseSource` and all streams a `BaseStream`.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from engine.base.duration import UNKNOWN_LENGTH
from engine.base.errors import ConvoyError, DataError
from engine.base.user_errors import describe
from engine.config.schema import SHUFFLE_WINDOW, Data, Train
from engine.config.setting import AUTO
from engine.config.target import build
from engine.data.examples import Example
from engine.data.source import BaseSource, Source, inner_sources, limited, source_name
from engine.data.source_adapter import check_source, indexed
from engine.data.streams.stream import BaseStream, IterableStream, Stream, is_iterable_only, is_stream

if TYPE_CHECKING:
    from engine.data.streams.source import StreamSource

type Readable = Source | Stream | Iterable[Example] | Callable[[], Iterator[Example]]
"""What `as_source` accepts; the function is a generator function."""


class AdaptedStream(BaseStream):
    """A stream that reads an object with `shards` and `open`, and has those optional members that it has."""

    def __init__(self, given: Stream):
        self.given, self.shards, self.open = given, given.shards, given.open
        for name in ("decode", "counts", "transform", "fingerprint"):
            if (found := getattr(given, name, None)) is not None:
                setattr(self, name, found)


def as_source(
    found: object,
    where: str,
    *,
    window: int = SHUFFLE_WINDOW,
    finite: bool = False,
    again: Callable[[], Any] | None = None,
    name: str = "",
) -> BaseSource:
    """Returns a source: the object itself, or one that reads a stream, an iterable or a generator function.

    Args:
        found: the object.
        where: its name in error texts.
        window: examples of a stream that are shuffled together.
        finite: whether the length must be known, so that it is counted if necessary.
        again: makes the same object once more, for iterators, which can be read only once.
        name: name of the iterator that `again` makes.

    Raises:
        DataError: the object is none of these, or cannot be read.
    """
    stream, found_name = _stream(found, where, again)
    if stream is None:
        source = indexed(found, where)
        return counted(source) if finite else source
    shards = stream.shards
    if isinstance(shards, bool) or not isinstance(shards, int) or shards < 1:
        raise DataError(f"{where}: shards = {shards!r}: allowed is a whole number from 1.")
    from engine.data.streams.source import StreamSource

    source = StreamSource(stream, window, name if again and name else found_name, _counts(stream, where))
    return counted(source) if finite else source


def counted(source: BaseSource) -> BaseSource:
    """Returns a source with a known length; reads its streams once if necessary.

    Raises:
        DataError: the source wraps a stream of unknown length, and has no method `counted()`.
    """
    if len(source) < UNKNOWN_LENGTH:
        return source
    if (found := source.counted()) is None:
        raise DataError(
            f"{source_name(source)}: its length is not known, since it reads a stream without counts(), and a reading "
            "of all examples would not end. Set data.limit, or add counts() to the stream."
        )
    return found


def _counts(stream: BaseStream, where: str) -> Sequence[int] | None:
    """Returns the number of items of each shard; None if it is unknown. Raises DataError if `counts` fails."""
    try:
        found = stream.counts()
        return None if found is None else [int(count) for count in found]
    except ConvoyError:
        raise
    except Exception as error:
        raise DataError(f"{where}: its counts() failed: {describe(error)}") from error


def limit_source(found: object, section: Data, name: str, finite: bool = False, where: str = "") -> BaseSource:
    """Returns an object as a source, with the limit and the shuffle window of its config section.

    Args:
        found: a source, a stream, an iterable or a generator function.
        section: the section.
        name: name of the object in error texts.
        finite: as for `build_source`.
        where: name of the section if it has built the object, so that it can be built again.

    Raises:
        DataError: it is neither a source nor a stream.
    """
    again = functools.partial(build, section, where) if where else None
    window, limit = section.shuffle_window, section.limit
    source = as_source(
        found, name, window=window, finite=finite and limit is None, again=again, name=section.target if where else ""
    )
    if section.on_change == "warn":
        from engine.data.file_states import states_of

        for states in states_of([source]):
            states.tolerant = True
    return limited(source, limit)


def check_readable(found: object, where: str) -> None:
    """Raises DataError for an object that `as_source` does not accept; reads nothing."""
    if _stream(found, where)[0] is None:
        check_source(found, where)


def _stream(found: object, where: str, again: Callable[[], Any] | None = None) -> tuple[BaseStream | None, str]:
    """Returns an object as a stream, and its name; None if it is not read as a stream.

    Raises:
        DataError: an iterator without a way to make it again.
    """
    name = f"{type(found).__module__}.{type(found).__qualname__}"
    if is_stream(found):
        return found if isinstance(found, BaseStream) else AdaptedStream(found), name
    if inspect.isgeneratorfunction(found):
        return IterableStream(found, found), f"{found.__module__}.{found.__qualname__}"
    if not is_iterable_only(found):
        return None, name
    if not isinstance(found, Iterator):
        return IterableStream(functools.partial(iter, found), found), name  # pyright: ignore[reportCallIssue, reportArgumentType]
    if again is None:
        raise DataError(
            f"{where}: found a {type(found).__name__}, which can be read only once, but a resume reads it again. Pass "
            "the generator function, or an object whose __iter__ returns a new iterator each time."
        )
    return IterableStream(again, None), name


def build_source(section: Data, where: str, *, finite: bool = False) -> BaseSource:
    """Returns the source of a config section; `data.limit` is applied.

    Args:
        section: the section.
        where: its name in the config.
        finite: whether the length must be known, so that a stream is counted if necessary.

    Raises:
        DataError: it is neither a source nor a stream.
    """
    return limit_source(build(section, where), section, f"{where}.target: {section.target}", finite, where)


def descriptions(sources: Mapping[str, BaseSource], shuffle: bool = True, rows: int = 0) -> list[str]:
    """Returns a sentence for each stream, also within other sources, and one about data that is not shuffled.

    Args:
        sources: the sources by their place in the config.
        shuffle: `data.shuffle`.
        rows: rows of a training batch, for sources whose rows are not examples; 0 if it is not known.
    """
    found = [f"data: {text}" for text in [sources["data"].batch_text(rows)] if text] if rows else []
    found += [
        f"{where}: {stream.description(training=where == 'data', mixed=stream is not source, shuffle=shuffle)}"
        for where, source in sources.items()
        for stream in _streams_in(source)
    ]
    return found if shuffle else [*found, "data: the examples are read in order (data.shuffle=False)"]


def _streams_in(source: BaseSource) -> "Iterator[StreamSource]":
    """Yields the streams that a source reads, such as those of nested mixtures."""
    if source.reads_stream:
        yield cast("StreamSource", source)
        return
    for inner in inner_sources(source):
        yield from _streams_in(inner)


def follows_run(source: BaseSource) -> bool:
    """Returns whether a source draws by weights at times that depend on the length of the run."""
    return any(getattr(times, "follows_run", False) for times in _times(source))


def for_run(source: BaseSource, train: Train) -> BaseSource:
    """Returns a source for a run: with the length of the run, if its times depend on that and its batch is known."""
    if not follows_run(source) or AUTO in (train.global_batch_size, train.accumulate):
        return source
    steps = train.total.steps(train.global_batch_size, len(source))
    return source.with_run(steps * train.global_batch_size)


def _times(source: BaseSource) -> Iterator[Any]:
    """Yields the times of a source and of the sources that it wraps; not those of the parts of a mixture."""
    while isinstance(source, BaseSource):
        if source.times is not None:
            yield source.times
        source = source.source
