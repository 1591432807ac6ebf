"""Measures what several steps in one dispatch gain, by the size of the model.

tools/bazel run //benchmarks:dispatch [-- --turns 5 --seconds 0.15]
python -m benchmarks.dispatch

A series of perceptrons, from one whose step is nearly all host overhead to one of a millisecond. For each, in turns in
one process: the bare loop, its computation alone, and the engine with `train.steps_per_dispatch` K = 1, 2, 8, 32.
*Host* is the part of the bare step that is not computation. *Gain* is the time with K = 1 over that with K. The target:
K = 32 is never slower, and 1.5 times as fast where the host takes over half of the bare step.
"""

import argparse
import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import interleaved, report, workloads
from benchmarks.bare import Arrays, BareLoop
from benchmarks.report import Row

KS = (1, 2, 8, 32)
BLOCK = 32
"""Steps in the program that only computes. A turn is a multiple of it."""
SIZES = {
    "16-8-10": ((16, 8, 10), 8),
    "64-32-10": ((64, 32, 10), 32),
    "64-128-128-10": ((64, 128, 128, 10), 64),
    "256-128-64-10": ((256, 128, 64, 10), 128),
    "784-256-128-10": ((784, 256, 128, 10), 128),
}
"""Name -> layer sizes and batch size."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Microseconds a step of each turn, and the engine's logged losses by K and step."""

    bare: list[float]
    computation: list[float]
    engine: dict[int, list[float]]
    losses: dict[int, dict[int, float]]
    bare_losses: dict[int, float]

    @property
    def host_share(self) -> float:
        """The part of the bare step that is not computation."""
        return statistics.median(1 - a / b for a, b in zip(self.computation, self.bare, strict=True))

    def gain(self, k: int) -> tuple[float, ...]:
        """Returns the time of a step with K = 1 over that with K = `k`, turn by turn."""
        return report.ratios(self.engine[1], self.engine[k])


class Computation:
    """The step of a bare loop, repeated on one batch in one program: no feed, and one call for many steps."""

    def __init__(self, bare: BareLoop, batch: Arrays):
        self._state = jax.tree.map(jnp.copy, bare.state)
        self._steps = jax.jit(
            lambda state: jax.lax.scan(lambda s, _: bare.update(s, batch), state, length=BLOCK)[0], donate_argnums=0
        )

    def run(self, steps: int) -> None:
        """Computes so many steps and waits for the device."""
        for _ in range(steps // BLOCK):
            self._state = self._steps(self._state)
        jax.block_until_ready(self._state)


def measure(
    name: str, turns: int, seconds: float, blocks: int | None = None, ks: Sequence[int] = KS, **settings: Any
) -> Times:
    """Runs the bare loop, its computation and the engine with each K over the same steps.

    Args:
        name: key of SIZES.
        turns: turns of each loop.
        seconds: length of a turn of the bare loop; `blocks` of 32 steps, if given, takes its place.
        ks: steps in a dispatch.
        **settings: further fields of the config, as in `workloads.config`.
    """
    sizes, batch_size = SIZES[name]
    # A row of metrics ends no dispatch. A period of 64 steps keeps dispatches of 32 whole in any case.
    model = {"task__sizes": sizes, "data__size": sizes[0], "train__global_batch_size": batch_size}
    model |= {"log__every": f"{2 * BLOCK} steps"} | settings
    if blocks is None:
        blocks = _blocks(workloads.config("mlp", steps=8 * BLOCK, **model), seconds)
    steps = blocks * BLOCK
    total = interleaved.total_steps(steps, turns)
    configs = {k: workloads.config("mlp", steps=total, train__steps_per_dispatch=k, **model) for k in ks}
    bare = workloads.bare_loop(configs[ks[0]])
    (batch,) = workloads.train_feed(configs[ks[0]]).next(1)
    computation = Computation(bare, jax.device_put(batch.examples))
    bare.train(steps)
    computation.run(steps)
    with contextlib.ExitStack() as stack:
        engines = {k: stack.enter_context(interleaved.EngineLoop(config, steps)) for k, config in configs.items()}
        loops = {f"K={k}": engine.turn for k, engine in engines.items()}
        loops |= {"bare": lambda: bare.train(steps), "computation": lambda: computation.run(steps)}
        times = interleaved.interleave(loops, turns, title=f"dispatch, {name}")
    micro = {loop: [1e6 * s / steps for s in seconds] for loop, seconds in times.items()}
    return Times(
        micro["bare"],
        micro["computation"],
        {k: micro[f"K={k}"] for k in ks},
        losses={k: engine.losses() for k, engine in engines.items()},
        bare_losses={step: loss for step, (loss, _) in bare.logged.items()},
    )


def _blocks(config: Any, seconds: float) -> int:
    """Returns how many blocks of steps of the bare loop take so long."""
    bare = workloads.bare_loop(config)
    bare.train(BLOCK)
    begin = time.perf_counter()
    bare.train(4 * BLOCK)
    return max(1, round(4 * seconds / (time.perf_counter() - begin)))


def row(name: str, times: Times) -> Row:
    """Returns the row of a model: the gain of the largest K."""
    *others, largest = (k for k in times.engine if k > 1)
    gains = ", ".join(f"K = {k}: {statistics.median(times.gain(k)):.2f}" for k in others)
    host = f"bare step {statistics.median(times.bare) / 1e3:.2f} ms, host {100 * times.host_share:.0f} %"
    return Row(
        f"time with 1 / with {largest} steps a dispatch: perceptron {name}",
        times.gain(largest),
        at_least=1.5 if times.host_share > 0.5 else 1.0,
        note="; ".join(filter(None, (gains, host))),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.15, help="length of a turn of the bare loop")
    parser.add_argument("--blocks", type=int, help="length of a turn in blocks of 32 steps, in place of --seconds")
    parser.add_argument("--only", choices=SIZES)


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measures each model and yields its row."""
    for name in SIZES if args.only is None else (args.only,):
        yield row(name, measure(name, args.turns, args.seconds, args.blocks))


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--only=16-8-10", "--turns=1", "--blocks=1"))
