"""JSON text of a run's values: writes it valid for every JSON reader, and reads it whatever it has become.

JSON has no NaN and no infinity, so they are written as the text "NaN", "Infinity" and "-Infinity". The line stays
valid, and `float(text)` returns the number. A null would not distinguish them. Everything that reads a stored file
states its shape here, so that damage is found in one place.
"""

import contextlib
import errno
import json
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple

from engine.base.errors import RunError
from engine.base.files import open_regular, read_text
from engine.base.types import Json


def now() -> str:
    """Returns the time as ISO text in UTC: `2025-01-31T12:00:00.123+00:00`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def dumps(value: object, *, indent: int | None = None) -> str:
    """Returns `value` as JSON text.

    Args:
        value: mappings, lists, tuples, text, numbers, None, and arrays (of NumPy or JAX; they become numbers and
            nested lists). A float32 keeps its exact value.
        indent: spaces per level, None for one line.

    Raises:
        RunError: it contains a value of another type; the text names its path.
    """
    return json.dumps(_plain(value, ""), allow_nan=False, indent=indent)


def _plain(value: object, where: str) -> Json:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if (to_list := getattr(value, "tolist", None)) is not None:
        return _plain(to_list(), where)
    raise RunError(
        f"{where or 'value'}: a {type(value).__name__} cannot be written as JSON. "
        "Allowed: numbers, arrays, text, None, and lists and dicts of them."
    )


LONGEST_LINE = 64 << 20  # bytes
_DEEPEST = 64  # levels of lists and objects; no writer of the engine nests a tenth of them
_LARGEST = 2**63  # of whole numbers
_SPECIAL = ("NaN", "Infinity", "-Infinity")  # as `dumps` writes them

type Shape = Any
"""What a stored value must be, written as the value would look:

    int, float, str, bool, None   a scalar; a float may be a whole number, or the text of a number that is not finite
    object                        any JSON
    frozenset({"a", "b"})         one of these texts
    int | None                    one of these scalars
    [shape]                       a list of any length
    (shape, shape)                a list of this length
    {"a": shape, "b?": shape}     an object with the members `a` and perhaps `b`; others are dropped
    {str: shape}                  an object with any members; may be combined with named ones
"""


class Damaged(ValueError):
    """A text is not what its writer writes; a phrase says why: "step is missing"."""


def parse(text: str, shape: Shape = object, *, constants: bool = False) -> Any:
    """Returns the value of a JSON text that another program may have written, cut or changed.

    Args:
        text: the text.
        shape: what it must hold.
        constants: allow NaN and infinities as numbers, which Python writes although JSON has none.

    Raises:
        Damaged: it is no JSON, is nested too deeply, has a number that is too large, or has another shape.
    """
    try:
        constant = float if constants else _refuse
        return check(json.loads(text, parse_float=_finite, parse_constant=constant), shape)
    except Damaged:
        raise
    except RecursionError as error:
        raise Damaged("it is nested too deeply") from error
    except ValueError as error:
        raise Damaged("a number has too many digits" if "digits" in str(error) else str(error)) from error


def read(path: Path, shape: Shape = object, *, constants: bool = False) -> Any:
    """Returns the value of a JSON file. Raises OSError if it cannot be read, else as `parse`."""
    with _no_missing_link(path):
        text = read_text(path)
    return parse(text, shape, constants=constants)


@contextlib.contextmanager
def _no_missing_link(path: Path) -> Iterator[None]:
    """Distinguishes a broken link from a file that was never written."""
    try:
        yield
    except FileNotFoundError as error:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link to nothing", str(path)) from error
        raise


def reason(error: OSError | ValueError) -> str:
    """Returns why a file cannot be used, without its path: what `read` has raised."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


class Lines(NamedTuple):
    """The content of a file of JSON lines."""

    values: list[Any]
    damaged: dict[int, str]
    """Number of each line that was skipped -> what is wrong with it."""

    def note(self, path: object) -> str:
        """Returns how many lines were skipped, as a sentence; "" if none."""
        if not self.damaged:
            return ""
        first, why = next(iter(self.damaged.items()))
        lines = f"{len(self.damaged):,} damaged line{'s' * (len(self.damaged) > 1)}"
        return f"{path}: skipped {lines}, {'the first is' * (len(self.damaged) > 1) or 'which is'} line {first}: {why}."


