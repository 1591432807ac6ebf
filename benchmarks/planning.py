"""Predicts the step time of 14 configurations on 8 CPU devices, runs each, and compares: python -m benchmarks.planning

It measures the rates of the devices first, as `convoy plan --calibrate` does. It prints a table of predicted and
measured times, Spearman's rank correlation, and how much slower the predicted best is than the measured best. It takes
about two minutes of two cores.
"""

import os
import sys
import time

import jax
import numpy as np

from benchmarks.aot.programs import DECODER
from engine.config import defaults
from engine.config.hardware import AXES
from engine.config.schema import Config
from engine.entry import program, resolve_config
from engine.plan import with_candidate
from engine.planning import calibration
from engine.planning import machine as machines
from engine.planning.candidates import Candidate
from engine.planning.cost import CostModel
from engine.planning.tracing import Traces

ROWS, TIME, STEPS = 32, 64, 5
CONFIGURATIONS = (
    {"data": 8},
    {"fsdp": 8},
    {"data": 2, "fsdp": 4},
    {"data": 8, "zero1": True},
    {"data": 8, "remat": "full"},
    {"data": 8, "accumulate": 4},
    {"fsdp": 8, "accumulate": 4},
    {"fsdp": 8, "remat": "full", "accumulate": 2},
    {"tensor": 8},
    {"fsdp": 4, "tensor": 2},
    {"data": 2, "tensor": 4, "remat": "full"},
    {"fsdp": 4, "context": 2},
    {"data": 4, "pipeline": 2, "microbatches": 4},
    {"fsdp": 2, "pipeline": 4, "microbatches": 4},
)


def main() -> int:
    """Prints the table; returns 1 if the ranks do not agree."""
    devices = jax.devices()
    rates = calibration.measure(devices, print)
    machine = calibration.with_rates(machines.of_devices(devices), rates, "measured")
    print({name: f"{rate:.3g}" for name, rate in rates.items()})
    c = defaults()
    c.task = dict(target=DECODER, vocabulary=256, width=128, hidden=512, depth=8, heads=8)
    c.data = dict(target="benchmarks.aot.programs.Tokens", length=TIME)
    c.train.total, c.train.global_batch_size, c.cache.compiled = "1000 steps", ROWS, False
    config = resolve_config(c)
    built, _ = program(config, devices[:1])
    traces = Traces(built, config, {"float32": machine.f32 / machine.bandwidth}, ROWS // 8, lambda text: None)
    model = CostModel(traces, machine)
    costs, runs = [], []
    for settings in CONFIGURATIONS:
        rest = dict(settings)
        sizes = tuple(int(rest.pop(axis, 1)) for axis in AXES)
        candidate = Candidate(sizes, (1,) * len(AXES), **rest)  # pyright: ignore[reportArgumentType]
        print(f"compiling {candidate}", flush=True)
        costs.append(model.cost(candidate))
        runs.append(Run(with_candidate(config, candidate)))
    times_of = [[] for _ in runs]
    for _ in range(STEPS):  # in turn, so that a change of the machine's load meets all of them
        for run, times in zip(runs, times_of, strict=True):
            times.append(run.step())
    predicted, measured, spreads = [], [], []
    print(f"{'configuration':44} predicted  measured")
    for cost, times in zip(costs, times_of, strict=True):
        predicted.append(cost.step_s)
        measured.append(float(np.median(times)))
        spreads.append((max(times) - min(times)) / measured[-1])
        parts = ", ".join(f"{name} {s * 1e3:.0f}" for name, s in cost.seconds.items() if s >= 5e-4)
        print(f"{cost.candidate!s:44} {cost.step_s * 1e3:6.0f} ms {measured[-1] * 1e3:6.0f} ms  ({parts})", flush=True)
    ranks = np.array([np.argsort(np.argsort(values)) for values in (predicted, measured)], float)
    correlation = float(np.corrcoef(ranks)[0][1])
    picked = measured[int(np.argmin(predicted))] / min(measured) - 1
    errors = np.abs(np.array(predicted) / np.array(measured) - 1)
    print(f"Spearman: {correlation:.2f}")
    print(f"the predicted best is {picked:.0%} slower than the measured best (spread {np.median(spreads):.0%})")
    print(f"error of the time: median {np.median(errors):.0%}, largest {errors.max():.0%}")
    return int(correlation < 0.8)


class Run:
    """A compiled step of a config, and its state; the first step has been run."""

    def __init__(self, config: Config):
        built, _ = program(config)
        self.state, self.mask, self.compiled = built.init(), built.skip_mask((False,)), built.steps(1)
        self.batch = jax.tree.map(lambda x: jax.device_put(np.ones(x.shape, x.dtype), x.sharding), built.abstract_batch)
        self.step()

    def step(self) -> float:
        """Runs a step and returns its seconds."""
        start = time.perf_counter()
        self.state, metrics = self.compiled(self.state, (self.batch,), self.mask)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start


if __name__ == "__main__":
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
    jax.config.update("jax_num_cpu_devices", 8)
    sys.exit(main())
