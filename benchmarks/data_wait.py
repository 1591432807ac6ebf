"""How much of a run the loop waits for data, while it trains.

tools/bazel run //benchmarks:data_wait [-- --turns 8]
python -m benchmarks.data_wait

For each model, turns of the engine's loop; the share is what the run itself tells in each row as `data_wait`: the time
from asking for a block of batches until it is there, and not what it costs to take a batch of one that is. So a row may
hold a wait for many steps or none: the share of all rows together is printed, and the range of single ones. Beside it,
in turns with it, median and range of a batch from the feed alone: a loop that computes for longer need not wait. Fails
on nothing.
"""

import argparse
import statistics

from benchmarks import interleaved, workloads
from benchmarks.loop import steps_for


def measure(name: str, count: int, seconds: float, steps: int | None = None) -> tuple[list[tuple[float, float]], dict]:
    """Returns the share and the seconds of each row, and the milliseconds a step of the engine and a batch alone."""
    if steps is None:
        steps = steps_for(name, seconds)
    config = workloads.config(name, steps=interleaved.total(steps, count))
    feed = workloads.bare_loop(config).feed
    with interleaved.EngineLoop(config, steps) as engine:
        engine.rows.clear()
        draw = {"engine": engine.turn, "feed": lambda: [feed.next(1) for _ in range(steps)]}
        times = interleaved.interleave(draw, count)
    rows = [(row["data_wait"], row["step_time_s"]) for row in engine.rows if "data_wait" in row]
    return rows, {loop: [1e3 * s / steps for s in values] for loop, values in times.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    parser.add_argument("--steps", type=int, help="of a turn, in place of --seconds")
    parser.add_argument("--only", choices=workloads.NAMES)
    args = parser.parse_args()
    print(interleaved.machine())
    for name in workloads.NAMES if args.only is None else (args.only,):
        rows, times = measure(name, args.turns, args.seconds, args.steps)
        shares, seconds = zip(*rows, strict=True)
        mean, least, most = 100 * statistics.fmean(shares, seconds), 100 * min(shares), 100 * max(shares)
        print(
            f"{name:7} waiting {mean:.2f} ({least:.2f}-{most:.2f}) % of the time  "
            f"step {interleaved.spread(times['engine'], 3)} ms  batch alone {interleaved.spread(times['feed'], 3)} ms",
            flush=True,
        )
    print("target: below 1 %")


if __name__ == "__main__":
    main()
