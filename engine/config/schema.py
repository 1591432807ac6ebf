"""The fields of a config: types, defaults, help and allowed values, each written once.

One frozen dataclass per section. Values are plain data, durations aside, which users write as text ("3 epochs").
`task`, `data`, `optimizer` and hooks name a `target` by dotted path and pass every other key to it. Tables
(`evaluations`, `hooks`, ...) take new names.

Identity fields decide what the run computes; a resume refuses a change of them (`identity.py`).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.config import hardware
from engine.config.duration import CLOCK_UNITS, DATA_UNITS, UNITS, Duration
from engine.config.errors import FieldError
from engine.config.setting import Rule, above, at_least, in_units, matching, one_of, regular_expression, setting, table

type Plain = bool | int | float | str | tuple[Plain, ...] | Mapping[str, Plain] | Mapping[int, Plain] | None
"""What arguments and open tables hold."""
type Arguments = Mapping[str, Plain]

MOST_WORKERS, MOST_DEVICES = 1024, 4096  # a typing error must not take the machine down


def _axis_size(value: object, path: str) -> None:
    if value != -1 and not (isinstance(value, int) and value >= 1):
        raise FieldError(path, f"found {value}", "Allowed: a number of devices, or -1 for what is left.")


def _cpu_devices(value: object, path: str) -> None:
    if value != "auto" and not (isinstance(value, int) and 1 <= value <= MOST_DEVICES):
        raise FieldError(path, f"found {value!r}", f"Allowed: 1 to {MOST_DEVICES} devices, auto, or None.")


BY_DATA, BY_CLOCK, ANY_UNIT = in_units(*DATA_UNITS), in_units(*CLOCK_UNITS), in_units(*UNITS)
AXIS_SIZE = Rule("", _axis_size)
CPU_DEVICES = Rule("", _cpu_devices)
NAME = matching(r"(\w[\w.-]*)?", "It names a folder: use letters, digits, '_', '-' and '.'.")
DOTTED_PATH = matching(r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)+)?", "Write package.module.Name.", ", not a dotted path")
METRIC = matching(r"[^/\s]+/\S+", "Write evaluation/metric, such as 'heldout/accuracy'.")
REMAT = matching(
    r"none|full|dots|(save|offload):\w+(,\w+)*",
    "Allowed: none, full, dots, save:NAME,NAME or offload:NAME,NAME with names of engine.layers.checkpoint.",
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A class or function named by dotted path, and the arguments that it is called with."""

    target: str = setting("", "Dotted path: package.module.Name.", DOTTED_PATH)
    arguments: Arguments = table("Every other key of the section.")


