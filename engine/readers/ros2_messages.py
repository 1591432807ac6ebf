"""Decodes messages of ROS 2 in MCAP logs, with their definitions in the log (extra `mcap`)."""

from engine.base.errors import DataError
from engine.readers.message_arrays import TEXT, Field
from engine.readers.schema_messages import SchemaMessages

ENCODINGS = ("cdr", "ros2msg")
"""Encoding of the messages and of their schema."""
DTYPES = {name: name for kind in ("int", "uint") for bits in (8, 16, 32, 64) for name in (f"{kind}{bits}",)}
DTYPES |= {"float32": "float32", "float64": "float64", "bool": "bool", "byte": "uint8", "char": "int8", "string": TEXT}
TIME = "int32 sec\nuint32 nanosec"
BUILTIN = {"builtin_interfaces/Time": TIME, "builtin_interfaces/Duration": TIME}  # logs may leave them out

_SEPARATOR = "=" * 80


class Ros2Messages(SchemaMessages):
    """Function from the bytes of a message of ROS 2 to an example: see `engine.readers.message_arrays.to_example`.

    Args:
        name: name of the type, such as "sensor_msgs/msg/Imu".
        text: the definition of the type and those of the types in it, as in the schemas of MCAP logs.

    Raises:
        DataError: the definition has a type that cannot be decoded, or mcap-ros2-support is not installed.
    """

    kind, module, encodings = "Messages of ROS 2", "mcap_ros2.decoder", ENCODINGS

    def __init__(self, name: str, text: bytes):
        super().__init__(name, text)
        definitions = _definitions(name, text.decode("utf-8", "replace"))
        self.fields = _fields(_normal(name), definitions, ())
        try:
            self._decode  # noqa: B018, parses the definition
        except Exception as error:
            raise DataError(f"the definition of the type {name} is damaged: {error}. Try `mcap recover`.") from error


def _normal(name: str) -> str:
    """Returns the name of a type without `msg`, since both forms occur."""
    return name.replace("/msg/", "/")


def _definitions(name: str, text: str) -> dict[str, str]:
    """Returns type -> definition. The definitions of other types follow lines of `=`, and begin with `MSG: type`."""
    first, *others = text.replace("\r\n", "\n").split(_SEPARATOR)
    found = {_normal(name): first}
    for other in others:
        head, _, body = other.lstrip().partition("\n")
        found[_normal(head.removeprefix("MSG:").strip())] = body
    return {**BUILTIN, **found}


def _fields(name: str, definitions: dict[str, str], parents: tuple[str, ...]) -> tuple[Field, ...]:
    """Returns the fields of a type. Raises DataError if one cannot be decoded."""
    if name in parents or name not in definitions:
        problem = "contains itself" if name in parents else "is not defined in the log"
        raise DataError(f"the type {name} {problem}. Name a decoder of your own: decoders={{...}}.")
    found = []
    for line in definitions[name].replace("\t", " ").splitlines():
        kind, _, rest = line.partition("#")[0].strip().partition(" ")
        if not kind or "=" in rest:  # a comment, or a constant
            continue
        if not rest.strip():
            raise DataError(f"the definition of the type {name} is damaged: {kind[:60]!r}. Try `mcap recover`.")
        kind, _, count = kind.removesuffix("]").partition("[") if kind.endswith("]") else (kind, "", None)
        kind = kind.partition("<=")[0]
        size = int(count) if count and count.isdecimal() else None
        if "/" in kind or kind[:1].isupper():
            child = _normal(kind) if "/" in kind else f"{name.rpartition('/')[0]}/{kind}"
            content = _fields(child, definitions, (*parents, name))
        elif kind in DTYPES:
            content = DTYPES[kind]
        else:
            raise DataError(
                f"the type {name} has a field of type {kind}, which cannot be decoded. Name a decoder of your own: "
                "decoders={...}."
            )
        found.append(Field(rest.split()[0], content, count is not None, size))
    return tuple(found)
