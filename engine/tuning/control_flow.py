"""Loops and branches: where a program on a CPU is faster without a loop, or with a branch."""

from typing import NamedTuple

UNROLLED_LAYERS = 4
"""Layers of a stack that are unrolled on a CPU: there a loop over layers copies what each keeps for its gradient, a
tenth of a step's time in the decoder of benchmarks/decoder.py. More layers would take too long to compile."""


class StepControlFlow(NamedTuple):
    """How a train step repeats and skips work."""

    unroll: bool  # microbatches and steps are unrolled instead of scanned
    branch: bool  # a skipped update is a branch instead of a selection for each number


def step_control_flow(platform: str, has_convolution: bool) -> StepControlFlow:
    """Returns how the train step of a model is built.

    On a CPU a loop around a convolution is 10 times slower and rounds differently. Without convolutions a branch is
    faster there: to select each number of the optimizer's state costs 5 % of a small step.
    """
    on_cpu = platform == "cpu"
    return StepControlFlow(unroll=on_cpu and has_convolution, branch=on_cpu and not has_convolution)


def unrolls_layers(platform: str, count: int) -> bool:
    """Returns whether a stack of `count` layers is unrolled instead of scanned."""
    return platform == "cpu" and count <= UNROLLED_LAYERS