@dataclass(frozen=True, kw_only=True)
class Data(Target):
    """A source of examples and how it is read; keys that are not listed here go to the target."""

    shuffle: bool = setting(True, "A new order each epoch. Evaluations are read in order.")
    limit: int | None = setting(None, "Use the first examples only.", at_least(1))
    threads: int = setting(2, "Reader threads, each making whole batches.", at_least(1))
    workers: int = setting(
        0, "Reader processes instead of threads, for sources that hold the GIL.", at_least(0, below=MOST_WORKERS + 1)
    )
    prefetch: int = setting(2, "Dispatches whose batches are made ahead, in host memory.", at_least(0))
    on_error: str = setting("stop", "After an unreadable example; skip counts and logs it.", one_of("stop", "skip"))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters with optimizer settings of their own; the first group that matches counts."""

    match: str = setting("", 'Regular expression, searched in the parameter\'s path: "^head/".', regular_expression())
    learning_rate_scale: float = setting(1.0, "Factor on optimizer.learning_rate.", at_least(0))
    weight_decay: float | None = setting(None, "None: the weight_decay of the optimizer.", at_least(0))


@dataclass(frozen=True, kw_only=True)
class Optimizer(Target):
    """An optax optimizer; keys that are not listed here go to the target (b1, weight_decay, momentum ...)."""

    target: str = setting("optax.adamw", "Called with learning_rate=schedule and the other keys.", DOTTED_PATH)
    learning_rate: float = setting(1e-3, "The peak of the schedule.", at_least(0))
    schedule: str = setting("cosine", "Its shape after the warm-up.", one_of("constant", "linear", "cosine"))
    warmup: Duration = setting(
        Duration(0, "steps"), "Linear increase from 0 to the peak.", in_units(*DATA_UNITS, zero=True)
    )
    final_scale: float = setting(0.0, "Learning rate at the end, as a factor of the peak.", at_least(0))
    clip_norm: float | None = setting(1.0, "Global norm of the gradient; None does not clip.", above(0))
    decay: str = setting(
        "matrices",
        "Which parameters weight decay acts on; matrices have two or more dimensions.",
        one_of("matrices", "all", "none"),
    )
    trainable: str = setting("", "Regular expression of trained paths; empty: all.", regular_expression())
    groups: Mapping[str, Group] = table("Name -> Group.")


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long, how much at once, with which numbers."""

    total: Duration = setting(Duration(10, "epochs"), "Length of the run.", BY_DATA)
    global_batch_size: int = setting(128, "Examples of one optimizer step, on all devices.", at_least(1))
    seed: int = setting(0, "Seed of weights, order and randomness.", at_least(0, below=2**32))
    accumulate: int = setting(1, "Microbatches of one step.", at_least(1))
    steps_per_dispatch: int = setting(1, "Optimizer steps in one call of the compiled program.", at_least(1))
    precision: str = setting(
        "float32", "What the model computes in; parameters stay float32.", one_of("float32", "bfloat16")
    )
    ema_decay: float | None = setting(
        None, "Average of the weights, used by evaluations and export.", at_least(0, below=1)
    )
    remat: str = setting("none", "What layers recompute: none, full, dots, save:NAMES, offload:NAMES.", REMAT)
    offload_optimizer: bool = setting(False, "Keep the optimizer's state in host memory between steps.")


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Slices by axis: the factor of each axis that spans the slow network between slices, 1 for none."""

    pipeline: int = setting(1, "Stages on different slices.", AXIS_SIZE)
    data: int = setting(1, "Copies on different slices; the usual choice.", AXIS_SIZE)
    fsdp: int = setting(1, "Parameters split over slices.", AXIS_SIZE)
    expert: int = setting(1, "Experts split over slices.", AXIS_SIZE)
    context: int = setting(1, "A sequence split over slices.", AXIS_SIZE)
    tensor: int = setting(1, "A layer split over slices.", AXIS_SIZE)


@dataclass(frozen=True, kw_only=True)
class MeshSpec:
    """Devices by axis, within a slice: a number, or -1 for what is left. None: what the preset says, or 1."""

    preset: str = setting(
        "auto", "A mesh of the hardware table; axes set below override it.", one_of("auto", *hardware.MESH_PRESETS)
    )
    pipeline: int | None = setting(None, "Layers are split into stages.", AXIS_SIZE)
    data: int | None = setting(
        None, "Copies of the model, each with its own rows; None also takes what is left.", AXIS_SIZE
    )
    fsdp: int | None = setting(None, "Rows and parameters are split.", AXIS_SIZE)
    expert: int | None = setting(None, "Rows and the experts of a layer are split.", AXIS_SIZE)
    context: int | None = setting(None, "Sequences are split.", AXIS_SIZE)
    tensor: int | None = setting(None, "Dimensions of a layer are split.", AXIS_SIZE)
    dcn: Slices = field(default_factory=Slices)
    cpu_devices: int | str | None = setting(
        None, "CPU devices to create: a number or auto; None leaves it to JAX (1).", CPU_DEVICES
    )


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Where each named dimension goes, and how split layers communicate."""

    rules: Mapping[str, str | tuple[str, ...] | None] = table("Logical axis -> mesh axis, tuple of them, or None.")
    zero1: bool = setting(False, "Split the optimizer's state over data too, where parameters are whole.")
    context: str = setting(
        "ring",
        "Attention over a split sequence; all-to-all splits heads instead of positions.",
        one_of("ring", "all-to-all"),
    )
    microbatches: int | None = setting(None, "Microbatches of the pipeline; None: two a stage.", at_least(1))
    repeats: int = setting(1, "Groups of layers of a pipeline stage; more shrink the bubble.", at_least(1))


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When the state is saved and which saves are kept."""

    every: Duration | None = setting(Duration(10, "minutes"), "Period of saves; None saves at the end only.", ANY_UNIT)
    keep_latest: int = setting(2, "Newest checkpoints that stay.", at_least(1))
    best: str | None = setting(None, "evaluation/metric that selects further checkpoints to keep.", METRIC)
    best_mode: str = setting("max", "Whether the largest or the smallest value is best.", one_of("max", "min"))
    keep_best: int = setting(1, "Best checkpoints that stay.", at_least(1))
    on_failure: str = setting(
        "continue", "After a failed save: report it and try the next one, or stop.", one_of("continue", "stop")
    )
    timeout: Duration = setting(Duration(10, "minutes"), "A save or restore that takes longer is given up.", BY_CLOCK)


@dataclass(frozen=True, kw_only=True)
class Init:
    """What a new run begins with, instead of random weights."""

    checkpoint: str = setting("", "A run directory, or a step of one: checkpoints/500.")
    paths: Mapping[str, str | None] = table("Prefix here -> prefix in the checkpoint; None leaves parameters random.")


@dataclass(frozen=True, kw_only=True)
class Resilience:
    """What is watched while training, and what happens then."""

    divergence: str = setting(
        "stop",
        "After a loss or gradient that is not finite, or a spike; skip leaves the update out.",
        one_of("stop", "skip", "rollback"),
    )
    spike: float | None = setting(None, "A loss above this factor of the running median is a spike.", above(1))
    replica_check: Duration | None = setting(
        Duration(1000, "steps"), "How often replicas are compared; None does not compare.", BY_DATA
    )
    hang: Duration = setting(
        Duration(60, "seconds"), "A step longer than this and than 5 times the median is a hang.", BY_CLOCK
    )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A named evaluation: its data, which is read once and in order, and its period."""

    data: Data = field(default_factory=Data)
    every: Duration | None = setting(Duration(1, "epochs"), "Period; None evaluates at the end only.", BY_DATA)
    batch_size: int | None = setting(None, "Examples of one batch; None: as train.global_batch_size.", at_least(1))
    use_ema: bool = setting(True, "Evaluate the averaged weights where train.ema_decay is set.")


