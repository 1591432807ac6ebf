"""The manifest of a bundle, `bundle.json`: its content, its origin, and the hash of every other file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.base import json_text
from engine.base.errors import ConvoyError

MANIFEST = "bundle.json"
SIGNATURE = "bundle.json.minisig"
FORMAT = 1
"""Version of the manifest. A reader refuses later ones."""


class BundleError(ConvoyError):
    """A bundle cannot be read, was changed, or was called with wrong inputs."""


@dataclass(frozen=True)
class Array:
    """Shape and dtype of an input or an output; a dimension of any size is a name.

    Attributes:
        shape: its dimensions: ("batch", 8, 8).
        dtype: name of the NumPy dtype, or "bfloat16".
    """

    shape: tuple[int | str, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class EntryPoint:
    """A function of a bundle.

    Attributes:
        name: its name.
        inputs: name -> array.
        outputs: name -> array.
        programs: kind of program ("stablehlo" or "onnx") -> its file and properties.
        samples: file with inputs and outputs.
        tolerance: largest difference of an output from its sample, relative to max(1, |largest value|).
        state: names of the inputs that are the memory of the model; outputs of these names are its next values.
    """

    name: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    programs: Mapping[str, Mapping[str, Any]]
    samples: str
    tolerance: float
    state: tuple[str, ...]


def entry_json(entry: EntryPoint) -> dict[str, Any]:
    """Returns an entry point as it is stored."""

    def arrays(specs: Mapping[str, Array]) -> dict[str, Any]:
        return {name: {"shape": list(x.shape), "dtype": x.dtype} for name, x in specs.items()}

    return {
        "inputs": arrays(entry.inputs),
        "outputs": arrays(entry.outputs),
        "programs": {kind: dict(program) for kind, program in entry.programs.items()},
        "samples": entry.samples,
        "tolerance": entry.tolerance,
        "state": list(entry.state),
    }


def entry_of(name: str, found: Mapping[str, Any]) -> EntryPoint:
    """Returns an entry point of the content that `parse` returns."""

    def arrays(specs: Mapping[str, Any]) -> dict[str, Array]:
        return {key: Array(tuple(x["shape"]), x["dtype"]) for key, x in specs.items()}

    inputs, outputs = arrays(found["inputs"]), arrays(found["outputs"])
    state = tuple(found["state"])
    return EntryPoint(name, inputs, outputs, found["programs"], found["samples"], found["tolerance"], state)


_ARRAYS = {str: {"shape": [int | str], "dtype": str}}
_PROGRAM = {"file": str, "weights?": str | None, "platforms?": [str], str: object}
_ENTRY = {"inputs": _ARRAYS, "outputs": _ARRAYS, "programs": {str: _PROGRAM}}
_SHAPE = {
    "format": int,
    "entries": {str: {**_ENTRY, "samples": str, "tolerance": float, "state": [str]}},
    "files": {str: {"bytes": int, "sha256": str}},
    str: object,
}


def parse(text: bytes, where: str) -> dict[str, Any]:
    """Returns the content of a manifest. Raises BundleError if it is none, or of a later version."""
    try:
        version = json_text.parse(text.decode(), {"format": int, str: object}, constants=True)["format"]
        if version <= FORMAT:
            return json_text.parse(text.decode(), _SHAPE, constants=True)
    except ValueError as error:
        raise BundleError(f"{where}: {MANIFEST} is damaged ({error}). Copy or export the bundle again.") from error
    raise BundleError(
        f"{where}: the bundle has format {version}, and this version of Convoy reads formats up to {FORMAT}. Install a "
        "newer version."
    )


def file_record(content: bytes) -> dict[str, Any]:
    """Returns size and hash of a file, as the manifest lists them."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def to_text(manifest: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a manifest; the same content gives the same bytes."""
    return (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
