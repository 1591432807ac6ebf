"""Errors of an author's function that gets examples, as one sentence that says what it got."""

import contextlib
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from engine.base.errors import ConvoyError, TaskError, did_you_mean
from engine.base.types import PyTree
from engine.base.user_errors import describe, location
from engine.data.text import is_text

_LISTED = 40  # entries of an example in an error text


@contextlib.contextmanager
def errors_described(where: str, **given: PyTree) -> Iterator[None]:
    """Turns an error of an author's function into a TaskError with its line and with what the function got.

    Args:
        where: the function, or the config field that names it.
        **given: name of an argument -> its value.
    """
    try:
        yield
    except ConvoyError:
        raise
    except Exception as error:
        got = "; ".join(f"{name}: {_listed(value)}" for name, value in given.items())
        if isinstance(error, KeyError) and error.args:
            key, line = error.args[0], location(error)
            names = [str(name) for value in given.values() if isinstance(value, Mapping) for name in value]
            text = f"{where}: there is no {key!r}{f' ({line})' if line else ''}.{did_you_mean(str(key), names)}"
        else:
            text = f"{where} failed: {describe(error)}"
        raise TaskError(f"{text} It got {got}.") from error


def _listed(tree: PyTree) -> str:
    found = entries(tree)
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return f"{', '.join(found[:_LISTED])}{more}" or "nothing"


def entries(tree: PyTree) -> list[str]:
    """Returns `name dtype[shape]`, or `name text`, for each entry of an example or of a batch."""
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in jax.tree.leaves_with_path(tree)]
    return [f"{name} {leaf_text(leaf)}".strip() for name, leaf in named]


def leaf_text(leaf: object) -> str:
    """Returns `dtype[shape]` of an array or a number, or what another leaf is."""
    if leaf is None or is_text(leaf):
        return "nothing" if leaf is None else "text"
    array: PyTree = leaf if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else np.asarray(leaf)
    return f"{jnp.dtype(array.dtype).name}{list(array.shape)}"
