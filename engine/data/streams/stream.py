"""The protocol of streams, and the adapter that reads any iterable as a stream of one shard."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeGuard

from engine.base.types import Json


class Stream(Protocol):
    """Examples that can only be read in order, divided into a fixed number of shards.

    The shards do not depend on the number of processes; each process reads the shards of its rows. A stream is pickled
    to worker processes, and several threads may read different shards at once. One attribute and one method are
    required:

        shards: int                    number of shards, for the whole life of a run
        open(shard, position) -> iterator of (item, position)
                                       reads a shard from a position on, and yields each item with the position after
                                       it. A position is a small JSON value, such as an offset in a file; None is the
                                       beginning. Every reading must give the same items

    More methods are optional:

        decode(item) -> example        makes an example of an item, in parallel and only for the rows of a process. An
                                       error here follows data.on_error; an error of `open` always ends the run.
                                       Default: the item is the example
        counts() -> integers           number of items of each shard. With it, every epoch has each example once.
                                       Without it, the length is unknown, there are no epochs, and a shard that ends
                                       starts again by itself. An evaluation reads the stream once to count it
        transform, fingerprint         as for `engine.Source`; by default, the first examples identify the content
    """

    shards: int

    def open(self, shard: int, position: Json, /) -> Iterator[tuple[Any, Json]]: ...


class BaseStream:
    """A stream with every optional member, as the engine reads it: those of `Stream`.

    The streams of the engine are subclasses. `adapt.as_source` gives these defaults to other objects.
    """

    shards: int
    transform: Any = None
    file_states: Any = None

    def open(self, shard: int, position: Json, /) -> Iterator[tuple[Any, Json]]:
        raise NotImplementedError(f"{type(self).__qualname__} defines no open.")

    def decode(self, item: Any, /) -> Any:
        return item

    def counts(self) -> Any:
        return None

    def fingerprint(self) -> str | None:
        return None


class IterableStream(BaseStream):
    """A stream of one shard that iterates over an object; a position is the number of examples before it.

    Args:
        restart: returns a new iterator from the first example on.
        of: the iterable, or the function that makes it, whose length and methods the stream takes over.
    """

    shards = 1

    def __init__(self, restart: Callable[[], Iterable[Any]], of: object):
        self._restart, self._length = restart, None
        for name in ("transform", "fingerprint"):
            if hasattr(of, name):
                setattr(self, name, getattr(of, name))
        if hasattr(of, "__len__"):
            with contextlib.suppress(TypeError):  # such as a torch.utils.data.DataLoader of unknown length
                self._length = len(of)  # pyright: ignore[reportArgumentType]

    def open(self, shard: int, position: Json) -> Iterator[tuple[Any, Json]]:
        """Yields (example, number of examples up to it); skips the examples before the position by reading them."""
        start = position if isinstance(position, int) else 0
        for number, example in enumerate(self._restart(), 1):
            if number > start:
                yield example, number

    def counts(self) -> list[int] | None:
        return None if self._length is None else [self._length]


def is_stream(found: object) -> TypeGuard[Stream]:
    """Returns whether an object has the required members of a stream."""
    return not isinstance(found, type) and callable(getattr(found, "open", None)) and hasattr(found, "shards")


def is_iterable_only(found: object) -> bool:
    """Returns whether an object can be iterated but not indexed, so that it is read as a stream."""
    if isinstance(found, type | Mapping | str | bytes) or hasattr(found, "__getitem__"):
        return False
    return hasattr(found, "__iter__")
