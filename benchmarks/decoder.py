"""A decoder's step: the engine over a loop by hand in plain JAX, and over one in plain PyTorch.

tools/bazel run //benchmarks:decoder [-- --torch=PYTHON]
python -m benchmarks.decoder --torch=PYTHON

d_model 256, 4 layers, 8 heads, d_ff 1024, sequence 256, batch 8, vocabulary 512, float32, AdamW: 4.5 million
parameters. Each loop is a process of its own (`decoder_engine.py`, `decoder_plain.py`, `decoder_torch.py`) with the
same first weights and the same batches, and they run in turns. The engine runs `mesh.cpu_devices=auto`, the plain loops
one device with a thread for each core. The engine starts with huge pages, as its
command line does (`engine/tuning/huge_pages.py`), the plain loops without. A turn is long, since huge pages that were
given back cost the first step after a pause of a second 0.2 to 0.3 s on a virtual machine. PYTHON is an interpreter
that has torch, in an environment of its own; without it that loop is left out. Prints seconds a step, ratios with their
spread, the largest difference of a loss, and the memory of each process at most. Fails on nothing.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import interleaved
from benchmarks.decoder_plain import BATCH, DEPTH, HIDDEN, TIME, VOCABULARY, WIDTH
from benchmarks.worker import Worker

SHAPES = {
    "embed": (VOCABULARY, WIDTH),
    "head": (WIDTH, VOCABULARY),
    "query": (DEPTH, WIDTH, WIDTH),
    "key": (DEPTH, WIDTH, WIDTH),
    "value": (DEPTH, WIDTH, WIDTH),
    "out": (DEPTH, WIDTH, WIDTH),
    "gate": (DEPTH, WIDTH, HIDDEN),
    "up": (DEPTH, WIDTH, HIDDEN),
    "down": (DEPTH, HIDDEN, WIDTH),
}
"""First weights that are drawn; those of norms are 1."""


def write_inputs(file: Path, steps: int) -> None:
    """Writes first weights and tokens `[steps * batch, time + 1]` of a small Markov chain, which can be learnt."""
    rng = np.random.default_rng(0)
    deviation = {name: 0.02 if name == "embed" else shape[-2] ** -0.5 for name, shape in SHAPES.items()}
    weights = {name: rng.normal(0, deviation[name], shape).astype(np.float32) for name, shape in SHAPES.items()}
    jump = rng.integers(0, VOCABULARY, (VOCABULARY, 4))
    tokens = np.zeros((steps * BATCH, TIME + 1), np.int32)
    for t in range(TIME):
        tokens[:, t + 1] = jump[tokens[:, t], rng.integers(0, 4, len(tokens))]
    np.savez(file, tokens=tokens, **weights)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="of a turn")
    args = parser.parse_args()
    print(interleaved.machine())
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix="convoy-benchmark-") as folder:
        inputs = Path(folder) / "inputs.npz"
        write_inputs(inputs, interleaved.total(args.steps, args.turns))
        commands = {
            "engine": [
                sys.executable,
                "-m",
                "benchmarks.decoder_engine",
                str(inputs),
                str(args.steps),
                str(args.turns),
            ],
            "plain JAX": [sys.executable, "-m", "benchmarks.decoder_plain", str(inputs)],
        }
        if args.torch:
            commands["PyTorch"] = [args.torch, str(here / "decoder_torch.py"), str(inputs)]
        workers = {name: Worker(command, {"PYTHONPATH": os.pathsep.join(sys.path)} if name != "PyTorch" else None)
                   for name, command in commands.items()}  # fmt: skip
        report(*measure(workers, args.turns, args.steps))


def measure(workers: dict[str, Worker], count: int, steps: int):
    """Returns seconds a step of each turn, the losses, and the most bytes, each by name of the worker."""
    losses = {name: worker.turn(steps) for name, worker in workers.items()}  # these turns compile
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for i in range(count):
        for name in list(workers) if i % 2 == 0 else reversed(list(workers)):
            begin = time.perf_counter()
            losses[name] += workers[name].turn(steps)
            seconds[name].append((time.perf_counter() - begin) / steps)
    return seconds, losses, {name: worker.close() for name, worker in workers.items()}


def report(seconds: dict[str, list[float]], losses: dict[str, list[float]], peak: dict[str, int]) -> None:
    """Prints what was measured."""
    for name, times in seconds.items():
        memory = f"{peak[name] / 1e6:,.0f} MB at most"
        print(f"{name:9} {interleaved.spread(times, 3)} s a step, {memory}, last loss {losses[name][-1]:.4f}")
    for name, target in (("plain JAX", 0.55), ("PyTorch", 0.80)):
        if name in seconds:
            difference = max(abs(a - b) for a, b in zip(losses["engine"], losses[name], strict=True))
            ratio = interleaved.ratios(seconds["engine"], seconds[name])
            print(
                f"engine / {name} {interleaved.spread(ratio, 3)}, target at most {target}; "
                f"memory {peak['engine'] / peak[name]:.2f}; losses differ by at most {difference:.1e}"
            )
    print(f"tokens/s of the engine: {BATCH * TIME / statistics.median(seconds['engine']):,.0f}")


if __name__ == "__main__":
    main()