def read_lines(path: Path, shape: Shape, problem: Callable[[Any], str] = lambda value: "") -> Lines:
    """Returns the lines of a file that are as they must be, and which ones were skipped.

    A writer that was killed leaves an incomplete line, and a disk that failed may have put anything into the file.

    Args:
        path: the file.
        shape: what each line must hold.
        problem: returns what else is wrong with a value, or "".

    Raises:
        OSError: the file cannot be read.
    """
    found = Lines([], {})
    with _no_missing_link(path), open(path, "rb", opener=open_regular) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            if not line.strip():
                continue
            try:
                value = parse(line.decode(), shape)
                if why := problem(value):
                    raise Damaged(why)
                found.values.append(value)
            except ValueError as error:  # also of `decode`
                found.damaged[number] = "it is not UTF-8 text" if isinstance(error, UnicodeError) else str(error)
    return found


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise Damaged(f"{text[:20]} is no number that a float can hold")
    return number


def _refuse(text: str) -> float:
    raise Damaged(f"{text} is no number of JSON")


def check(value: Any, shape: Shape, where: str = "", depth: int = 0) -> Any:
    """Returns a parsed value without the members that its shape does not name. Raises Damaged as `parse`.

    Args:
        value: JSON.
        shape: what it must hold.
        where: path of the value, for the error.
        depth: number of lists and objects around it.
    """
    if depth > _DEEPEST:
        raise Damaged("it is nested too deeply")
    if isinstance(shape, dict):
        return _object(value, shape, where, depth)
    if isinstance(shape, list | tuple):
        if not isinstance(value, list) or (isinstance(shape, tuple) and len(value) != len(shape)):
            raise _other(value, where, "a list" if isinstance(shape, list) else f"a list of {len(shape)}")
        shapes = shape * len(value) if isinstance(shape, list) else shape
        if shape == [int] and all(type(item) is int and -_LARGEST < item < _LARGEST for item in value):
            return value  # the ledger of examples has millions of them
        if shape == [str] and all(type(item) is str for item in value):
            return value  # and so have the names of a dataset
        items = enumerate(zip(value, shapes, strict=True))
        return [check(item, each, f"{where}[{i}]", depth + 1) for i, (item, each) in items]
    if isinstance(shape, frozenset):
        if not isinstance(value, str) or value not in shape:
            raise _other(value, where, " or ".join(sorted(shape)))
        return value
    if shape is object and isinstance(value, dict | list):
        return check(value, {str: object} if isinstance(value, dict) else [object], where, depth)
    return _scalar(value, shape, where)


def _scalar(value: Any, shape: Shape, where: str) -> Any:
    kinds = shape.__args__ if isinstance(shape, UnionType) else _ANY if shape is object else (shape,)
    if type(value) is int and -_LARGEST < value < _LARGEST and (int in kinds or float in kinds):
        return value
    if (value is None and (None in kinds or NoneType in kinds)) or (type(value) in kinds and type(value) is not int):
        return value
    if shape is not object and float in kinds and value in _SPECIAL:
        return float(value)
    raise _other(value, where, " or ".join(_NAMES[kind] for kind in kinds))


_ANY: tuple[Shape, ...] = (float, str, bool, None)
_NAMES = {
    int: "a whole number of 64 bits",
    float: "a number",
    str: "text",
    bool: "true or false",
    None: "null",
    NoneType: "null",
}


def _object(value: Any, shape: dict, where: str, depth: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _other(value, where, "an object")
    found, below = {}, f"{where}." if where else ""
    for name, item in value.items():
        each = shape.get(name, shape.get(f"{name}?", shape.get(str, found)))
        if each is not found:
            found[name] = check(item, each, f"{below}{name[:40]}", depth + 1)
    for name in shape:
        if isinstance(name, str) and not name.endswith("?") and name not in value:
            raise Damaged(f"{below}{name} is missing")
    return found


def _other(value: object, where: str, expected: str) -> Damaged:
    if isinstance(value, dict | list):
        text = "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    else:
        text = f"{json.dumps(value):.40}" if not isinstance(value, int) or abs(value) < 10**30 else "a larger number"
    return Damaged(f"{where[:80] or 'it'}: found {text}, expected {expected}")
