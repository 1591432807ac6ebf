"""Measures what a CPU needs for the parts of a small model, which large products and large arrays do not show.

These are narrow products, convolutions, the update of the optimizer, the arrays of a dispatch, and the loop of the
engine around it. All devices work at once.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from engine.api.train import train
from engine.base.types import Device, PyTree
from engine.compile.flops import count_flops
from engine.config import defaults
from engine.data.source import ArraySource
from engine.planning.machine import CONVOLUTION, SHARE
from engine.training.loss import Loss
from engine.training.task import Task

REPEATS = 9
ROWS = 1024
"""Rows of the activations of a layer whose products are measured."""
WIDTHS = (64, 128)
"""Widths of a layer."""
HEADS, TIME, HEAD_DIMS = 64, 48, (16, 32)
"""Heads of all rows, positions, and dimensions of a head, of attention whose products are measured."""
IMAGES, CHANNELS = (16, 28, 28, 1), 16
WEIGHTS = [(256, 128)] * 8
"""Shapes of the parameters of an update."""
ARRAYS = 64
STEPS = 1500
"""Steps of the run that computes nearly nothing."""
LOOP_ARRAYS = 14
"""Arrays of its state and of its batch."""
type _Part = tuple[Callable[..., jax.Array], Sequence[tuple[int, ...]], tuple[int, ...]]
"""A function of weights and of an input, the shapes of the weights, and that of the input."""


def rates(devices: Sequence[Device], large: float, on_progress: Callable[[str], None]) -> dict[str, float]:
    """Returns the rates of one of these devices while all of them work, by their names in `Machine`.

    Args:
        devices: the devices.
        large: FLOP/s of a large product in float32, of which the shares are.
        on_progress: receives a line before each part of the work.
    """
    probe = _Probe(devices)
    on_progress("measuring small products, convolutions and an update")
    channels = (IMAGES[-1], CHANNELS, CHANNELS)
    kernels = [(3, 3, *pair) for pair in itertools.pairwise(channels)]
    parts: dict[str, _Part] = {CONVOLUTION: (_convolutions, kernels, IMAGES)}
    parts |= {str(width): (_layer, [(width, width)], (ROWS, width)) for width in WIDTHS}
    parts |= {str(dim): (_attention, [(HEADS, TIME, dim)] * 2, (HEADS, TIME, dim)) for dim in HEAD_DIMS}
    found = {SHARE + name: probe.flops(*part) / large for name, part in parts.items()}
    params = [_array(shape) for shape in WEIGHTS]
    state = jax.eval_shape(_OPTIMIZER.init, params)
    size = sum(4 * x.size for x in params)  # the parameters and two moments are read and written, and a gradient read
    found["update"] = 7 * size / probe.seconds(_update, params, state, params)
    one, all_of = (probe.seconds(_plus_one, [_array(())] * count) for count in (1, ARRAYS))
    found["array"] = max(all_of - one, 1e-9) / (ARRAYS - 1)
    on_progress("measuring the loop around a step")
    seconds = loop_seconds(len(devices))
    return found | {"dispatch": max(seconds - LOOP_ARRAYS * found["array"], seconds / 2)}


def loop_seconds(count: int) -> float:
    """Returns the seconds of a step of a run of the engine that computes nearly nothing, on all devices."""
    config, zeros = defaults(), ArraySource({"x": np.zeros((4096, 1), np.float32)})
    config.train.total = f"{STEPS} steps"
    config.train.global_batch_size = 8 * count
    config.log.every, config.log.progress, config.log.tensorboard = f"{STEPS // 10} steps", "none", False
    with tempfile.TemporaryDirectory(prefix="convoy-calibration-") as folder:
        summary = train(config, task=Nothing(), data=zeros, workdir=Path(folder) / "run")
    return summary.rates["step_time_s"]


class Nothing(Task):
    """A model of two numbers."""

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return nnx.Linear(1, 1, rngs=rngs)

    def loss(self, model: nnx.Module, batch: Mapping[str, jax.Array], rng: jax.Array) -> Loss:
        assert isinstance(model, nnx.Linear)
        return Loss.of(model(batch["x"])[:, 0] ** 2)


_OPTIMIZER = optax.adamw(1e-3)


def _layer(weights: list[jax.Array], x: jax.Array) -> jax.Array:
    return x @ weights[0]


def _attention(keys_and_values: list[jax.Array], queries: jax.Array) -> jax.Array:
    keys, values = keys_and_values
    return jnp.einsum("hqk,hkd->hqd", jnp.einsum("hqd,hkd->hqk", queries, keys), values)


def _convolutions(kernels: list[jax.Array], x: jax.Array) -> jax.Array:
    """Returns the result of layers of convolutions, of which the first reads a gray image."""
    for kernel in kernels:
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers))
    return x


def _update(params: PyTree, state: PyTree, gradients: PyTree) -> PyTree:
    updates, state = _OPTIMIZER.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def _array(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _plus_one(numbers: list[jax.Array]) -> list[jax.Array]:
    return [x + 1 for x in numbers]


class _Probe:
    """Times functions that each device computes as a whole."""

    def __init__(self, devices: Sequence[Device]):
        self.mesh = Mesh(np.asarray(devices), ("all",))

    def flops(
        self, function: Callable[..., jax.Array], weights: Sequence[tuple[int, ...]], inputs: tuple[int, ...]
    ) -> float:
        """Returns the FLOP/s of a function and of its gradients; an image has none."""
        of = 0 if inputs == IMAGES else (0, 1)
        gradients = jax.grad(lambda weights, x: jnp.sum(function(weights, x) ** 2), of)
        arguments = [_array(shape) for shape in weights], _array(inputs)
        return count_flops(jax.make_jaxpr(gradients)(*arguments).jaxpr) / self.seconds(gradients, *arguments)

    def seconds(self, function: Callable[..., PyTree], *shapes: PyTree) -> float:
        """Returns the median time of a call with arrays of these shapes."""
        whole = NamedSharding(self.mesh, P())
        call = jax.shard_map(function, mesh=self.mesh, in_specs=P(), out_specs=P(), check_vma=False)
        arrays = jax.tree.map(lambda x: jnp.full(x.shape, 0.5, x.dtype, device=whole), shapes)
        run = jax.jit(call).lower(*arrays).compile()
        jax.block_until_ready(run(*arrays))
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            jax.block_until_ready(run(*arrays))
            times.append(time.perf_counter() - start)
        return float(np.median(times))
