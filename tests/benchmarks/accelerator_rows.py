"""Rows of the accelerator benchmark for its tests: each works, fails, or takes too long."""

import time

from benchmarks.accelerator.context import Context, Skipped


def works(context: Context) -> None:
    """Records a line and a summary."""
    context.record("engine", step_ms=[1.0, 3.0, 2.0])
    context.summary("step time 0.900 of plain JAX", 0.9)


def fails(context: Context) -> None:
    """Records a line, then raises an error."""
    context.record("engine", step_ms=[1.0])
    raise RuntimeError("the kernel is broken")


def is_wrong(context: Context) -> None:
    """Reports a problem and measures the rest."""
    context.problem("wrong: causal")
    context.record("engine", step_ms=[1.0])


def is_late(context: Context) -> None:
    """Leaves out a measurement for lack of time."""
    context.problem("PyTorch: no result after 5 s", late=True)


def is_skipped(context: Context) -> None:
    """Cannot be measured here."""
    raise Skipped("one device")


def takes_long(context: Context) -> None:
    """Records a line, then does not end."""
    context.record("engine", step_ms=[4.0])
    time.sleep(600)
