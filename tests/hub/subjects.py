"""A module with a table of names, arrays of another program for it, and the file of these."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from engine import hub, layers

WIDTH, DEPTH = 4, 6


class Block(nnx.Module):
    """A layer of the stack of Net."""

    def __init__(self, rngs):
        self.query = layers.Dense(WIDTH, WIDTH, axes=("embed", "heads"), rngs=rngs)
        self.value = layers.Dense(WIDTH, WIDTH, axes=("embed", "heads"), rngs=rngs)
        self.gate_up = layers.Dense(WIDTH, 2 * WIDTH, axes=("embed", "mlp"), rngs=rngs)


class Net(nnx.Module):
    """A module whose arrays are renamed, transposed, split, joined and stacked."""

    pretrained: ClassVar = hub.Names(
        {
            "stack/layers/query": "h.{layer}.qv[0 of 2]",
            "stack/layers/value": "h.{layer}.qv[1 of 2]",
            "stack/layers/gate_up": "h.{layer}.gate + h.{layer}.up",
        },
        heads=("head",),
        prefixes=("", "model."),
    )

    def __init__(self, rngs):
        self.embed = layers.Embed(8, WIDTH, rngs=rngs)
        self.conv = nnx.Conv(2, WIDTH, (3, 5), rngs=rngs)
        self.stack = layers.Stack(Block, DEPTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)


class Model(nnx.Module):
    """A Net, and an own layer."""

    def __init__(self, rngs):
        self.backbone = Net(rngs)
        self.own = nnx.Linear(2, 2, rngs=rngs)


def made(kind):
    """Returns a module whose variables are 0."""
    module = nnx.eval_shape(lambda: kind(nnx.Rngs(0)))
    zeros = jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), nnx.state(module, nnx.Param))
    nnx.update(module, zeros)
    return module


def numbers(*shape):
    """Returns random numbers in float32, the same ones for a sum of sizes."""
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def there(prefix="", head=3, dtype=np.float32):
    """Returns the arrays of a file."""
    found = {"embed.weight": numbers(8, WIDTH), "conv.weight": numbers(WIDTH, 2, 3, 5), "conv.bias": numbers(WIDTH)}
    found |= {"head.weight": numbers(head, WIDTH), "head.bias": numbers(head)}
    for i in range(DEPTH):
        found[f"h.{i}.qv.weight"] = numbers(2 * WIDTH, WIDTH) + i
        found[f"h.{i}.gate.weight"], found[f"h.{i}.up.weight"] = numbers(WIDTH, WIDTH) + i, numbers(WIDTH, WIDTH) - i
    return {prefix + name: x.astype(dtype) for name, x in found.items()}


def expected(arrays):
    """Returns the arrays of `Net` by path for those of a file, by plain numpy."""
    qv = np.stack([arrays[f"h.{i}.qv.weight"] for i in range(DEPTH)])
    both = [np.concatenate([arrays[f"h.{i}.gate.weight"], arrays[f"h.{i}.up.weight"]]).T for i in range(DEPTH)]
    return {
        "embed/table": arrays["embed.weight"],
        "conv/kernel": arrays["conv.weight"].transpose(2, 3, 1, 0),
        "conv/bias": arrays["conv.bias"],
        "stack/layers/query/kernel": qv[:, :WIDTH].swapaxes(1, 2),
        "stack/layers/value/kernel": qv[:, WIDTH:].swapaxes(1, 2),
        "stack/layers/gate_up/kernel": np.stack(both),
        "head/kernel": arrays["head.weight"].T,
        "head/bias": arrays["head.bias"],
    }


def values(module, prefix=""):
    """Returns path -> array of the parameters of a module."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {prefix + "/".join(map(str, path)): np.asarray(v.get_value()) for path, v in flat}


def same(found, wanted):
    """Asserts that two mappings have equal arrays."""
    assert {name: np.asarray(x).tolist() for name, x in found.items()} == {
        name: np.asarray(x).tolist() for name, x in wanted.items()
    }


def write(folder, arrays):
    """Writes arrays to a file, and returns its path."""
    save_file(arrays, folder / "model.safetensors")
    return folder / "model.safetensors"
