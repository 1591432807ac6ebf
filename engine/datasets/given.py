"""The dataset that a caller gives: a source, a stream, or a section of a config that names one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.base.errors import ConfigError
from engine.config.draft import defaults
from engine.config.override import apply
from engine.config.schema import Config, Data
from engine.config.validation import validate
from engine.data.adapt import Readable, as_source, build_source
from engine.data.examples import evenly_spaced
from engine.data.source import BaseSource, inner_sources
from engine.data.streams.source import StreamSource

POLICIES = ("stop", "skip")
_ANY_TASK = "engine.Task"  # a config needs one; it is not built


type Given = Readable | Mapping[str, Any] | Data
"""A source, a stream, a section of a config, or the fields of one."""


def given_source(data: Given, on_error: str | None = None) -> tuple[BaseSource, str]:
    """Returns the source of a dataset, and the policy about bad examples.

    Args:
        data: a source, a stream, a section of a config, or its fields. A stream without `counts()` is read once, to
            count it.
        on_error: None takes that of the section, or "stop" for an object.

    Raises:
        ConfigError, DataError: the section is invalid, this is not a source, or the policy is unknown.
    """
    if on_error not in (None, *POLICIES):
        raise ConfigError(f"on_error = {on_error!r}: allowed are {' and '.join(POLICIES)}.")
    if isinstance(data, Mapping):
        data = section_config(data).data
    if isinstance(data, Data):
        return build_source(data, "data", finite=True), on_error or data.on_error
    return as_source(data, "data", finite=True), on_error or "stop"


def is_stream_source(source: BaseSource) -> bool:
    """Returns whether a source is read in order, so that each of several processes would read all of it."""
    return isinstance(source, StreamSource)


def sample_indices(source: BaseSource, most: int) -> list[int]:
    """Returns indices of at most `most` examples, evenly spaced; the first ones of a stream."""
    return list(range(min(len(source), most))) if is_stream_source(source) else evenly_spaced(len(source), most)


def data_section(overrides: Sequence[str]) -> Data:
    """Returns the section `data` that overrides such as "data.target=package.module.Name" describe.

    Raises:
        ConfigError: a field does not exist, or there is no target.
    """
    draft = defaults()
    apply(draft, overrides, "--")
    return _validated(draft).data


def section_config(data: Mapping[str, Any] | Data) -> Config:
    """Returns a config whose section `data` is this one. Raises ConfigError if it is invalid."""
    draft = defaults()
    if isinstance(data, Mapping):
        draft.data = dict(data)
        return _validated(draft)
    draft.data.target = _ANY_TASK
    return replace(_validated(draft), data=data)


def with_inner(source: BaseSource) -> Iterator[BaseSource]:
    """Yields a source and the sources that it reads, such as those of a mixture."""
    yield source
    for found in inner_sources(source):
        yield from with_inner(found)


def _validated(draft: Any) -> Config:
    draft.task.target = _ANY_TASK
    return validate(draft)
