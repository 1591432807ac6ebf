"""Loops and branches of the compiled steps: on a CPU a program may be faster unrolled, or with a branch."""

from typing import NamedTuple

MAX_UNROLLED_STEPS = 128
"""Largest product of microbatches and steps per dispatch that may be unrolled. Each takes 2.6 s and 38 MiB to compile
in the CNN of configs/fashion_mnist.py."""


class StepControlFlow(NamedTuple):
    """How a train step is built."""

    unroll: bool  # unroll microbatches and steps instead of scanning
    branch: bool  # skip an update by a branch instead of a selection of each value


def step_control_flow(platform: str, has_convolution: bool) -> StepControlFlow:
    """Returns how to build the train step of a model.

    On a CPU a loop around a convolution is 10 times slower and rounds differently. Without convolutions a branch is
    faster on a CPU: selecting each value of the optimizer state costs 5 % of a small step.
    """
    on_cpu = platform == "cpu"
    return StepControlFlow(unroll=on_cpu and has_convolution, branch=on_cpu and not has_convolution)
