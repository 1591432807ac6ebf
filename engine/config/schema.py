"""The fields of a config: names, types, defaults and what each is for.

One frozen dataclass a section. The comment after a field is its help text (`convoy config --help` prints it).
Values are plain data: str, int, float, bool, None, tuples of them, durations as text ("3 epochs"). Three sections
are open, which means that they take further keys: `task`, `data` and `optimizer` name a `target` by dotted path and
pass it every other key; an open dict (`evaluations`, `hooks`, ...) takes new names on the command line too.

Identity fields decide what the run computes; a resume refuses a change of them (`identity.py`).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Arguments = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A class or function named by dotted path, and the arguments that it is called with."""

    target: str = ""  # dotted path: package.module.Name
    arguments: Arguments = field(default_factory=dict)  # every other key of the section


@dataclass(frozen=True, kw_only=True)
class Data(Target):
    """A source of examples and how it is read; keys that are not listed here go to the target."""

    shuffle: bool = True  # a new order each epoch; evaluations are read in order
    limit: int | None = None  # use the first examples only
    threads: int = 2  # reader threads, each making whole batches
    workers: int = 0  # reader processes instead of threads, for sources that hold the GIL
    prefetch: int = 2  # dispatches whose batches are made ahead, in host memory
    on_error: str = "stop"  # an example that cannot be read: stop, or skip (counted, its id logged)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that the optimizer treats in their own way; the first group that matches counts."""

    match: str = ""  # regular expression, searched in the parameter's path: "^head/"
    learning_rate_scale: float = 1.0  # times optimizer.learning_rate
    weight_decay: float | None = None  # None: the weight_decay of the optimizer


@dataclass(frozen=True, kw_only=True)
class Optimizer(Target):
    """An optax optimizer; keys that are not listed here go to the target (b1, weight_decay, momentum ...)."""

    target: str = "optax.adamw"  # called with learning_rate=schedule and the other keys
    learning_rate: float = 1e-3  # the peak of the schedule
    schedule: str = "cosine"  # constant, linear or cosine, after the warm-up
    warmup: str = "0 steps"  # linear from 0
    final_scale: float = 0.0  # learning rate at the end, times the peak
    clip_norm: float | None = 1.0  # global norm of the gradient; None does not clip
    decay: str = "matrices"  # what weight decay acts on: matrices (two or more dimensions), all, none
    trainable: str = ""  # regular expression of the paths that are trained; empty trains all
    groups: Mapping[str, Group] = field(default_factory=dict)  # name -> Group


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long, how much at once, with which numbers."""

    total: str = "10 epochs"  # steps, examples or epochs
    global_batch_size: int = 128  # examples of one optimizer step, over all devices and microbatches
    seed: int = 0  # of weights, order and randomness
    accumulate: int = 1  # microbatches of one step
    steps_per_dispatch: int = 1  # optimizer steps in one call of the compiled program
    precision: str = "float32"  # float32 or bfloat16: what the model computes in; parameters stay float32
    ema_decay: float | None = None  # average of the weights, used by evaluations and export
    remat: str = "none"  # what layers compute again instead of keeping it: none, full, dots, save:NAMES, offload:NAMES
    offload_optimizer: bool = False  # keep the optimizer's state in host memory between steps


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Slices by axis: the factor of each axis that spans the slow network between slices, 1 for none."""

    pipeline: int = 1  # stages on different slices
    data: int = 1  # copies on different slices; the usual choice
    fsdp: int = 1  # parameters split over slices
    expert: int = 1  # experts split over slices
    context: int = 1  # a sequence split over slices
    tensor: int = 1  # a layer split over slices


