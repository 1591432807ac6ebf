"""What an update of a decoder of 1.2 billion parameters costs on devices that are absent: 8 H100 and 16 TPU v5e.

Only the update is compiled: the optimizer and the new parameters, from gradients that are split like the parameters.
The step of another optimizer is that of AdamW, with the other update in place of AdamW's. All branches of a condition
count, so SOAP has its decompositions in each step, not in each tenth one.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

from benchmarks.aot.modelled_time import ModelledTime, modelled_time
from benchmarks.aot.programs import DECODER, SIZES
from benchmarks.aot.small import step_costs
from benchmarks.optimizer_matrix.subjects import OPTIMIZERS
from engine.api.prepared import program
from engine.compile.program import Program
from engine.config import defaults, hardware
from engine.config.override import assign
from engine.parallel.layout import with_layout
from engine.parallel.targets import devices
from engine.training.gradients import constrain
from engine.training.update import optimize

COMPILED = ("adamw", "muon", "soap", "adafactor", "lion")
TARGETS: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "h100 x 8": ("h100:1x8", {"mesh.fsdp": 8}),
    "v5e x 16": ("v5e:4x4", {"mesh.fsdp": 16}),
}
"""Name -> target, and settings of the mesh."""
LARGEST = 2048
"""Sides of SOAP that are rotated: the width, as a decomposition of the hidden layer's 5632 takes most of the time."""


def measured(optimizer: str) -> dict[str, Any]:
    """Returns target -> costs of one update on one device, or the sentence of the failure."""
    return {target: _measured(optimizer, target) for target in TARGETS}


def _measured(optimizer: str, target: str) -> dict[str, float]:
    executable, mesh = _update(optimizer, target)
    costs = step_costs(executable, mesh)
    own, adamw, step = (_time(each, mesh).total for each in (executable, _update("adamw", target)[0], _step(target)))
    return {
        "gflop": round(costs.flops / 1e9, 2),
        "gbytes": round(costs.bytes / 1e9, 3),
        "sent_mb": round(costs.sent / 1e6, 1),
        "collectives": costs.collectives,
        "ms": round(1e3 * own, 2),
        "step_ms": round(1e3 * (step - adamw + own), 1),
    }


def _time(executable: jax.stages.Compiled, mesh: jax.sharding.Mesh) -> ModelledTime:
    device = hardware.find(mesh.devices.flat[0].device_kind)
    assert device is not None
    return modelled_time(str(executable.as_text()), mesh, device)


@functools.cache
def _program(optimizer: str, target: str) -> Program:
    name, mesh = TARGETS[target]
    c = defaults()
    c.task = dict(target=DECODER, **SIZES["1b"])
    c.data = dict(target="benchmarks.aot.programs.Tokens", length=2048)
    c.optimizer = {**OPTIMIZERS[optimizer], **({"largest": LARGEST, "frequency": 10} if optimizer == "soap" else {})}
    c.train.total, c.train.global_batch_size = "1000 steps", 32
    c.train.precision, c.train.remat = "bfloat16", "full"
    c.cache.compiled = False
    for path, value in mesh.items():
        assign(c, path, value)
    return program(c, devices(name))[0]


@functools.cache
def _update(optimizer: str, target: str) -> tuple[jax.stages.Compiled, jax.sharding.Mesh]:
    found = _program(optimizer, target)
    spec, state = found.spec, found.abstract_state
    shardings = jax.tree.map(lambda x: x.sharding, (state.params, state.opt_state))

    def update(params: Any, opt_state: Any, grads: Any) -> Any:
        grads = constrain(spec, grads)
        return optimize(spec, params, opt_state, grads, optax.tree.norm(grads))

    jitted = jax.jit(with_layout(spec.layout, update), out_shardings=shardings, donate_argnums=(0, 1))
    return jitted.lower(state.params, state.opt_state, state.params).compile(), found.mesh


@functools.cache
def _step(target: str) -> jax.stages.Compiled:
    return _program("adamw", target).trace(1).lower().compile()
