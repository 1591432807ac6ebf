"""Predicts the step time of 14 configurations on 8 CPU devices, runs each, and compares: python -m benchmarks.planning

It measures the rates of the devices first, as `convoy plan --calibrate` does. It prints a table of the times that the
formula predicts, those predicted from the compiled steps, as by `convoy plan --compile=14`, and those measured. For
both predictions it prints Spearman's rank correlation, and how much slower the predicted best is than the measured
best. It takes about two minutes of two cores. `--tiny` compiles two of them for a small decoder, to try the program.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks.aot.programs import DECODER
from engine.api.prepared import program, resolve_config
from engine.compile.step_costs import read
from engine.config import defaults
from engine.config.hardware import AXES
from engine.config.schema import Config
from engine.planning import calibration
from engine.planning import machine as machines
from engine.planning.candidates import Candidate
from engine.planning.memory import Cost
from engine.planning.plan import with_candidate
from engine.planning.search import cost_model

ROWS, TIME, STEPS = 32, 64, 9
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
    """Prints the table; returns 1 if the ranks by the compiled steps do not agree with the measured ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small decoder, without measured rates or a verdict")
    tiny = parser.parse_args().tiny
    devices = jax.devices()
    machine = machines.of_devices(devices)
    if not tiny:
        rates = calibration.measure(devices, print)
        machine = calibration.with_rates(machine, rates, "measured")
        print({name: f"{rate:.3g}" for name, rate in rates.items()})
    config = decoder(depth=1 if tiny else 8)
    built, _ = program(config, devices[:1])
    model = cost_model(built, config.sharding, config.data.prefetch, machine, ("float32",))
    formula, compiled, runs = [], [], []
    for candidate in candidates()[: 2 if tiny else None]:
        print(f"compiling {candidate}", flush=True)
        run = Run(with_candidate(config, candidate))
        formula.append(model.cost(candidate))
        compiled.append(model.with_compiled(formula[-1], read(run.program, run.compiled)))
        runs.append(run)
    times = np.array([[run.step() for run in runs] for _ in range(STEPS)])  # in turn: other load meets all of them
    measured = np.median(times, 0)
    print(f"\n{'configuration':34}{'formula':>8}{'compiled':>10}{'measured':>10}{'quartiles':>12}  compiled, in parts")
    for i, (by_formula, cost) in enumerate(zip(formula, compiled, strict=True)):
        low, high = np.quantile(times[:, i], (0.25, 0.75)) * 1e3
        parts = ", ".join(f"{name} {s * 1e3:.0f}" for name, s in cost.seconds.items() if s >= 5e-4)
        print(
            f"{cost.candidate!s:34}{by_formula.step_s * 1e3:8.0f}{cost.step_s * 1e3:10.0f}{measured[i] * 1e3:10.0f}"
            f"{low:7.0f}-{high:.0f}  {parts}"
        )
    compare("formula", formula, times)
    agreed = compare("compiled", compiled, times) >= 0.8
    return int(not (agreed or tiny))


def decoder(depth: int) -> Config:
    """Returns the config of a decoder of width 128."""
    c = defaults()
    c.task = dict(target=DECODER, vocabulary=256, width=128, hidden=512, depth=depth, heads=8)
    c.data = dict(target="benchmarks.aot.programs.Tokens", length=TIME)
    c.train.total, c.train.global_batch_size, c.cache.compiled = "1000 steps", ROWS, False
    return resolve_config(c)


def candidates() -> list[Candidate]:
    """Returns the candidates of CONFIGURATIONS."""
    found = []
    for settings in CONFIGURATIONS:
        rest = dict(settings)
        sizes = tuple(int(rest.pop(axis, 1)) for axis in AXES)
        found.append(Candidate(sizes, (1,) * len(AXES), **rest))  # pyright: ignore[reportArgumentType]
    return found


def compare(name: str, costs: Sequence[Cost], times: np.ndarray) -> float:
    """Prints how predictions agree with the measured times, and returns the rank correlation.

    Args:
        name: name of the kind of prediction.
        costs: the predictions.
        times: seconds `[steps, predictions]`.
    """
    predicted, measured = np.array([cost.step_s for cost in costs]), np.median(times, 0)
    ranks = np.array([np.argsort(np.argsort(values)) for values in (predicted, measured)], float)
    correlation = float(np.corrcoef(ranks)[0][1])
    best, picked = int(np.argmin(measured)), int(np.argmin(predicted))
    low, high = np.quantile(times[:, best], (0.25, 0.75))
    errors = np.abs(predicted / measured - 1)
    print(
        f"{name}: Spearman {correlation:.2f}; the pick, {costs[picked].candidate}, takes "
        f"{measured[picked] / measured[best]:.2f} of the time of the best, {costs[best].candidate} (its quartiles "
        f"differ by {(high - low) / measured[best]:.0%}); error of the time: median {np.median(errors):.0%}, largest "
        f"{errors.max():.0%}"
    )
    return correlation


class Run:
    """A compiled step of a config, and its state; the first step has been run."""

    def __init__(self, config: Config):
        self.program, _ = program(config)
        [self.compiled] = self.program.compile_steps(1)
        self.state, self.mask = self.program.init(), self.program.skip_mask((False,))
        self.numbers = np.asarray(self.program.spec.optimizer.numbers, np.float32)
        batch = self.program.abstract_batch
        self.batch = jax.tree.map(lambda x: jax.device_put(np.ones(x.shape, x.dtype), x.sharding), batch)
        self.step()

    def step(self) -> float:
        """Runs a step and returns its seconds."""
        start = time.perf_counter()
        self.state, metrics = self.compiled(self.state, (self.batch,), self.mask, self.numbers)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start


if __name__ == "__main__":
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
    jax.config.update("jax_num_cpu_devices", 8)
    sys.exit(main())
