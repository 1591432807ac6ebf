"""`convoy_zoo.models.decoder` with the weights of transformers and the reverse, compared on a CPU in float32."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.references.environment import Environment
from benchmarks.references.file_exchange import compare_files, exchanged
from benchmarks.references.rows import Row, relative
from convoy_zoo.models.decoder import Decoder
from convoy_zoo.models.language_sizes import config_json, language_model
from engine import hub, layers

LOGITS, GRADIENTS = 1e-4, 1e-3
"""Tolerances, relative to the largest number of the array."""
TINY = 2
"""The first items, whose files are the golden numbers of the tests."""
MODELS = ("tiny-llama", "tiny-qwen3", "Llama-3.2-1B", "Llama-3.1-8B", "Qwen3-0.6B", "Qwen3-8B")
ITEMS = MODELS
LENGTH = 16384
"""`max_position_embeddings` of config.json."""
WRITTEN = "written"
"""Folder of an item with weights that the engine has written, and the logits of transformers with them."""


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields the rows of each item; there is one random set of weights for each, whatever the number of cases."""
    yield from compare_files(environment, {"sets": MODELS}, compared, TINY, write)


def write(folder: Path) -> None:
    """Writes changed weights of each item for the outside program, as a folder that it reads."""
    for item in exchanged(folder)[0]:
        module = read(folder / item)
        nnx.update(module, jax.tree.map(_changed, nnx.state(module, nnx.Param)))
        (folder / item / WRITTEN).mkdir()
        hub.save(module, folder / item / WRITTEN / "model.safetensors")
        text = config_json(language_model(str(folder / item)), LENGTH)
        (folder / item / WRITTEN / "config.json").write_text(text, encoding="utf-8")


def _changed(x: jax.Array) -> jax.Array:
    return x * np.random.default_rng(x.size).uniform(0.5, 1.5, x.shape).astype(np.float32)


def compared(folder: Path, only: str = "") -> Iterator[Row]:
    """Yields rows for the items of a folder in which the outside program has run twice.

    Args:
        folder: the folder.
        only: an item; by default all.
    """
    for item in [only] if only else exchanged(folder)[0]:
        yield from _of_item(item, folder / item)


def _of_item(item: str, folder: Path) -> Iterator[Row]:
    with np.load(folder / "arrays.npz") as stored:
        batch = dict(stored)
    wanted, real = batch.pop("logits"), batch["segment_ids"] > 0
    batch["weight"] = real.astype(np.float32)
    module = read(folder)
    graph, params = nnx.split(module)

    @jax.jit
    def run(params: Any) -> Any:
        """Returns the gradients of the sum of the losses, and the logits."""

        def total(params: Any) -> Any:
            model = nnx.merge(graph, params)
            x, _ = model.features(batch, None)
            losses = layers.cross_entropy(x, model.kernel, batch["targets"])
            return (losses * batch["weight"]).sum(), x @ model.kernel

        return jax.grad(total, has_aux=True)(params)

    gradients, logits = run(params)
    for name, rows in (("packed", slice(0, 1)), ("padded", slice(1, None))):
        found, there = logits[rows][real[rows]], wanted[rows][real[rows]]
        yield Row(f"{item}, logits of {name} rows", found.size, relative(found, there), LOGITS)
    first, second = real[1].sum(), real[2].sum()
    single = jnp.concatenate([logits[1, :first], logits[2, :second]])
    packed = logits[0, : first + second]
    yield Row(f"{item}, packed row and single rows", packed.size, relative(packed, single), LOGITS)
    hub.load(module, folder / "gradients.safetensors")
    there = jax.tree.leaves(nnx.state(module, nnx.Param))
    pairs = list(zip(jax.tree.leaves(gradients), there, strict=True))
    yield Row(f"{item}, gradients of weights", len(pairs), max(relative(*pair) for pair in pairs), GRADIENTS)
    hub.load(module, folder / WRITTEN / "model.safetensors")
    _, logits = run(nnx.state(module))
    there = np.load(folder / WRITTEN / "logits.npy")[real]
    yield Row(f"{item}, logits of written weights", there.size, relative(logits[real], there), LOGITS)


def read(folder: Path) -> Decoder:
    """Returns the model of a folder of transformers, with its weights."""
    module = without_values(folder)
    hub.load(module, folder / "model.safetensors")
    return module


def without_values(folder: Path) -> Decoder:
    """Returns the model of a folder of transformers; all of its variables are 0."""
    task = language_model(str(folder))
    module = nnx.eval_shape(lambda: task.build(nnx.Rngs(0)))
    assert isinstance(module, Decoder)
    nnx.update(module, jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), nnx.state(module, nnx.Param)))
    return module
