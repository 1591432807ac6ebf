"""Loads this bundle with JAX, NumPy and flatbuffers alone: `load("predict")({"image": image})`."""

import json
import pathlib

import jax
import numpy as np

DTYPES = {"BF16": jax.numpy.bfloat16, "BOOL": bool}  # of safetensors; the others are F32, I8, U16 ...


def arrays(file):
    """Returns the arrays of a safetensors file by name."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, x in json.loads(data[8:start]).items():
        if name != "__metadata__":
            dtype = DTYPES.get(x["dtype"]) or np.dtype(f"{x['dtype'][0].lower()}{int(x['dtype'][1:]) // 8}")
            first, end = x["data_offsets"]
            found[name] = np.frombuffer(data[start + first : start + end], dtype).reshape(x["shape"])
    return found


def load(entry="predict", folder=pathlib.Path(__file__).parent):
    """Returns an entry point of a folder as a function `inputs -> outputs`, of arrays by name."""
    folder = pathlib.Path(folder)
    program = json.loads((folder / "bundle.json").read_bytes())["entries"][entry]["programs"]["stablehlo"]
    exported = jax.export.deserialize(bytearray((folder / program["file"]).read_bytes()))
    call = jax.jit(exported.call)
    if program["weights"] is None:
        return call
    (names, _), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    stored = arrays(folder / program["weights"])
    weights = jax.device_put({name: stored[name] for name in names})
    return lambda inputs: call(weights, inputs)
