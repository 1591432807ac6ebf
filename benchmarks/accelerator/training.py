"""The rows that train a model: the engine, a hand-written JAX loop and a hand-written PyTorch loop.

Each loop is a process with the same first weights and batches. They run in turns, so that what else happens on the
machine affects all of them; a model whose state does not fit into memory three times runs one loop after the other.
"""

import contextlib
import dataclasses
import statistics
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from benchmarks.accelerator.context import Context, Machine, Skipped
from benchmarks.accelerator.jobs import Job
from benchmarks.accelerator.models import Decoder, Model
from benchmarks.accelerator.runner import last_line
from benchmarks.worker import Worker

ENGINE, PLAIN, TORCH = "engine", "plain JAX", "PyTorch"
MODULES = {ENGINE: "engine_worker", PLAIN: "plain_worker", TORCH: "torch_worker"}
FIRST_STEPS = 4
"""Steps whose losses are compared: later ones drift apart by rounding."""
TOLERANCES = {"bfloat16": 0.01, "float32": 0.002}
"""Largest difference of these losses, relative to the loss. bfloat16 has 8 bits of mantissa, TF32 has 10."""
RESERVE_S = 15.0
"""Time that a loop leaves for the end of the row."""


@dataclasses.dataclass
class Measured:
    """What one loop took: seconds of its first turn, seconds a step of the others, losses, and peak memory."""

    first_s: float = 0.0
    step_s: list[float] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0
    error: str = ""
    late: bool = False  # whether the error is the time limit


def run(context: Context, name: str, *options: str) -> None:
    """Measures the loops of a model.

    Args:
        context: context of the row.
        name: name of the model.
        *options: "packed" gives the engine rows with segment ids; "fsdp" splits the model over all devices; "no-torch"
            leaves out PyTorch.
    """
    devices = context.machine.devices if "fsdp" in options else 1
    if "fsdp" in options and devices == 1:
        raise Skipped("one device")
    job = Job(name, context.tiny, packed="packed" in options, devices=devices)
    jobs = {ENGINE: job, PLAIN: job}
    if context.machine.torch and "no-torch" not in options:
        jobs[TORCH] = job
    measured = measure(context, jobs, together=job.model.together or context.machine.platform == "cpu")
    report(context, job, measured)
    if TORCH not in jobs:
        context.record(TORCH, step_ms="not measured" if "no-torch" in options else context.machine.no_torch)


def measure(context: Context, jobs: Mapping[str, Job], together: bool) -> dict[str, Measured]:
    """Runs each loop: all of them in turns, or one after the other. The first turn of a loop compiles.

    PyTorch, which takes longest to compile, joins the others after their first measured turn and gets the time that
    they leave.
    """
    found = {name: Measured() for name in jobs}
    model = next(iter(jobs.values())).model
    for group in [list(jobs)] if together else [[name] for name in jobs]:
        with contextlib.ExitStack() as stack:
            workers = {name: stack.enter_context(_start(context, name, jobs[name], together)) for name in group}
            late = [name for name in group if name == TORCH and len(group) > 1]
            early = [name for name in group if name not in late]
            for turn in range(model.turns + 1):
                if turn == 2:
                    others_s = model.turns * model.steps * sum(s for name in early for s in found[name].step_s)
                    reserve_s = RESERVE_S + max(RESERVE_S, 1.5 * others_s)
                    for name in late:
                        _turn(context, name, workers[name], model.steps, found[name], reserve_s)
                    early, late = group, []
                for name in early if turn % 2 == 0 else reversed(early):
                    if not found[name].error:
                        _turn(context, name, workers[name], model.steps, found[name])
            for name in group:
                if not found[name].error:
                    found[name].peak_bytes = workers[name].close()
    return found


def _start(context: Context, name: str, job: Job, together: bool) -> Worker:
    """Starts a loop. One that is alone may use nearly all memory of the device."""
    python = context.machine.torch if name == TORCH else sys.executable
    command = [python, "-m", f"benchmarks.accelerator.{MODULES[name]}", str(job)]
    env = {}
    if name == TORCH:  # its own cache: a worker that was killed while it compiled leaves incomplete files
        env["TORCHINDUCTOR_CACHE_DIR"] = str(context.results.parent / "inductor")
    if not together:
        env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.92"
    with open(_errors(context, name), "w") as errors:
        return Worker(command, env, errors)


