"""A training loop with trackers in a process of its own, one turn at a time (`benchmarks/worker.py`).

python -m benchmarks.trackers.loop_worker STEPS TURNS FOLDER [NAME...]

A turn reports the seconds that it took, and the CPU seconds of this process since its start: the difference between two
turns includes what the threads of the trackers do while the other loop runs.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence

from benchmarks import interleaved, workloads
from benchmarks.worker import serve
from engine.base.duration import Duration
from engine.config.schema import Config, Target
from engine.trackers.push import KINDS, arguments_of

ROW_STEPS = 50  # log.every: the default


def tracked_config(steps: int, turns: int, folder: str, names: Sequence[str], model: str = workloads.CNN) -> Config:
    """Returns the config of a run that sends its rows to trackers.

    Args:
        steps: steps of a turn.
        turns: number of turns.
        folder: where the trackers write to.
        names: the trackers.
        model: name of the model.
    """
    config = workloads.config(model, steps=interleaved.total_steps(steps, turns))
    trackers = {name: Target(target=KINDS[name], arguments=_arguments(name, folder)) for name in names}
    log = dataclasses.replace(config.log, every=Duration(ROW_STEPS, "steps"), trackers=trackers)
    return dataclasses.replace(config, log=log)


def _arguments(name: str, folder: str) -> dict[str, str]:
    if name == "mlflow":
        return arguments_of(name, f"sqlite:///{folder}/mlflow.db", "benchmark")
    if name in ("csv", "tensorboard"):
        return arguments_of(name, f"{folder}/{name}", None)
    return arguments_of(name, None, "benchmark")


def main(steps: str, turns: str, folder: str, *names: str) -> None:
    """Runs the worker until its input ends."""
    with interleaved.EngineLoop(tracked_config(int(steps), int(turns), folder, names), int(steps)) as loop:

        def turn(_: int) -> list[float]:
            begin = time.perf_counter()
            loop.turn()
            return [time.perf_counter() - begin, time.process_time()]

        serve(turn)


if __name__ == "__main__":
    main(*sys.argv[1:])