@dataclass(frozen=True, kw_only=True)
class Hook(Target):
    """An object of the user's own, called with the trainer and the step."""

    every: Duration | None = setting(Duration(1, "epochs"), "Period; None calls it at the end only.", BY_DATA)


@dataclass(frozen=True, kw_only=True)
class Log:
    """What is written while training."""

    every: Duration = setting(Duration(50, "steps"), "Period of the rows of metrics.", BY_DATA)
    tensorboard: bool = setting(True, "Event files beside metrics.jsonl.")
    progress: str = setting("auto", "How progress is shown.", one_of("auto", "bar", "lines", "none"))
    examples: bool = setting(False, "Write the examples of each step to examples/<process>.jsonl.")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One window of steps that the profiler records."""

    start: int | None = setting(None, "First step of the window; None does not profile.", at_least(0))
    steps: int = setting(5, "Length of the window.", at_least(1))


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The compiled programs that stay on disk between runs."""

    compiled: bool = setting(True, "Keep them, in the user's cache directory.")
    max_gib: float = setting(2.0, "The oldest entries beyond this size are deleted.", above(0))


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run."""

    name: str = setting("", "Name of the config; the default run directory is runs/<name>.", NAME)
    task: Target = field(default_factory=Target)
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    mesh: MeshSpec = field(default_factory=MeshSpec)
    sharding: Sharding = field(default_factory=Sharding)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    init: Init = field(default_factory=Init)
    resilience: Resilience = field(default_factory=Resilience)
    evaluations: Mapping[str, Evaluation] = table("Name -> Evaluation.")
    hooks: Mapping[str, Hook] = table("Name -> Hook.")
    log: Log = field(default_factory=Log)
    profile: Profile = field(default_factory=Profile)
    cache: Cache = field(default_factory=Cache)
    tiny: Arguments = table('Overrides of --fast-dev-run: {"train.global_batch_size": 8}.')


def field_names(section: type) -> list[str]:
    """Returns the names of the fields of a section, in order, without `arguments`."""
    return [f.name for f in dataclasses.fields(section) if f.name != "arguments"]
