"""Measures how much faster two workers of a Ray cluster write a dataset than one, on work bound by the CPU.

tools/bazel run //benchmarks:ray_data [-- --turns 3 --address HOST:PORT]
python -m benchmarks.ray_data

One and two workers write the same dataset in turns, so that other load affects both. The time is that of the whole
call: it includes the start of the workers. Without --address, the cluster is one of three nodes on this machine, two of
which have one CPU each. The exit code does not depend on the target.
"""

import argparse
import contextlib
import hashlib
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.report import Row
from engine.data.source import BaseSource
from engine.datasets.write import write_dataset
from engine.ray.connection import connect
from engine.ray.pool import RayPool

BLOCK = bytes(4096)


class Costly(BaseSource):
    """Small examples, each of which takes the CPU some time: `rounds` hashes of 4 KiB."""

    def __init__(self, count: int, rounds: int):
        self.count, self.rounds = count, rounds

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        found = index.to_bytes(8, "big")
        for _ in range(self.rounds):
            found = hashlib.sha256(found + BLOCK).digest()
        return {"x": np.frombuffer(found, np.uint8).copy()}

    def fingerprint(self) -> str:
        return f"{self.count} examples of {self.rounds} rounds"


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Yields the address of a cluster of three nodes on this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of Ray: log files of its daemons stay open
        from ray.cluster_utils import Cluster

        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the paths of Ray's sockets must be short
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder})
        try:
            for _ in range(2):
                found.add_node(num_cpus=1)
            yield str(found.address)
        finally:
            found.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def seconds(source: Costly, pool: RayPool, shards: int) -> tuple[float, dict[str, bytes]]:
    """Writes a dataset; returns how long it took, and the bytes of its files."""
    with tempfile.TemporaryDirectory(prefix="convoy-benchmark-") as folder:
        begin = time.perf_counter()
        write_dataset(source, Path(folder) / "costly.arrayrecord", shards=shards, processes=pool)
        took = time.perf_counter() - begin
        # Without the record of lineage, which names the commit of the code.
        found = {path.name: path.read_bytes() for path in Path(folder).iterdir() if ".lineage." not in path.name}
        return took, found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--examples", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=1000, help="hashes of 4 KiB for each example")
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster (default: one is started)")


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Writes in turns with one and two workers, and yields how near to linear two are."""
    source = Costly(args.examples, args.rounds)
    found: dict[int, list[float]] = {1: [], 2: []}
    files = []
    with contextlib.ExitStack() as stack:
        address = args.address or stack.enter_context(cluster())
        stack.callback(connect(address).shutdown)
        for turn in range(args.turns):
            for workers in (1, 2) if turn % 2 == 0 else (2, 1):
                report.progress(f"turn {turn + 1} of {args.turns}: {workers} workers")
                took, content = seconds(source, RayPool(address, workers), args.shards)
                found[workers].append(took)
                files.append(content)
    if different := {name for content in files for name in content if content[name] != files[0].get(name)}:
        raise RuntimeError(f"files depend on the number of workers: {', '.join(sorted(different))}")
    yield Row(
        "convoy data write on Ray: speed of 2 workers / twice that of 1",
        tuple(ratio / 2 for ratio in report.ratios(found[1], found[2])),
        at_least=0.85,
        note=f"1 worker {report.spread(found[1], 1, 's')}, 2 workers {report.spread(found[2], 1, 's')}",
    )


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--turns=1", "--examples=40", "--rounds=10", "--shards=4"))