@dataclass(frozen=True, kw_only=True)
class MeshSpec:
    """Devices by axis, within a slice: a number, or -1 for what is left. None: what the preset says, or 1."""

    preset: str = "auto"  # a mesh of the hardware table, or auto; axes set below win over it
    pipeline: int | None = None  # layers are split into stages
    data: int | None = None  # copies of the model, each with its own rows; None also takes what is left
    fsdp: int | None = None  # rows and parameters are split
    expert: int | None = None  # rows and the experts of a layer are split
    context: int | None = None  # sequences are split
    tensor: int | None = None  # dimensions of a layer are split
    dcn: Slices = field(default_factory=Slices)  # the same axes between slices, on the slow network
    cpu_devices: int | str | None = None  # CPU devices to make: a number or auto; None leaves it to JAX (1)


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Where each named dimension goes, and how split layers talk to each other."""

    rules: Mapping[str, Any] = field(default_factory=dict)  # logical axis -> mesh axis, tuple of them, or None
    zero1: bool = False  # split the optimizer's state over data too, where parameters are whole
    context: str = "ring"  # attention over a split sequence: ring, or all-to-all (heads instead of positions)
    microbatches: int | None = None  # of the pipeline; None takes two for each stage
    repeats: int = 1  # groups of layers that each pipeline stage holds; more make the bubble smaller


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When the state is saved and which saves are kept."""

    every: str | None = "10 minutes"  # steps, examples, epochs, seconds, minutes or hours; None saves at the end only
    keep_latest: int = 2  # newest checkpoints that stay
    best: str | None = None  # evaluation/metric whose best value decides which further checkpoint stays
    best_mode: str = "max"  # max or min
    keep_best: int = 1  # best checkpoints that stay
    on_failure: str = "continue"  # a save that fails: continue (it is told, the next one is tried), or stop
    timeout: str = "10 minutes"  # a save or restore that takes longer is given up


@dataclass(frozen=True, kw_only=True)
class Init:
    """What a new run begins with, instead of random weights."""

    checkpoint: str = ""  # a run directory, or a step of one: checkpoints/500
    paths: Mapping[str, Any] = field(default_factory=dict)  # prefix here -> prefix there; None: not taken, random


@dataclass(frozen=True, kw_only=True)
class Resilience:
    """What is watched while training, and what happens then."""

    divergence: str = "stop"  # a loss or gradient that is not finite, or a spike: stop, skip the update, or rollback
    spike: float | None = None  # a loss this many times the running median is one too; None does not look
    replica_check: str | None = "1000 steps"  # copies of the state are compared; None does not compare
    hang: str = "60 seconds"  # a step that takes longer than this and 5 times the median is a hang


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A named evaluation: its data and its period."""

    data: Data = field(default_factory=Data)  # read once, in order, each example exactly once
    every: str | None = "1 epoch"  # steps, examples or epochs of training; None evaluates at the end only
    batch_size: int | None = None  # None: as train.global_batch_size
    use_ema: bool = True  # evaluate the averaged weights where train.ema_decay is set


@dataclass(frozen=True, kw_only=True)
class Hook(Target):
    """Something of the user's own, called with the trainer and the step."""

    every: str | None = "1 epoch"  # steps, examples or epochs; None calls it at the end only


@dataclass(frozen=True, kw_only=True)
class Log:
    """What is written while training."""

    every: str = "50 steps"  # steps, examples or epochs between two lines of metrics
    tensorboard: bool = True  # event files beside metrics.jsonl
    progress: str = "auto"  # auto, bar, lines or none
    examples: bool = False  # write which examples each step consumed, for audits: examples/<process>.jsonl


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One window of steps that the profiler records."""

    start: int | None = None  # first step of the window; None does not profile
    steps: int = 5  # length of the window


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The compiled programs that stay on disk between runs."""

    compiled: bool = True  # keep them, in the user's cache directory
    max_gib: float = 2.0  # oldest entries go beyond this size


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run."""

    name: str = ""  # of the config; the default working directory is runs/<name>
    task: Target = field(default_factory=Target)  # the author's Task and its arguments
    data: Data = field(default_factory=Data)  # what it is trained on
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    mesh: MeshSpec = field(default_factory=MeshSpec)
    sharding: Sharding = field(default_factory=Sharding)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    init: Init = field(default_factory=Init)
    resilience: Resilience = field(default_factory=Resilience)
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)  # name -> Evaluation
    hooks: Mapping[str, Hook] = field(default_factory=dict)  # name -> Hook
    log: Log = field(default_factory=Log)
    profile: Profile = field(default_factory=Profile)
    cache: Cache = field(default_factory=Cache)
    tiny: Arguments = field(default_factory=dict)  # overrides of --fast-dev-run: {"train.global_batch_size": 8}


def field_names(section: type) -> list[str]:
    """Names of the fields of a section, in order, without `arguments`."""
    return [f.name for f in dataclasses.fields(section) if f.name != "arguments"]
