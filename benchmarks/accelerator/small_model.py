"""Row `dispatch`: K steps in one dispatch, on a small model whose step is shorter than the host's work for it."""

import statistics

from benchmarks import dispatch
from benchmarks.accelerator.context import Context


def run(context: Context) -> None:
    """Measures the bare loop and the engine with each K."""
    name, turns, blocks = ("16-8-10", 2, 1) if context.tiny else ("784-256-128-10", 5, None)
    ks = (1, 32) if context.tiny else dispatch.KS
    times = dispatch.measure(name, turns, seconds=0.3, blocks=blocks, ks=ks, cache__compiled=False)
    context.record("plain JAX, one step in a dispatch", step_us=times.bare)
    context.record("its computation alone", step_us=times.computation)
    for k, micro in times.engine.items():
        context.record(f"engine, K = {k}", step_us=micro)
    context.note(f"perceptron {name}")
    fastest = max(times.engine)
    ratio = statistics.median(times.engine[fastest]) / statistics.median(times.bare)
    gain = statistics.median(times.gain(fastest))
    context.summary(
        f"step time with K = {fastest} {ratio:.3f} of plain JAX; K = 1 takes {gain:.2f} times as long", ratio
    )
