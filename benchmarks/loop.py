"""What the engine's loop costs: its time a step over that of a loop by hand, one step a dispatch.

tools/bazel run //benchmarks:loop [-- --turns 12 --seconds 0.6]
python -m benchmarks.loop

Three models: a 784-256-128-10 perceptron at batch 128, a small CNN at batch 128, the digits at batch 64. Both loops run
in one process on the same batches and devices, in turns (`bare.py`, `interleaved.py`). Prints the median and the range
of the ratio of neighbouring turns. Fails on nothing.
"""

import argparse
import statistics
import time

from benchmarks import interleaved, workloads


def measure(name: str, count: int, seconds: float, steps: int | None = None) -> tuple[list[float], list[float]]:
    """Returns the milliseconds a step of each turn: the engine's, and those of the loop by hand.

    Args:
        name: of the model.
        count: turns of each loop.
        seconds: length of a turn; `steps`, if given, takes its place.
    """
    if steps is None:
        steps = steps_for(name, seconds)
    config = workloads.config(name, steps=interleaved.total(steps, count))
    bare = workloads.bare_loop(config)
    bare.train(steps)
    with interleaved.EngineLoop(config, steps) as engine:
        times = interleaved.interleave({"engine": engine.turn, "bare": lambda: bare.train(steps)}, count)
    return [1e3 * s / steps for s in times["engine"]], [1e3 * s / steps for s in times["bare"]]


def steps_for(name: str, seconds: float) -> int:
    """Returns how many steps by hand take so long."""
    bare = workloads.bare_loop(workloads.config(name, steps=1000))
    bare.train(10)
    begin = time.perf_counter()
    bare.train(40)
    return max(10, int(40 * seconds / (time.perf_counter() - begin)))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.6, help="of a turn")
    parser.add_argument("--steps", type=int, help="of a turn, in place of --seconds")
    parser.add_argument("--only", choices=workloads.NAMES)
    args = parser.parse_args()
    print(interleaved.machine())
    for name in workloads.NAMES if args.only is None else (args.only,):
        engine, bare = measure(name, args.turns, args.seconds, args.steps)
        ratio, medians = interleaved.ratios(engine, bare), statistics.median(engine) / statistics.median(bare)
        print(
            f"{name:7} engine / bare {interleaved.spread(ratio, 3)}  engine {interleaved.spread(engine, 3)} ms  "
            f"bare {interleaved.spread(bare, 3)} ms  ratio of medians {medians:.3f}",
            flush=True,
        )
    print("target: at most 1.05")


if __name__ == "__main__":
    main()
