"""Row `first-step`: from the start of a process to its first step, with an empty and a filled compile cache."""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import first_step
from benchmarks.accelerator.context import Context
from benchmarks.accelerator.jobs import Job


def run(context: Context) -> None:
    """Starts the engine's command line and a hand-written script, cold and warm."""
    job = Job("decoder-125m", context.tiny)
    times = first_step.measure(1, commands(job))
    for name in ("engine", "plain JAX"):
        context.record(name, cold_s=times[f"{name} cold"], warm_s=times[f"{name} warm"])
    context.note("the decoder of row decoder-125m; warm: the compile cache holds what the cold start compiled")
    cold, warm = (
        statistics.median(times[f"engine {kind}"]) / statistics.median(times[f"plain JAX {kind}"])
        for kind in ("cold", "warm")
    )
    context.summary(f"cold start {cold:.2f}, warm start {warm:.2f} of plain JAX", warm)


def commands(job: Job) -> dict[str, Callable[[Path], list[str]]]:
    """Returns the commands, each a function of the folder for a run directory."""

    def engine(folder: Path) -> list[str]:
        file = folder.with_suffix(".py")
        file.write_text(
            "from benchmarks.accelerator import engine_config\n"
            f"def get_config():\n    return engine_config.first_step({str(job)!r})\n"
        )
        return [sys.executable, "-m", "engine.cli.main", "train", f"--config={file}", f"--workdir={folder}"]

    def plain(folder: Path) -> list[str]:
        return [sys.executable, "-m", "benchmarks.accelerator.plain_worker", str(job), "first step"]

    return {"engine": engine, "plain JAX": plain}
