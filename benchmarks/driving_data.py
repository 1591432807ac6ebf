"""Trains on two half-labelled datasets at once, and with a memory; and without either. Prints what it brings.

tools/bazel run //benchmarks:driving_data [-- --only joint] [--seeds 0,1,2]
python -m benchmarks.driving_data

joint   `configs/half_labelled.py` against each of its two datasets alone, at as many steps
memory  `configs/drives_sim.py` against the same network without memory

Each seed of each variant is a run in a folder of --workdir. A finished run is kept, and the same command continues an
unfinished one. The intervals are those of the mean difference over the seeds (paired t, 95 %).
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import engine
from convoy_zoo.configs import drives_sim, half_labelled
from convoy_zoo.models.street.half_labelled import Labelled
from engine.base.errors import ConvoyError
from engine.config.override import apply
from engine.experiments.statistics import t_interval


class Kept:
    """A source that keeps its examples in memory, so that each is simulated once for all runs."""

    def __init__(self, source: Any):
        self._source, self._examples = source, dict[int, Any]()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        if index not in self._examples:
            self._examples[index] = self._source[index]
        return dict(self._examples[index])


type Results = dict[str, list[float]]
"""Name of a metric -> its value for each seed."""


def joint(overrides: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    """Yields the configs of both datasets at once and of each alone, with their training data."""
    config = half_labelled.get_config()
    apply(config, overrides)
    kept = {kind: Kept(Labelled(kind, s.count, s.seed)) for kind, s in config.data.sources.items()}
    yield "both", config, engine.Joint(kept)
    for kind, other in (("vehicle", "lane"), ("lane", "vehicle")):
        config = half_labelled.get_config()
        apply(config, overrides)
        del config.evaluations[f"heldout_{other}"]
        yield kind, config, engine.Joint({kind: kept[kind]})


def memory(overrides: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    """Yields the configs of the network with a memory and without; their training data is that of the config."""
    for variant, remembers in (("memory", True), ("single sweeps", False)):
        config = drives_sim.get_config()
        apply(config, overrides)
        config.task.remembers = remembers
        yield variant, config, None


WORKLOADS = {"joint": joint, "memory": memory}
SHOWN = {
    "joint": ("heldout_vehicle/iou", "heldout_lane/iou"),
    "memory": ("heldout/nds", "heldout/nds/ap", "heldout/nds/velocity_error", "heldout/hidden_recall"),
}
"""Workload -> the metrics of its table."""


def main(argv: Sequence[str] | None = None) -> None:
    """Trains all variants and prints a table for each workload."""
    parser = argparse.ArgumentParser(prog="benchmarks.driving_data", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=WORKLOADS, help="one workload")
    parser.add_argument("--seeds", default="0,1,2", type=_numbers, help="seeds of the runs; an interval needs two")
    parser.add_argument("--workdir", default="runs/driving_data", help="folder of the runs")
    parser.add_argument("overrides", nargs="*", help="fields of the configs, such as train.total='10 steps'")
    args = parser.parse_args(argv)
    for name in [args.only] if args.only else WORKLOADS:
        try:
            variants = list(WORKLOADS[name](args.overrides))
        except ConvoyError as error:
            parser.error(str(error))
        results = {}
        for variant, config, data in variants:
            folder = Path(args.workdir) / name / variant.replace(" ", "_")
            results[variant] = train(config, data, args.seeds, folder)
        print(table(results, SHOWN[name]))


def train(config: Any, data: Any, seeds: Iterable[int], folder: Path) -> Results:
    """Trains a variant with each seed, and returns the latest value of each metric."""
    found: Results = {}
    for seed in seeds:
        config.train.seed, config.log.progress = seed, "none"
        for name, value in engine.train(config, data=data, workdir=str(folder / f"seed{seed}")).metrics.items():
            found.setdefault(name, []).append(value)
    return found


def table(results: Mapping[str, Results], names: Sequence[str]) -> str:
    """Returns the mean of each metric by variant, and the difference from the first variant with its interval."""
    (first, own), *others = results.items()
    lines = [f"{first}: " + ", ".join(f"{name} {_mean(own[name])}" for name in names)]
    for variant, found in others:
        for name in names:
            if name in found:
                differences = [a - b for a, b in zip(own[name], found[name], strict=True)]
                text = f"{sum(differences) / len(differences):+.4f}"
                if len(differences) > 1:
                    interval = t_interval(differences)
                    text += f" ({interval.low:+.4f} to {interval.high:+.4f})"
                lines.append(f"{variant}: {name} {_mean(found[name])}; {first} differs by {text}")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4f} ({', '.join(f'{value:.4f}' for value in values)})"


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed are whole numbers, separated by commas") from None
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: a seed occurs twice")
    return found


if __name__ == "__main__":
    main()
