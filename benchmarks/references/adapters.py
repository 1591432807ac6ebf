"""Adapters of `engine.adapters` with the files of PEFT: outputs, gradients, and the files written again.

The item `qwen-run` trains adapters of a tiny Qwen 3 of transformers on eight devices, with kills (`adapter_run.py`),
and PEFT and transformers compute the logits of what the run has exported.
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from benchmarks.references import adapter_run, killed_run
from benchmarks.references.environment import Environment
from benchmarks.references.file_exchange import compare_files, exchanged
from benchmarks.references.rows import Row, relative
from engine import Task, hub, layers, load
from engine.adapters import adapted, load_peft, save_peft
from engine.base.errors import RunError

TOLERANCE = 1e-5
"""Relative to the largest number of an array; files have equal bits, and magnitudes of DoRA are equal within 1e-6."""
SETTINGS: dict[str, dict[str, Any]] = {"dora": {"dora": True}, "lora": {}, "rslora": {"rslora": True}}
"""Item -> settings of the adapter."""
RUN = "qwen-run"
ITEMS = (*SETTINGS, RUN)
GOLDEN = 1
"""The first items, whose files are the golden numbers of the tests."""


class Block(nnx.Module):
    """Two dense layers."""

    def __init__(self, rngs: nnx.Rngs):
        self.query = layers.Dense(4, 6, axes=("embed", "mlp"), bias=True, rngs=rngs)
        self.out = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x, rng):
        return x + self.out(jnp.tanh(self.query(x)))


class Net(nnx.Module):
    """The model of outside/adapters.py."""

    pretrained: ClassVar = hub.Names({r"stack/layers/(\w+)": r"layers.{layer}.\1"})

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.stack = layers.Stack(Block, 2, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, images):
        x = self.conv(images)
        return self.head(self.stack(x.reshape(len(x), -1, 4)).mean(1))


@dataclasses.dataclass
class Nets(Task):
    """Builds the model."""

    def build(self, rngs):
        return Net(rngs)


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields the rows of each item; there is one random set of weights for each, whatever the number of cases."""
    yield from compare_files(environment, {"sets": list(ITEMS)}, compared, GOLDEN, train)


def compared(folder: Path, only: str = "") -> Iterator[Row]:
    """Yields rows for the items of a folder in which the outside program has run.

    Args:
        folder: the folder.
        only: an item; by default all.
    """
    items, _ = exchanged(folder)
    for item in [only] if only else items:
        if item == RUN:
            yield from exported(folder / item)
            continue
        with np.load(folder / item / "arrays.npz") as stored:
            arrays = dict(stored)
        model = read(folder / item, item)
        (_, outputs), gradients = _differentiated(*nnx.split(model), arrays["images"], arrays["weights"])
        yield Row(f"{item}, outputs", outputs.size, relative(outputs, arrays["outputs"]), TOLERANCE)
        found, wanted = _there(model, gradients), load_file(folder / item / "gradients.safetensors")
        largest = max(relative(found[name], x) for name, x in wanted.items())
        yield Row(f"{item}, gradients", len(found), largest, TOLERANCE)
        found, wanted = _there(model), load_file(folder / item / "adapter_model.safetensors")
        largest = max(relative(found[name], x) for name, x in wanted.items()) if found.keys() == wanted.keys() else 1
        yield Row(f"{item}, the file written again", len(found), largest, 1e-6 if item == "dora" else 0)


def train(folder: Path) -> None:
    """Trains the run of a folder, and writes its adapter and the merged model for the outside program."""
    if not (own := folder / RUN).is_dir():
        return
    rows = killed_run.compare(
        RUN,
        [
            "--config=benchmarks.references.adapter_run",
            f"--config.task.task.size={own}",
            f"--config.init.checkpoint=hf:{own}",
        ],
        own,
        adapter_run.KILLS,
    )
    (own / "rows.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    run = own / killed_run.KILLED
    with np.load(own / "arrays.npz") as stored:
        tokens = stored["tokens"]
    model = load(run).model
    save_peft(model, own / "adapter")
    np.save(own / "logits.npy", _logits(model, tokens))
    killed_run.convoy("export", str(run), "--format=hf", f"--out={own / 'merged'}", "--no-card")


def exported(folder: Path) -> Iterator[Row]:
    """Yields the rows of the run: what kills have changed, and the logits of its files in PEFT and transformers."""
    yield from (Row(**row) for row in json.loads((folder / "rows.json").read_text()))
    found = np.load(folder / "logits.npy")
    with np.load(folder / "there.npz") as stored:
        there = dict(stored)
    if relative(found, there["base"]) < 100 * TOLERANCE:
        raise RunError(f"{RUN}: training has hardly changed the logits, so that they show nothing about the adapter")
    yield Row(f"{RUN}, logits of its adapter in PEFT", found.size, relative(found, there["adapter"]), TOLERANCE)
    yield Row(f"{RUN}, logits of its merged export", found.size, relative(found, there["merged"]), TOLERANCE)


def _logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    ones = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    batch = {"tokens": tokens, "segment_ids": ones, "positions": positions, "weight": ones.astype(np.float32)}
    x, _ = model.features(batch, None)
    return np.asarray(x @ model.kernel)


def read(folder: Path, item: str) -> Any:
    """Returns the model with the weights and the adapter of a folder."""
    model = adapted(Nets(), match="kernel", rank=2, alpha=3, **SETTINGS[item]).build(nnx.Rngs(0))
    hub.load(model, folder / "model.safetensors", {r"^.*_lora_\w+$": None})
    load_peft(model, folder)
    return model


def _differentiated(graph: Any, state: Any, images: Any, weights: Any) -> Any:
    def total(state: Any) -> Any:
        outputs = nnx.merge(graph, state)(images)
        return (outputs * weights).sum(), outputs

    return jax.jit(jax.value_and_grad(total, has_aux=True))(state)


def _there(model: nnx.Module, values: Any = None) -> Mapping[str, np.ndarray]:
    """Returns the arrays of the file for the adapter of a model, or for other values of it, such as gradients."""
    with tempfile.TemporaryDirectory() as name:
        if values is None:
            save_peft(model, name)
            return load_file(Path(name) / "adapter_model.safetensors")
    zero = _there(_with(model, jax.tree.map(jnp.zeros_like, values)))  # magnitudes are norms plus values
    found = _there(_with(model, values))
    return {name: x - zero[name] for name, x in found.items()}


def _with(model: nnx.Module, values: Any) -> nnx.Module:
    """Returns a copy of a model with other values of its adapter."""
    found = nnx.clone(model)
    own = nnx.filter_state(values, lambda path, x: "_lora_" in str(path[-1]))
    nnx.update(found, own)
    return found
