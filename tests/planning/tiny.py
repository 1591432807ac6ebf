"""A tiny model, its cost model on one host of H100, and candidates by their axes."""

import functools
import math

import jax

from engine.config import defaults
from engine.config.hardware import AXES
from engine.entry import resolve_config
from engine.planning import machine as machines
from engine.planning.candidates import Candidate
from engine.planning.cost import CostModel
from engine.planning.machine import Machine
from engine.planning.targets import parse
from engine.planning.tracing import Traces
from tests import zoo

ROWS = 32


def machine(text: str) -> Machine:
    """Returns the machine of a target."""
    target = parse(text)
    assert target is not None
    return machines.of_target(target)


def candidate(**settings) -> Candidate:
    """Returns a candidate by its axes and settings: `candidate(data=2, remat="full")`."""
    sizes = [settings.pop(axis, 1) for axis in AXES]
    return Candidate(tuple(sizes), (1,) * len(AXES), **settings)


@functools.cache
def program():
    """Returns the program on one device."""
    return zoo.program(zoo.Classify(width=64), batch_size=ROWS, devices=jax.devices()[:1])


@functools.cache
def config():
    """Returns a config for the program."""
    found = defaults()
    found.task.target, found.data.target = "tests.zoo.Classify", "tests.zoo.Points"
    found.train.global_batch_size = ROWS
    return resolve_config(found)


@functools.cache
def traces() -> Traces:
    """Returns the traces of the program."""
    return Traces(program(), config(), dict.fromkeys(("float32", "bfloat16"), 10.0), 4, print)


@functools.cache
def model() -> CostModel:
    """Returns the cost model on a host of H100."""
    return CostModel(traces(), machine("h100:1x8"))


def numbers() -> int:
    """Returns the number of parameters."""
    return sum(math.prod(x.shape) for x in program().abstract_state.params.values())
