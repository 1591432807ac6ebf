"""Measures the step of a decoder: the engine over hand-written loops in JAX and in PyTorch.

tools/bazel run //benchmarks:decoder [-- --torch=PYTHON]
python -m benchmarks.decoder --torch=PYTHON

d_model 256, 4 layers, 8 heads, d_ff 1024, sequence 256, batch 8, vocabulary 512, float32, AdamW: 4.5 million
parameters. Each loop runs in a separate process, all with the same first weights and batches, in turns. The engine has
`mesh.cpu_devices=auto` and huge pages, as its command line does; the others have one device, a thread for each core.
A turn is long because freed huge pages cost the first step after a pause of a second 0.2 to 0.3 s on a virtual machine.
PYTHON is an interpreter that has torch. The exit code does not depend on the target.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks import decoder_inputs, interleaved, report
from benchmarks.decoder_inputs import Sizes
from benchmarks.report import Row
from benchmarks.worker import Worker

ENGINE = "engine"
TARGETS = {"plain JAX": 0.55, "PyTorch": 0.80}
FIRST_STEPS, TOLERANCE = 5, 1e-3
"""Losses of the first steps differ by rounding only; later ones drift apart as in every training."""


class Results(NamedTuple):
    """By name of the loop: seconds a step of each turn, the loss of every step, and the most bytes of memory."""

    seconds: dict[str, list[float]]
    losses: dict[str, list[float]]
    peak: dict[str, int]

    def loss_difference(self, name: str, steps: int | None = None) -> float:
        """Returns the largest difference between the engine's losses and those of another loop."""
        pairs = zip(self.losses[ENGINE][:steps], self.losses[name][:steps], strict=True)
        return max(abs(a - b) for a, b in pairs)


def measure(sizes: Sizes, turns: int, steps: int, torch: str | None = None) -> Results:
    """Starts a worker for each loop and runs them in turns.

    Raises:
        RuntimeError: the loops did not train the same model on the same batches, or a worker ended.
    """
    here = Path(__file__).parent
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="convoy-benchmark-"))
        inputs = Path(folder) / "inputs.npz"
        decoder_inputs.write(inputs, sizes, interleaved.total_steps(steps, turns))
        module = [sys.executable, "-m"]
        commands = {
            ENGINE: [*module, "benchmarks.decoder_engine", str(inputs), str(steps), str(turns)],
            "plain JAX": [*module, "benchmarks.decoder_plain", str(inputs)],
        }
        if torch:
            commands["PyTorch"] = [torch, str(here / "decoder_torch.py"), str(inputs)]
        workers = {
            name: stack.enter_context(Worker(command, {"PYTHONPATH": python_path(name)}))
            for name, command in commands.items()
        }
        return run_turns(workers, turns, steps)


def python_path(name: str) -> str:
    """Returns PYTHONPATH of a loop. The interpreter with torch may be another version, and has its own packages."""
    return "" if name == "PyTorch" else os.pathsep.join(sys.path)


def run_turns(workers: Mapping[str, Worker], turns: int, steps: int) -> Results:
    """Runs one turn that compiles, then `turns` measured turns of each worker, and ends the workers."""
    report.progress("decoder: compiling")
    losses = {name: worker.turn(steps) for name, worker in workers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for i in range(turns):
        report.progress(f"decoder: turn {i + 1} of {turns}")
        for name in list(workers) if i % 2 == 0 else reversed(list(workers)):
            begin = time.perf_counter()
            losses[name] += workers[name].turn(steps)
            seconds[name].append((time.perf_counter() - begin) / steps)
    results = Results(seconds, losses, {name: worker.close() for name, worker in workers.items()})
    for name in workers:
        if (difference := results.loss_difference(name, FIRST_STEPS)) > TOLERANCE:
            raise RuntimeError(f"the losses of {name} and the engine differ by {difference:.1e} in the first steps")
    return results


def rows(results: Results, sizes: Sizes) -> Iterator[Row]:
    """Yields the rows of what `measure` returned."""
    engine_s = statistics.median(results.seconds[ENGINE])
    tokens = sizes.batch * sizes.time / engine_s
    for name in (name for name in results.seconds if name != ENGINE):
        other_s = statistics.median(results.seconds[name])
        yield Row(
            f"decoder step, engine / {name}",
            report.ratios(results.seconds[ENGINE], results.seconds[name]),
            digits=3,
            at_most=TARGETS[name],
            note=f"engine {engine_s:.3f} s, {tokens:,.0f} tokens/s; {name} {other_s:.3f} s; peak memory "
            f"{results.peak[ENGINE] / results.peak[name]:.2f}; losses differ by at most "
            f"{results.loss_difference(name):.1e}",
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="length of a turn")
    parser.add_argument("--small", action="store_true", help="a tiny decoder, to try the program")


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measures and yields a row for each hand-written loop."""
    sizes = decoder_inputs.SMALL if args.small else Sizes()
    yield from rows(measure(sizes, args.turns, args.steps, args.torch), sizes)


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--small", "--turns=1", "--steps=3"))
