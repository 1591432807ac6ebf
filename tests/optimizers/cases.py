"""Parameters with matrices of several forms, and optimizers that update them on a mesh."""

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers as Numbers

from engine.config.schema import MeshSpec
from engine.parallel.layout import Layout, with_layout
from engine.parallel.mesh import make_mesh

SHAPES = {
    "blocks/down": (4, 48, 16),
    "blocks/query": (4, 16, 2, 8),
    "experts/up": (2, 2, 16, 48),
    "embedding": (32, 16),
    "one": (16, 48),
    "scale": (16,),
}
MATRICES = {
    "blocks/down": Numbers((1,), (2,)),
    "blocks/query": Numbers((1,), (2, 3)),
    "experts/up": Numbers((2,), (3,)),
    "one": Numbers((0,), (1,)),
}
SPLIT = {
    "blocks/down": PartitionSpec("pipeline", "tensor", "fsdp"),
    "blocks/query": PartitionSpec("pipeline", "fsdp", "tensor"),
    "experts/up": PartitionSpec("pipeline", "expert", "fsdp", "tensor"),
    "embedding": PartitionSpec("tensor", "fsdp"),
    "one": PartitionSpec("fsdp", "tensor"),
    "scale": PartitionSpec(),
}


def matrices(params: dict[str, Any]) -> dict[str, Numbers | None]:
    """Returns the dimensions of the matrices, as the engine passes them: None for masked parameters."""
    return {path: MATRICES.get(path) if hasattr(x, "shape") else None for path, x in params.items()}


def arrays(seed: int) -> dict[str, np.ndarray]:
    """Returns parameters or gradients."""
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


class Run:
    """An optimizer whose step is compiled for one device, or for a mesh of the 8 devices of the tests."""

    def __init__(self, tx: optax.GradientTransformation, mesh: MeshSpec | None = None):
        self.tx = optax.with_extra_args_support(tx)
        self.mesh = make_mesh(mesh or MeshSpec(), jax.devices() if mesh else jax.devices()[:1])
        self.params: Any = jax.device_put(arrays(0), self.of_params())
        abstract = jax.eval_shape(self.tx.init, self.params)
        whole = NamedSharding(self.mesh, PartitionSpec())
        shardings = optax.tree.map_params(
            self.tx,
            lambda x, like, sharding: x if is_masked(x) else sharding if x.shape == like.shape else whole,
            abstract,
            self.params,
            self.of_params(),
            transform_non_params=lambda _: whole,
            is_leaf=is_masked,
        )
        self.state: Any = jax.jit(self.tx.init, out_shardings=shardings)(self.params)
        step = with_layout(Layout(mesh=self.mesh), self._step)
        found = (self.of_params(), shardings)
        lowered = jax.jit(step, out_shardings=found).lower(self.params, self.state, self.params)
        self.compiled = lowered.compile()

    def of_params(self) -> dict[str, NamedSharding]:
        return {path: NamedSharding(self.mesh, spec) for path, spec in SPLIT.items()}

    def _step(self, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = self.tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def train(self, steps: int) -> dict[str, np.ndarray]:
        """Returns the parameters after steps with the gradients of seeds 1, 2, ..."""
        for seed in range(1, steps + 1):
            grads = jax.device_put(arrays(seed), self.of_params())
            self.params, self.state = self.compiled(self.params, self.state, grads)
        return jax.device_get(self.params)


def is_masked(x: object) -> bool:
    """Returns whether a node stands for a parameter of another transformation."""
    return isinstance(x, optax.MaskedNode)