def _errors(context: Context, name: str) -> Path:
    """Returns the file with the standard error of a loop."""
    return context.results.with_name(f"{name}.err")


def _turn(
    context: Context, name: str, worker: Worker, steps: int, measured: Measured, reserve_s: float = RESERVE_S
) -> None:
    """Runs one turn of a loop. A loop that fails, or that leaves less time than the reserve, ends with an error."""
    limit = context.remaining_s() - reserve_s
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        worker.kill()

    timer = threading.Timer(max(limit, 0.0), expire)
    timer.start()
    try:
        seconds, *losses = worker.turn(steps)
    except RuntimeError as error:
        measured.late = expired.is_set()
        text = f"no result after {max(limit, 0):.0f} s, which is what the limit and the other loops leave"
        output = _errors(context, name).read_text(errors="replace")
        print(f"{name}: {error}\n{output}", file=sys.stderr)
        measured.error = text if measured.late else last_line(output)
        return
    finally:
        timer.cancel()
    if measured.first_s:
        measured.step_s.append(seconds / steps)
    else:
        measured.first_s = seconds
    measured.losses += losses


def report(context: Context, job: Job, found: Mapping[str, Measured]) -> None:
    """Records a line for each loop, the summary, and as problems what went wrong."""
    model, engine = job.model, found[ENGINE]
    tolerance = TOLERANCES[model.precision]
    for name, loop in found.items():
        if not loop.step_s:
            context.record(name, step_ms="failed")
        else:
            context.record(name, **_columns(context.machine, job, loop, engine))
        if loop.error:
            context.problem(f"{name}: {loop.error}", loop.late)
        if loop.losses and engine.losses and (difference := _difference(loop, engine)) > tolerance:
            context.problem(f"{name}: the losses of the first steps differ by {difference:.1e} from the engine's")
    context.note(_description(job, model))
    baselines = {name: loop for name, loop in found.items() if name in (PLAIN, TORCH) and loop.step_s}
    if not engine.step_s or not baselines:
        return
    best = min(baselines, key=lambda name: statistics.median(baselines[name].step_s))
    ratio = statistics.median(engine.step_s) / statistics.median(baselines[best].step_s)
    context.summary(f"step time {ratio:.3f} of {best}", ratio)


def _columns(machine: Machine, job: Job, loop: Measured, engine: Measured) -> dict[str, float | str | list[float]]:
    model, median = job.model, statistics.median(loop.step_s)
    peak = machine.peak_flops(model.precision, job.devices)
    mfu = f"{100 * model.flops_per_step / median / peak:.1f} %" if peak and model.flops_per_step else "-"
    return {
        "step_ms": [1e3 * seconds for seconds in loop.step_s],
        f"{model.units}/s": model.units_per_step / median,
        "MFU": mfu,
        "peak_GiB": loop.peak_bytes / 2**30,
        "compile_s": max(0.0, loop.first_s - model.steps * median),
        "loss": f"{loop.losses[0]:.3f} to {loop.losses[-1]:.3f}",
        "loss_difference": _difference(loop, engine) if engine.losses else "-",
    }


def _difference(loop: Measured, engine: Measured) -> float:
    """Returns the largest relative difference of the losses of the first steps; NaN never compares as equal."""
    pairs = zip(loop.losses[:FIRST_STEPS], engine.losses[:FIRST_STEPS], strict=True)
    differences = [abs(a - b) / abs(b) for a, b in pairs]
    return max(differences) if all(d == d for d in differences) else float("inf")


def _description(job: Job, model: Model) -> str:
    what = f"{model.parameters:,} parameters, batch {model.batch}"
    if isinstance(model, Decoder):
        what += f" x {model.time} tokens"
    if job.packed:
        what += ", the engine's attention with segments, that of the others without"
    if job.devices > 1:
        what += f", split over {job.devices} devices"
    return (
        f"{what}, {model.precision} with float32 weights and AdamW state, no recomputation; compile_s: the first turn "
        "without the time of its steps; peak_GiB: of the device, on a CPU of the process"
    )
