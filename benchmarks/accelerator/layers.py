"""Row `layers`: the chunked loss, experts, recomputation and offload against float32 on the CPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.accelerator.compare import Case, Floats, Integers, compare, error_of, noise
from benchmarks.accelerator.context import Context
from convoy_zoo.models.decoder import LanguageModel
from engine import ArraySource, layers
from engine.compile.build import build_program
from engine.config import defaults, validate
from engine.parallel.mesh import make_mesh

REMAT = ("none", "full", "dots", "save:attention", "offload:attention")
OFFLOAD_TOLERANCE = 1e-5
"""Offload moves arrays and computes nothing, so only the order of sums on a GPU may change the result."""


def run(context: Context) -> None:
    """Compares all cases, then training with and without offload of the optimizer state."""
    compare(context, [*loss_cases(context.tiny), *expert_cases(context.tiny), *remat_cases(context.tiny)])
    error = offload_error(context.tiny)
    passed = error <= OFFLOAD_TOLERANCE
    context.record(
        "optimizer state in host memory",
        dtype="bfloat16",
        error=error,
        tolerance=OFFLOAD_TOLERANCE,
        path="compared with the same steps on the device",
        verdict="ok" if passed else "WRONG",
    )
    if not passed:
        context.problem("wrong: optimizer state in host memory")


def loss_cases(tiny: bool) -> list[Case]:
    """The loss over a vocabulary, with all logits at once and in chunks of positions."""
    batch, time, width, vocabulary = (2, 16, 16, 50) if tiny else (4, 512, 512, 32000)
    floats = {"x": noise((batch, time, width), "x"), "kernel": noise((width, vocabulary), "kernel", width**-0.5)}
    labels = np.random.default_rng(0).integers(0, vocabulary, (batch, time)).astype(np.int32)

    def function(chunks: int, floats: Floats, integers: Integers) -> jax.Array:
        return layers.cross_entropy(floats["x"], floats["kernel"], integers["labels"], chunks=chunks)

    return [
        Case(
            f"loss in {chunks} chunks",
            functools.partial(function, chunks),
            floats,
            {"labels": labels},
            reference="loss",
        )
        for chunks in ((4,) if tiny else (1, 4))
    ]


def expert_cases(tiny: bool) -> list[Case]:
    """A mixture of experts with a capacity and without one."""
    batch, time, width, hidden = (2, 16, 16, 32) if tiny else (4, 512, 256, 512)
    count, top_k = 4 if tiny else 8, 2
    found = []
    for name, capacity in (("capacity 1.25", 1.25), ("dropless", None)):
        make = functools.partial(layers.Experts, width, hidden, count, top_k, capacity_factor=capacity)
        graph, shapes = nnx.split(nnx.eval_shape(lambda make=make: make(rngs=nnx.Rngs(0))))
        paths = dict(nnx.to_flat_state(shapes))
        floats = {
            "/".join(map(str, path)): noise(leaf.get_value().shape, str(path), leaf.get_value().shape[-2] ** -0.5)
            for path, leaf in paths.items()
        }
        # Large router weights: no two experts are so close that rounding would choose another.
        floats |= {"router": floats["router"] * 16, "x": noise((batch, time, width), "x")}
        found.append(Case(f"experts, {name}", functools.partial(_experts, graph, shapes), floats))
    return found


def _experts(graph: Any, shapes: Any, floats: Floats, integers: Integers) -> jax.Array:
    module = nnx.merge(graph, _with_values(shapes, floats))
    return module(floats["x"])[0]


def _with_values(shapes: Any, floats: Floats) -> Any:
    """Returns a state with the arrays of `floats`, by path."""
    leaves = {path: leaf.replace(floats["/".join(map(str, path))]) for path, leaf in nnx.to_flat_state(shapes)}
    return nnx.from_flat_state(leaves)


def task(tiny: bool) -> LanguageModel:
    """A small decoder."""
    if tiny:
        return LanguageModel(vocabulary=64, width=32, hidden=64, depth=2, heads=2)
    return LanguageModel(vocabulary=2048, width=256, hidden=512, depth=4, heads=4, kv_heads=2)


def rows(tiny: bool, count: int) -> dict[str, np.ndarray]:
    """Returns packed rows of two documents each."""
    time, vocabulary = (16, 64) if tiny else (256, 2048)
    tokens = np.random.default_rng(0).integers(0, vocabulary, (count, time + 1)).astype(np.int32)
    second = np.arange(time) >= time // 4
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.broadcast_to(second + 1, (count, time)).astype(np.int32),
        "positions": np.broadcast_to(np.arange(time) - second * (time // 4), (count, time)).astype(np.int32),
        "weight": np.ones((count, time), np.float32),
    }


def remat_cases(tiny: bool) -> list[Case]:
    """The loss of a decoder and its gradient, with each choice of `train.remat`."""
    decoder = task(tiny)
    graph, shapes, rest = nnx.split(nnx.eval_shape(lambda: decoder.build(nnx.Rngs(0))), nnx.Param, ...)
    floats = {}
    for path, leaf in nnx.to_flat_state(shapes):
        name, shape = "/".join(map(str, path)), leaf.get_value().shape
        scale = name.endswith("scale")
        floats[name] = np.ones(shape, np.float32) if scale else noise(shape, name, shape[-2] ** -0.5)

    def function(floats: Floats, integers: Integers) -> jax.Array:
        model = nnx.merge(graph, _with_values(shapes, floats), rest)
        return decoder.loss(model, integers, None).total / 16  # `[batch]`; any factor

    make = functools.partial(
        Case, function=function, floats=floats, integers=rows(tiny, 4), reference="decoder", slack=3, kernel=True
    )
    choices = ("offload:attention",) if tiny else REMAT
    return [make(f"decoder, remat={choice}", layout={"remat": choice}) for choice in choices]


def offload_error(tiny: bool) -> float:
    """Returns the largest relative difference of a parameter after steps with and without offload."""
    states = []
    for offload in (False, True):
        c = defaults()
        c.task = dict(target="convoy_zoo.models.decoder.LanguageModel")
        c.data = dict(target="engine.ArraySource")
        c.train.total = "4 steps"
        c.train.global_batch_size = 4
        c.train.precision = "bfloat16"
        c.train.offload_optimizer = offload
        config = validate(c)
        source = ArraySource(rows(tiny, 4))
        program, _ = build_program(task(tiny), make_mesh(config.mesh, jax.devices()[:1]), source, config)
        state, step = program.init(), program.steps(1)
        batch = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), program.abstract_batch)
        batch = type(batch)(jax.device_put(rows(tiny, 4)), batch.weight)
        for _ in range(2):
            state, _ = step(state, (batch,), program.skip_mask((False,)))
        states.append({name: np.asarray(x) for name, x in state.params.items()})
    kept, offloaded = states
    return max(error_of(offloaded[name], kept[name]) for name in kept)
