"""A Task with methods of several kinds; only public names of the engine, which the environment of jax2onnx has."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import Loss, Task, layers, perception

CELLS = (12, 10)  # along x and y


class Memory(nnx.Variable):
    """What a row remembers."""


class Layer(nnx.Module):
    """A dense layer with a gated activation."""

    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.List([layers.Dense(8, 8, axes=("embed", "mlp"), rngs=rngs) for _ in range(2)])

    def __call__(self, x, rng):
        return x + layers.swiglu(*(up(x) for up in self.up))


class Parts(nnx.Module):
    """A cell with a memory, two stacked layers and a head."""

    def __init__(self, rows: int, rngs: nnx.Rngs):
        self.cell = nnx.GRUCell(8, 8, rngs=rngs)
        self.stack = layers.Stack(Layer, 2, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)
        self.memory = Memory(jnp.zeros((rows, 8)))


@dataclasses.dataclass
class Several(Task):
    """Methods that scatter, loop, attend, remember, and call Python."""

    rows: int = 4
    model_state = (Memory,)

    def build(self, rngs):
        return Parts(self.rows, rngs)

    def loss(self, model, batch, rng):
        return Loss.of(model.head(batch["x"]).sum(-1))

    def predict(self, model, batch):
        logits = model.head(batch["x"])
        return {"class": logits.argmax(-1), "scores": {"all": jax.nn.softmax(logits)}}

    def attend(self, model, batch):
        """Returns `[n, t, 3]` for sequences `[n, t, 8]` and segments `[n, t]`."""
        x = batch["x"].reshape(*batch["x"].shape[:2], 2, 4)
        x = layers.rotate(x, layers.rotary_angles(batch["segments"], 4))
        x = layers.attention(x, x[:, :, :1], x[:, :, :1], causal=True, segment_ids=batch["segments"])
        return model.head(model.stack(x.reshape(batch["x"].shape)))

    def remember(self, model, batch):
        """Returns the sum of the memory after the rows have seen `[rows, 8]`."""
        new, _ = model.cell(model.memory[...], batch["x"])
        model.memory[...] = new
        return {"seen": new.sum(-1)}

    def detect(self, model, batch):
        """Returns boxes around the cells of points `[n, points, 3]` with the largest values."""
        cells = CELLS[0] * CELLS[1]
        index = perception.cell_indices(batch["points"], (-6.0, -5.0), (1.0, 1.0), CELLS, batch["valid"])
        found = perception.occupied_cells(index, cells, 40)
        heights = perception.scatter_max(batch["points"][..., 2:], found.slots, 40)
        heat = jax.vmap(lambda x, at: jnp.zeros(cells).at[at].set(x[:, 0], mode="drop"))(heights, found.cells)
        peaks = perception.heatmap_peaks(heat.reshape(-1, CELLS[1], CELLS[0], 1), 20)
        centre = jnp.stack([peaks.columns, peaks.rows], -1).astype(jnp.float32)
        boxes = jnp.concatenate([centre - 0.8, centre + 0.8], -1)
        kept = perception.nms(boxes, peaks.scores, 20, threshold=0.05, valid=peaks.scores > 0)
        return {"boxes": jnp.take_along_axis(boxes, kept.indices[..., None], 1), "score": kept.scores}

    def call_python(self, model, batch):
        x = model.head(batch["x"])
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    def branch(self, model, batch):
        return model.head(batch["x"]) if batch["x"].shape[0] > 2 else batch["x"]
