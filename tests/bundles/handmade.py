"""Small bundles in StableHLO and in ONNX, written without the export: a linear layer, and a sum over frames."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors.numpy import save_file

import engine.bundles
from tests.bundles.onnx_bytes import FLOAT, INT32, OPSET, model, node

type Arrays = Mapping[str, Any]

WEIGHTS, SAMPLES = "weights.safetensors", "samples/predict.safetensors"
STANDALONE = Path(engine.bundles.__path__[0]) / "standalone"
PLATFORMS = ("cpu", "cuda", "tpu")
ROWS, IN, OUT = 5, 6, 4
FRAMES = 3


def write(folder: Path, onnx: bool = True, holds_weights: bool = False) -> Path:
    """Writes a bundle with a linear layer. With `holds_weights`, the StableHLO program has the weights inside."""
    rng = np.random.default_rng(0)
    weights = {"head/kernel": rng.normal(size=(IN, OUT)).astype("f"), "head/bias": rng.normal(size=OUT).astype("f")}
    inputs = {"image": rng.normal(size=(ROWS, IN)).astype("f")}
    specs = {"image": ("batch", IN)}
    stablehlo, outputs = _stablehlo(_predict, weights, specs, holds_weights)
    nodes = [
        node("Gemm", ["image", "kernel", "bias"], "logits"),
        node("Softmax", ["logits"], "score", axis=-1),
        node("ArgMax", ["logits"], "largest", axis=-1, keepdims=0),
        node("Cast", ["largest"], "class", to=INT32),
    ]
    results = {"class": (INT32, ["batch"]), "score": (FLOAT, ["batch", OUT])}
    named = {"kernel": weights["head/kernel"], "bias": weights["head/bias"]}
    programs = {"predict.stablehlo": stablehlo}
    if onnx:
        programs["predict.onnx"] = model(nodes, {"image": (FLOAT, specs["image"])}, results, named)
    computed = jax.device_get(jax.jit(_predict)(weights, inputs))
    return _write(folder, programs, None if holds_weights else weights, (specs, inputs), (outputs, computed))


def write_with_memory(folder: Path) -> Path:
    """Writes a bundle whose model sums what it sees from frame to frame."""
    x = np.arange(1, FRAMES + 1, dtype=np.float32)[:, None]  # [frames, rows]
    total = np.float32(10) + np.cumsum(x, 0)
    specs = {"x": ("batch",), "state/sum": ("batch",)}
    stablehlo, outputs = _stablehlo(_add, {}, specs, holds_weights=True)
    nodes = [
        node("Add", ["x", "state/sum"], "next/state/sum"),
        node("Add", ["next/state/sum", "next/state/sum"], "twice"),
    ]
    ends = {name: (FLOAT, ["batch"]) for name in ("x", "state/sum", "next/state/sum", "twice")}
    inside, outside = ({name: ends[name] for name in names} for names in (specs, ["next/state/sum", "twice"]))
    programs = {"predict.stablehlo": stablehlo, "predict.onnx": model(nodes, inside, outside, {})}
    inputs = {"x": x, "state/sum": np.array([10], np.float32)}
    computed = {"state/sum": total, "twice": 2 * total}
    return _write(folder, programs, None, (specs, inputs), (outputs, computed), ["state/sum"])


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes bundle.json with the hashes of all other files."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "bundle.json"):
        content = path.read_bytes()
        record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        files[path.relative_to(folder).as_posix()] = record
    (folder / "bundle.json").write_text(json.dumps({**manifest, "files": files}, indent=1))


def _predict(weights: Arrays, inputs: Arrays) -> dict[str, jax.Array]:
    logits = inputs["image"] @ weights["head/kernel"] + weights["head/bias"]  # [batch, OUT]
    return {"class": jnp.argmax(logits, -1).astype(jnp.int32), "score": jax.nn.softmax(logits)}


def _add(weights: Arrays, inputs: Arrays) -> dict[str, jax.Array]:
    total = inputs["x"] + inputs["state/sum"]
    return {"state/sum": total, "twice": 2 * total}


def _stablehlo(
    function: Callable[[Arrays, Arrays], Arrays], weights: Arrays, specs: Mapping[str, tuple], holds_weights: bool
) -> tuple[bytes, dict[str, tuple]]:
    """Returns the program of a function of float32 arrays, and the shapes of its outputs."""
    [rows] = export.symbolic_shape("batch")
    inputs = {name: jax.ShapeDtypeStruct((rows, *shape[1:]), jnp.float32) for name, shape in specs.items()}
    stored = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    if holds_weights:
        exported = export.export(jax.jit(lambda inputs: function(weights, inputs)), platforms=PLATFORMS)(inputs)
    else:
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(stored, inputs)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return bytes(exported.serialize()), {name: ("batch", *x.shape[1:]) for name, x in outputs.items()}


def _write(
    folder: Path,
    programs: Mapping[str, bytes],
    weights: Arrays | None,
    inputs: tuple[Mapping[str, tuple], Arrays],
    outputs: tuple[Mapping[str, tuple], Arrays],
    state: Sequence[str] = (),
) -> Path:
    """Writes a bundle with one entry point. `inputs` and `outputs`: shapes, and arrays of the samples, by name."""
    (folder / "samples").mkdir(parents=True)
    for name, content in programs.items():
        (folder / name).write_bytes(content)
    for name in ("check.py", "measure.py"):
        (folder / name).write_bytes((STANDALONE / name).read_bytes())
    if weights is not None:
        save_file(dict(weights), folder / WEIGHTS)
    arrays = {f"inputs/{name}": x for name, x in inputs[1].items()}
    save_file(arrays | {f"outputs/{name}": x for name, x in outputs[1].items()}, folder / SAMPLES)
    kinds: dict[str, Any] = {
        "stablehlo": {"platforms": list(PLATFORMS), "weights": None if weights is None else WEIGHTS},
        "onnx": {"opset": OPSET},
    }
    entry = {
        part: {name: {"shape": list(shape), "dtype": str(x[name].dtype)} for name, shape in specs.items()}
        for part, (specs, x) in (("inputs", inputs), ("outputs", outputs))
    }
    found = {name.partition(".")[2]: {"file": name, **kinds[name.partition(".")[2]]} for name in programs}
    entry |= {"samples": SAMPLES, "tolerance": 1e-5, "programs": found, "state": list(state)}
    write_manifest(folder, {"format": 1, "name": "handmade", "entries": {"predict": entry}})
    return folder
