"""A small bundle, written without the export: a linear layer in StableHLO and in ONNX, with samples."""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors.numpy import save_file

import engine.bundles

WEIGHTS = "weights.safetensors"
STANDALONE = Path(engine.bundles.__path__[0]) / "standalone"
ROWS, IN, OUT = 5, 6, 4
FLOAT, INT32 = 1, 6  # types of ONNX


def write(folder: Path, onnx: bool = True, holds_weights: bool = False) -> Path:
    """Writes the bundle into a folder. With `holds_weights`, the StableHLO program has the weights inside."""
    (folder / "samples").mkdir(parents=True)
    rng = np.random.default_rng(0)
    weights = {"head/kernel": rng.normal(size=(IN, OUT)).astype("f"), "head/bias": rng.normal(size=OUT).astype("f")}
    image = rng.normal(size=(ROWS, IN)).astype("f")
    specs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    batch = {"image": jax.ShapeDtypeStruct((*export.symbolic_shape("batch"), IN), jnp.float32)}
    exporter = functools.partial(export.export, platforms=("cpu", "cuda", "tpu"))
    if holds_weights:
        exported = exporter(jax.jit(lambda inputs: predict(weights, inputs)))(batch)
    else:
        exported = exporter(jax.jit(predict))(specs, batch)
    (folder / "predict.stablehlo").write_bytes(exported.serialize())
    save_file(weights, folder / WEIGHTS)
    outputs = jax.device_get(jax.jit(predict)(weights, {"image": image}))
    arrays = {"inputs/image": image} | {f"outputs/{name}": x for name, x in outputs.items()}
    save_file(arrays, folder / "samples/predict.safetensors")
    stablehlo = {
        "file": "predict.stablehlo", "platforms": ["cpu", "cuda", "tpu"], "weights": None if holds_weights else WEIGHTS
    }  # fmt: skip
    programs: dict[str, Any] = {"stablehlo": stablehlo}
    if onnx:
        (folder / "predict.onnx").write_bytes(onnx_model(weights["head/kernel"], weights["head/bias"]))
        programs["onnx"] = {"file": "predict.onnx", "opset": 22}
    for name in ("check.py", "measure.py"):
        (folder / name).write_bytes((STANDALONE / name).read_bytes())
    entry = {
        "inputs": {"image": {"shape": ["batch", IN], "dtype": "float32"}},
        "outputs": {
            "class": {"shape": ["batch"], "dtype": "int32"},
            "score": {"shape": ["batch", OUT], "dtype": "float32"},
        },
        "samples": "samples/predict.safetensors", "tolerance": 1e-5, "programs": programs, "state": [],
    }  # fmt: skip
    write_manifest(folder, {"format": 1, "name": "handmade", "entries": {"predict": entry}})
    return folder


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes bundle.json with the hashes of all other files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "bundle.json")
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()
        }
        for path in paths
    }  # fmt: skip
    (folder / "bundle.json").write_text(json.dumps({**manifest, "files": files}, indent=1))


def predict(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the largest class of each row, and the probabilities."""
    logits = inputs["image"] @ weights["head/kernel"] + weights["head/bias"]  # [batch, OUT]
    return {"class": jnp.argmax(logits, -1).astype(jnp.int32), "score": jax.nn.softmax(logits)}


def onnx_model(kernel: np.ndarray, bias: np.ndarray) -> bytes:
    """Returns the same function as ONNX, opset 22. The numbers are those of the fields in onnx.proto."""
    nodes = [
        _node("Gemm", ["image", "kernel", "bias"], "logits"),
        _node("Softmax", ["logits"], "score", axis=-1),
        _node("ArgMax", ["logits"], "largest", axis=-1, keepdims=0),
        _node("Cast", ["largest"], "class", to=INT32),
    ]
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "predict")
    for name, x in (("kernel", kernel), ("bias", bias)):
        dims = b"".join(_field(1, size) for size in x.shape)
        graph += _field(5, dims + _field(2, FLOAT) + _field(8, name) + _field(9, x.tobytes()))
    graph += _field(11, _value("image", FLOAT, "batch", IN))
    graph += _field(12, _value("class", INT32, "batch")) + _field(12, _value("score", FLOAT, "batch", OUT))
    return _field(1, 10) + _field(7, graph) + _field(8, _field(2, 22))


def _node(kind: str, inputs: list[str], output: str, **attributes: int) -> bytes:
    found = b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(3, output) + _field(4, kind)
    for name, value in attributes.items():
        found += _field(5, _field(1, name) + _field(3, value) + _field(20, 2))  # 2: an integer
    return found


def _value(name: str, kind: int, *shape: int | str) -> bytes:
    dims = b"".join(_field(1, _field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """Returns a field of a message in the wire format of Protocol Buffers."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value % 2**64)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 128:
        found.append(value % 128 | 128)
        value >>= 7
    return bytes([*found, value])
