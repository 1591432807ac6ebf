"""What K steps in one dispatch bring: steps a second by `train.steps_per_dispatch`, and the gain by size of the model.

tools/bazel run //benchmarks:dispatch [-- --turns 5 --seconds 0.15]
python -m benchmarks.dispatch

A series of perceptrons, from one whose step is nearly all host overhead to one of a millisecond. For each: the loop by
hand (`bare.py`), what its step computes (32 of its steps in one program, on a batch that lies on the device), and the
engine with K = 1, 2, 8, 32, all in turns in one process. *Host*: the part of the bare step that is not computing.
*Gain*: the time with K = 1 over that with K. Fails on nothing.
"""

import argparse
import contextlib
import statistics
import time

import jax

from benchmarks import interleaved, workloads
from benchmarks.bare import Bare

KS = (1, 2, 8, 32)
BLOCK = 32  # steps in the program that only computes; a turn is a multiple of it
SIZES = {  # name -> layer sizes, batch
    "16-8-10": ((16, 8, 10), 8),
    "64-32-10": ((64, 32, 10), 32),
    "64-128-128-10": ((64, 128, 128, 10), 64),
    "256-128-64-10": ((256, 128, 64, 10), 128),
    "784-256-128-10": ((784, 256, 128, 10), 128),
}


class Computing:
    """The step of a loop by hand, over and over on one batch: no feed, and one call for many steps."""

    def __init__(self, bare: Bare):
        batch = jax.device_put(bare.feed.next(1)[0].examples)
        self._state = bare.state
        self._steps = jax.jit(
            lambda state: jax.lax.scan(lambda s, _: bare.step(s, batch), state, length=BLOCK)[0], donate_argnums=0
        )

    def train(self, steps: int) -> None:
        for _ in range(steps // BLOCK):
            self._state = self._steps(self._state)
        jax.block_until_ready(self._state)


def measure(name: str, count: int, seconds: float, blocks: int | None = None) -> dict[str, list[float]]:
    """Returns microseconds a step of each turn: of "bare", "computing", and of the engine by K.

    Args:
        name: of SIZES.
        count: turns of each loop.
        seconds: length of a turn of the loop by hand; `blocks` of 32 steps, if given, takes its place.
    """
    sizes, batch_size = SIZES[name]
    model = {"task__sizes": sizes, "data__size": sizes[0], "train__global_batch_size": batch_size}
    if blocks is None:
        blocks = _blocks(workloads.config("mlp", steps=8 * BLOCK, **model), seconds)
    steps = blocks * BLOCK
    configs = {k: _config(interleaved.total(steps, count), k, model) for k in KS}
    bare = workloads.bare_loop(configs[1])
    computing = Computing(workloads.bare_loop(configs[1]))
    bare.train(steps)
    computing.train(steps)
    with contextlib.ExitStack() as stack:
        loops = {f"K={k}": stack.enter_context(interleaved.EngineLoop(c, steps)).turn for k, c in configs.items()}
        loops |= {"bare": lambda: bare.train(steps), "computing": lambda: computing.train(steps)}
        times = interleaved.interleave(loops, count)
    return {loop: [1e6 * s / steps for s in seconds] for loop, seconds in times.items()}


def _config(steps: int, k: int, model: dict):
    # A row of metrics cuts no dispatch, however often it comes; a period of 64 leaves K = 32 whole in any case.
    return workloads.config("mlp", steps=steps, train__steps_per_dispatch=k, log__every=f"{2 * BLOCK} steps", **model)


def _blocks(config, seconds: float) -> int:
    """How many blocks of steps by hand take so long."""
    bare = workloads.bare_loop(config)
    bare.train(BLOCK)
    begin = time.perf_counter()
    bare.train(4 * BLOCK)
    return max(1, round(4 * seconds / (time.perf_counter() - begin)))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.15, help="of a turn of the loop by hand")
    parser.add_argument("--blocks", type=int, help="of 32 steps, in place of --seconds")
    parser.add_argument("--only", choices=SIZES)
    args = parser.parse_args()
    print(interleaved.machine())
    for name in SIZES if args.only is None else (args.only,):
        times = measure(name, args.turns, args.seconds, args.blocks)
        host = [1 - a / b for a, b in zip(times["computing"], times["bare"], strict=True)]
        speed = "  ".join(f"K={k} {1e6 / statistics.median(times[f'K={k}']):,.0f}" for k in KS)
        gain = "  ".join(
            f"K={k} {interleaved.spread(interleaved.ratios(times['K=1'], times[f'K={k}']))}" for k in KS[1:]
        )
        bare = interleaved.spread(times["bare"], 0)
        print(
            f"{name:15} bare step {bare} us, host {100 * statistics.median(host):.0f} %",
            f"{'':15} steps/s  {speed}",
            f"{'':15} gain over K=1  {gain}",
            sep="\n",
            flush=True,
        )
    print("target: K = 32 never slower than K = 1, and 1.5 times as fast where the host is over half of the bare step")


if __name__ == "__main__":
    main()
