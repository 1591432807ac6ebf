"""What the engine asks of the converter in another environment, and its answer, as files of a folder."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from engine.base.errors import ConfigError
from engine.base.types import PyTree

MODEL, WEIGHTS, CASES, ANSWER = "model.onnx", "weights.safetensors", "cases.safetensors", "answer.json"
QUANTIZED = "quantized.safetensors"
NEXT = "next/"
"""Before the name of an output that has the name of an input, such as the state: a name in ONNX means one array."""
_ENTRIES = "entries.json"

type Arrays = Mapping[str, Any]
type Specs = Mapping[str, jax.ShapeDtypeStruct]
type Case = tuple[Sequence[Arrays], Arrays]
"""The inputs of calls in turn, and the state before the first one; one call for a model without memory."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of a Task to convert.

    Attributes:
        name: name of the method.
        example: one example, a pytree of jax.ShapeDtypeStruct.
        inputs: name -> shape and dtype; sizes may be symbolic.
        rows: rows of the memory of the model (`forward_of`).
        cases: inputs with which the ONNX model is run.
        plan: how the method is quantized, as `Plan.to_json` returns it; None: not at all.
        arrays: the arrays of the quantized method by name.
    """

    name: str
    example: PyTree
    inputs: Specs
    rows: int
    cases: Sequence[Case]
    plan: Mapping[str, Any] | None = None
    arrays: Arrays = dataclasses.field(default_factory=dict)


def write(folder: Path, config: str, weights: Arrays, methods: Sequence[Method]) -> None:
    """Writes a request.

    Args:
        folder: an empty folder.
        config: text of the config of the run.
        weights: name -> array of every variable of the model.
        methods: what to convert.
    """
    (folder / "config.txt").write_text(config, encoding="utf-8")
    save(folder / WEIGHTS, weights)
    entries = []
    for i, method in enumerate(methods):
        arrays = {}
        for k, (frames, state) in enumerate(method.cases):
            arrays |= {f"{k}/{f}/{name}": x for f, frame in enumerate(frames) for name, x in frame.items()}
            arrays |= {f"{k}/state/{name}": x for name, x in state.items()}
        place(folder, i).mkdir()
        save(place(folder, i) / CASES, arrays)
        save(place(folder, i) / QUANTIZED, method.arrays)
        entries.append(
            {
                "name": method.name,
                "example": _to_json(method.example),
                "inputs": {name: _leaf(x) for name, x in method.inputs.items()},
                "rows": method.rows,
                "frames": [len(frames) for frames, _ in method.cases],
                "plan": method.plan,
            }
        )
    (folder / _ENTRIES).write_text(json.dumps(entries), encoding="utf-8")


def read(folder: Path) -> tuple[str, Arrays, list[Method]]:
    """Returns the config, the weights and the methods of a request."""
    methods, scope = [], export.SymbolicScope()
    for i, entry in enumerate(json.loads((folder / _ENTRIES).read_text(encoding="utf-8"))):
        arrays = load(place(folder, i) / CASES)
        cases = []
        for k, count in enumerate(entry["frames"]):
            cases.append(([_part(arrays, f"{k}/{f}/") for f in range(count)], _part(arrays, f"{k}/state/")))
        inputs = {name: _of_leaf(x, scope) for name, x in entry["inputs"].items()}
        example, quantized = _of_json(entry["example"], scope), load(place(folder, i) / QUANTIZED)
        methods.append(Method(entry["name"], example, inputs, entry["rows"], cases, entry["plan"], quantized))
    return (folder / "config.txt").read_text(encoding="utf-8"), load(folder / WEIGHTS), methods


def place(folder: Path, index: int) -> Path:
    """Returns the folder with the files of a method."""
    return folder / str(index)


def save(path: Path, arrays: Arrays) -> None:
    """Writes arrays to a safetensors file."""
    from safetensors.numpy import save_file

    save_file({name: np.asarray(x, order="C") for name, x in arrays.items()}, path)


def load(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file."""
    from safetensors.numpy import load_file

    return load_file(path)


def shape_of(x: Any) -> list[int | str]:
    """Returns a shape with the names of symbolic sizes."""
    return [size if isinstance(size, int) else str(size) for size in x.shape]


def _part(arrays: Arrays, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}


def _leaf(x: Any) -> dict[str, Any]:
    return {"shape": shape_of(x), "dtype": np.dtype(x.dtype).name}


def _of_leaf(x: Mapping[str, Any], scope: export.SymbolicScope) -> jax.ShapeDtypeStruct:
    shape = export.symbolic_shape(", ".join(map(str, x["shape"])), scope=scope) if x["shape"] else ()
    return jax.ShapeDtypeStruct(shape, np.dtype(x["dtype"]))


def _to_json(tree: PyTree) -> Any:
    if tree is None:
        return None
    if type(tree) is dict and all(type(name) is str for name in tree):
        return {"dict": {name: _to_json(x) for name, x in tree.items()}}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_to_json(x) for x in tree]}
    if isinstance(tree, jax.ShapeDtypeStruct):
        return _leaf(tree)
    raise ConfigError(
        f"--format=onnx: an example of the dataset holds {type(tree).__name__}, which the converter cannot rebuild in "
        "its environment. Allowed are dicts, lists and tuples of arrays."
    )


def _of_json(tree: Any, scope: export.SymbolicScope) -> PyTree:
    if tree is None:
        return None
    if "shape" in tree:
        return _of_leaf(tree, scope)
    [(kind, parts)] = tree.items()
    if kind == "dict":
        return {name: _of_json(x, scope) for name, x in parts.items()}
    return (list if kind == "list" else tuple)(_of_json(x, scope) for x in parts)
