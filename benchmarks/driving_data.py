"""Trains on two half-labelled datasets at once, and with a memory; and without either. Prints what it brings.

tools/bazel run //benchmarks:driving_data [-- --only joint] [--seeds 0,1,2]
python -m benchmarks.driving_data

joint   `configs/half_labelled.py` against each of its two datasets alone, at as many steps
memory  `configs/drives_sim.py` against the same network without memory

Each seed of each variant is a run in a folder of --workdir. A finished run is kept, and the same command continues an
unfinished one. The intervals are those of the mean difference over the seeds (paired t, 95 %).
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import engine
from convoy_zoo.configs import drives_sim, half_labelled
from engine.base.errors import ConvoyError
from engine.config.override import apply
from engine.experiments.statistics import t_interval

type Results = dict[str, list[float]]
"""Name of a metric -> its value for each seed."""


def joint() -> dict[str, Any]:
    """Returns the configs of both datasets at once, and of each alone."""
    found = {"both": half_labelled.get_config()}
    for kind, other in (("vehicle", "lane"), ("lane", "vehicle")):
        found[kind] = half_labelled.get_config()
        del found[kind].data.sources[other], found[kind].evaluations[f"heldout_{other}"]
    return found


def memory() -> dict[str, Any]:
    """Returns the configs of the network with a memory, and without."""
    found = {"memory": drives_sim.get_config(), "single sweeps": drives_sim.get_config()}
    found["single sweeps"].task.remembers = False
    return found


WORKLOADS: Mapping[str, Callable[[], dict[str, Any]]] = {"joint": joint, "memory": memory}
SHOWN = {
    "joint": ("heldout_vehicle/iou", "heldout_lane/iou"),
    "memory": ("heldout/nds", "heldout/nds/ap", "heldout/nds/velocity_error", "heldout/hidden_recall"),
}
"""Workload -> the metrics of its table."""


def main(argv: Sequence[str] | None = None) -> None:
    """Trains all variants and prints a table for each workload."""
    parser = argparse.ArgumentParser(prog="benchmarks.driving_data", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=WORKLOADS, help="one workload")
    parser.add_argument("--seeds", default="0,1,2", type=_numbers, help="seeds of the runs, at least two")
    parser.add_argument("--workdir", default="runs/driving_data", help="folder of the runs")
    parser.add_argument("overrides", nargs="*", help="fields of the configs, such as train.total='10 steps'")
    args = parser.parse_args(argv)
    for name in [args.only] if args.only else WORKLOADS:
        results = {}
        for variant, config in WORKLOADS[name]().items():
            try:
                apply(config, args.overrides)
            except ConvoyError as error:
                parser.error(str(error))
            folder = Path(args.workdir) / name / variant.replace(" ", "_")
            results[variant] = train(config, args.seeds, folder)
        print(table(results, SHOWN[name]))


def train(config: Any, seeds: Iterable[int], folder: Path) -> Results:
    """Trains a variant with each seed, and returns the latest value of each metric."""
    found: Results = {}
    for seed in seeds:
        config.train.seed, config.log.progress = seed, "none"
        for name, value in engine.train(config, workdir=str(folder / f"seed{seed}")).metrics.items():
            found.setdefault(name, []).append(value)
    return found


def table(results: Mapping[str, Results], names: Sequence[str]) -> str:
    """Returns the mean of each metric by variant, and the difference from the first variant with its interval."""
    (first, own), *others = results.items()
    lines = [f"{first}: " + ", ".join(f"{name} {_mean(own[name])}" for name in names)]
    for variant, found in others:
        for name in names:
            if name in found:
                interval = t_interval([a - b for a, b in zip(own[name], found[name], strict=True)])
                lines.append(
                    f"{variant}: {name} {_mean(found[name])}; {first} differs by {interval.estimate:+.4f} "
                    f"({interval.low:+.4f} to {interval.high:+.4f})"
                )
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4f} ({', '.join(f'{value:.4f}' for value in values)})"


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed are whole numbers, separated by commas") from None
    if len(found) < 2 or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: an interval needs at least two different seeds")
    return found


if __name__ == "__main__":
    main()
