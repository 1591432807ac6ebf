"""The schema of a config: type, default, help text and allowed values of every field, each written once.

One frozen dataclass per section. Values are plain data, except durations, which users write as text ("3 epochs").
`task`, `data`, `optimizer` and hooks name a `target` by dotted path; their other keys are arguments of the target.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.base.duration import DATA_UNITS, Duration
from engine.config import hardware
from engine.config.setting import (
    ANY_UNIT,
    AXIS_SIZE,
    BY_CLOCK,
    BY_DATA,
    CPU_DEVICES,
    DECAY,
    DOTTED_PATH,
    FOLDER,
    MAX_GIB,
    MAX_WORKERS,
    METRIC,
    MODE,
    NAME,
    PREFETCH,
    REMAT,
    SCHEDULE,
    SCORE,
    SIZE,
    SOME_ROLES,
    WORKERS,
    above,
    at_least,
    in_units,
    one_of,
    regular_expression,
    setting,
    table,
)

type Plain = bool | int | float | str | tuple[Plain, ...] | Mapping[str, Plain] | Mapping[int, Plain] | None
"""Value of an argument or of an open dict."""
type Arguments = Mapping[str, Plain]

SHUFFLE_WINDOW = 1024  # examples; a window of small ones is read in well under a second
MAX_WORST = 1000  # examples that an evaluation lists
MAX_FIGURES = 100
LAYERS = "layers"  # name of the hook of log.layers
MAX_STEPS_PER_DISPATCH = 1024  # each has its own arguments: 1,000 steps of a small model compile for 5 s, 4,000 for 40


@dataclass(frozen=True, kw_only=True)
class Target:
    """A class or function, given by dotted path, and its arguments."""

    target: str = setting("", "Dotted path: package.module.Name.", DOTTED_PATH)
    arguments: Arguments = table("Every other key of the section is an argument of the target.")


@dataclass(frozen=True, kw_only=True)
class Data(Target):
    """A source of examples, and how it is read. Keys that are not listed here are arguments of the target."""

    shuffle: bool = setting(True, "Shuffle the examples in each epoch. Evaluations are never shuffled.")
    shuffle_window: int = setting(
        SHUFFLE_WINDOW, "Examples of a stream that are shuffled together, in memory.", at_least(1, below=10**9)
    )
    limit: int | None = setting(None, "Use only this many examples, the first ones.", at_least(1, below=10**12))
    threads: int = setting(2, "Reader threads; each builds whole batches.", at_least(1, below=MAX_WORKERS + 1))
    workers: int | str = setting(0, "Reader processes instead of threads, for sources that hold the GIL.", WORKERS)
    prefetch: int | str = setting(2, "Number of dispatches whose batches are read ahead into host memory.", PREFETCH)
    on_error: str = setting(
        "stop", "Reaction to an unreadable example; skip counts and logs it.", one_of("stop", "skip")
    )
    on_change: str = setting(
        "error", "Reaction to a file that changes while it is read; warn trains on.", one_of("error", "warn")
    )
    weights_from: str | None = setting(None, "Run on whose bad examples to train more often; training only.", FOLDER)


@dataclass(frozen=True, kw_only=True)
class Group(Target):
    """Parameters with separate optimizer settings; the first matching group applies. Other keys are arguments."""

    target: str = setting("", "Optimizer of the group; empty: optimizer.target and its arguments.", DOTTED_PATH)
    match: str = setting("", 'Regular expression, searched in the path of a parameter: "^head/".', regular_expression())
    roles: str = setting("", 'Roles of the parameters that match, such as "embedding, head"; empty: all.', SOME_ROLES)
    learning_rate: float | None = setting(None, "Peak of the schedule; None: optimizer.learning_rate.", at_least(0))
    learning_rate_scale: float = setting(1.0, "Factor on the learning rate.", at_least(0))
    schedule: str | None = setting(None, "None: schedule and schedule_arguments of the optimizer.", SCHEDULE)
    schedule_arguments: Arguments = table("Arguments of the schedule of the group.")
    warmup: Duration | None = setting(None, "None: optimizer.warmup.", in_units(*DATA_UNITS, zero=True))
    final_scale: float | None = setting(None, "None: optimizer.final_scale.", at_least(0))
    clip_norm: float | None = setting(
        None, "Largest norm of the group's own gradient; None: clipped with the others.", above(0)
    )
    every: int = setting(1, "Update the group in each n-th step only.", at_least(1))
    weight_decay: float | None = setting(None, "Weight decay of the group; None: that of the optimizer.", at_least(0))
    layer_decay: float | None = setting(None, "None: optimizer.layer_decay.", above(0, 1))
    frozen_until: Duration | None = setting(None, "Train the group only from here on; None: from step 0.", BY_DATA)


@dataclass(frozen=True, kw_only=True)
class Optimizer(Target):
    """An optax optimizer. Keys that are not listed here are arguments of the target (b1, weight_decay, ...)."""

    target: str = setting("optax.adamw", "Called with learning_rate=schedule and the arguments.", DOTTED_PATH)
    learning_rate: float = setting(1e-3, "Peak of the schedule.", at_least(0))
    schedule: str = setting("cosine", "Shape of the schedule after the warm-up.", SCHEDULE)
    schedule_arguments: Arguments = table("Arguments of the schedule, such as decay of warmup_stable_decay.")
    warmup: Duration = setting(
        Duration(0, "steps"), "Length of the linear increase from 0 to the peak.", in_units(*DATA_UNITS, zero=True)
    )
    final_scale: float = setting(0.0, "Learning rate at the last step, as a fraction of the peak.", at_least(0))
    clip_norm: float | None = setting(1.0, "Largest global norm of the gradient; None does not clip.", above(0))
    decay: str = setting("matrices", "Parameters that weight decay applies to; matrices: not norms and biases.", DECAY)
    trainable: str = setting("", "Regular expression of the parameters to train; empty: all.", regular_expression())
    frozen_statistics: str = setting(
        "", "Regular expression of batch statistics that do not move.", regular_expression()
    )
    layer_decay: float | None = setting(None, "Factor on the learning rate of a layer, per layer above.", above(0, 1))
    mup: Arguments = table("Arguments of the Task at the width whose learning rate this is (muP); empty: this width.")
    groups: Mapping[str, Group] = table("Name -> parameter group.")

    def of_group(self, name: str) -> "Optimizer":
        """Returns the settings of one group: those that the group sets, and otherwise these."""
        group = self.groups[name]
        own_schedule = group.schedule is not None
        return dataclasses.replace(
            self,
            target=group.target or self.target,
            arguments=group.arguments if group.target else {**self.arguments, **group.arguments},
            learning_rate=self.learning_rate if group.learning_rate is None else group.learning_rate,
            schedule=group.schedule if group.schedule is not None else self.schedule,
            schedule_arguments=group.schedule_arguments if own_schedule else self.schedule_arguments,
            warmup=self.warmup if group.warmup is None else group.warmup,
            final_scale=self.final_scale if group.final_scale is None else group.final_scale,
            layer_decay=self.layer_decay if group.layer_decay is None else group.layer_decay,
        )


@dataclass(frozen=True, kw_only=True)
class Train:
    """Length, batch size, seed, precision and memory use of the training."""

    total: Duration = setting(Duration(10, "epochs"), "Length of the run.", BY_DATA)
    global_batch_size: int = setting(128, "Examples per optimizer step, over all devices.", SIZE, auto=True)
    seed: int = setting(0, "Seed of initial weights, data order and all random numbers.", at_least(0, below=2**32))
    accumulate: int = setting(1, "Microbatches per step, for gradient accumulation.", SIZE, auto=True)
    memory_gib: float | None = setting(
        None, "GiB of each device that auto may use; None: 90 % of its memory, half of a CPU's.", above(0, MAX_GIB)
    )
    approximate_accumulation: bool = setting(
        False, "Allow accumulate above 1 for models whose result depends on it, such as those with BatchNorm."
    )
    steps_per_dispatch: int = setting(
        1, "Optimizer steps in one call of the compiled program.", at_least(1, below=MAX_STEPS_PER_DISPATCH + 1)
    )
    precision: str = setting(
        "float32",
        "Data type of the computation; parameters stay float32. float8 and int8: products of layers, else bfloat16.",
        one_of("float32", "bfloat16", "float8", "int8"),
    )
    ema_decay: float | None = setting(
        None, "Decay of the moving average of the weights, which evaluations and export use.", at_least(0, below=1)
    )
    remat: str = setting(
        "none", "What the backward pass recomputes: none, full, dots, save:NAMES, offload:NAMES; auto chooses.", REMAT
    )
    offload_optimizer: bool = setting(False, "Keep the optimizer state in host memory between steps.")


@dataclass(frozen=True, kw_only=True)
class DcnMeshSpec:
    """Number of slices per mesh axis: the part of each axis that crosses the slow network between slices; 1: none."""

    pipeline: int = setting(1, "Pipeline stages on different slices.", AXIS_SIZE)
    data: int = setting(1, "Copies of the model on different slices; the usual choice.", AXIS_SIZE)
    fsdp: int = setting(1, "Parameters split over slices.", AXIS_SIZE)
    expert: int = setting(1, "Experts split over slices.", AXIS_SIZE)
    context: int = setting(1, "A sequence split over slices.", AXIS_SIZE)
    tensor: int = setting(1, "A layer split over slices.", AXIS_SIZE)


@dataclass(frozen=True, kw_only=True)
class MeshSpec:
    """Devices per mesh axis within a slice: a number, or -1 for all remaining. None: the value of the preset, or 1."""

    preset: str = setting(
        "auto",
        "Named mesh; auto is the default mesh of the hardware. Axes that are set here override it.",
        one_of("auto", *hardware.MESH_PRESETS),
    )
    pipeline: int | None = setting(None, "Layers are split into stages.", AXIS_SIZE)
    data: int | None = setting(
        None, "Copies of the model, each with its own rows; None also takes all remaining devices.", AXIS_SIZE
    )
    fsdp: int | None = setting(None, "Rows of the batch and parameters are split.", AXIS_SIZE)
    expert: int | None = setting(None, "Rows of the batch and the experts of a layer are split.", AXIS_SIZE)
    context: int | None = setting(None, "Sequences are split.", AXIS_SIZE)
    tensor: int | None = setting(None, "Dimensions of a layer are split.", AXIS_SIZE)
    dcn: DcnMeshSpec = field(default_factory=DcnMeshSpec)
    cpu_devices: int | str | None = setting(
        None, "CPU devices to create: a number or auto; None leaves it to JAX (1).", CPU_DEVICES
    )


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Mesh axes of named dimensions, and how split layers communicate."""

    rules: Mapping[str, str | tuple[str, ...] | None] = table("Logical axis -> mesh axis, tuple of mesh axes, or None.")
    zero1: bool = setting(False, "Split the optimizer state of unsplit parameters over the data axis.")
    context: str = setting(
        "ring",
        "Attention over a split sequence; all-to-all splits heads instead of positions.",
        one_of("ring", "all-to-all"),
    )
    microbatches: int | None = setting(None, "Microbatches of the pipeline; None: two per stage.", at_least(1))
    repeats: int = setting(1, "Groups of layers per pipeline stage; more groups shrink the bubble.", at_least(1))
    schedule: str = setting(
        "gpipe",
        "Order of work in the pipeline; 1f1b bounds the memory for activations, and computes more.",
        one_of("gpipe", "1f1b"),
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When the state is saved, and which checkpoints are kept."""

    every: Duration | None = setting(Duration(10, "minutes"), "Period of saves; None saves at the end only.", ANY_UNIT)
    keep_latest: int = setting(2, "Number of newest checkpoints to keep.", at_least(1))
    best: str | None = setting(
        None, "evaluation/metric, or hook/metric, that selects the best checkpoints to keep.", METRIC
    )
    best_mode: str = setting("auto", "Which value is best: max, min, or auto: as the name of the metric says.", MODE)
    keep_best: int = setting(1, "Number of best checkpoints to keep.", at_least(1))
    on_failure: str = setting(
        "continue", "Reaction to a failed save: report it and continue, or stop the run.", one_of("continue", "stop")
    )
    timeout: Duration = setting(Duration(10, "minutes"), "A save or restore that takes longer is abandoned.", BY_CLOCK)


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Conditions on a metric that end the run before train.total. The run saves, and ends as done."""

    metric: str | None = setting(None, "evaluation/metric, or hook/metric, of the conditions.", METRIC)
    mode: str = setting("auto", "Which value is best: max, min, or auto: as the name of the metric says.", MODE)
    patience: int | None = setting(
        None, "Measurements without an improvement after which the run ends; None: no limit.", at_least(1)
    )
    min_delta: float = setting(0.0, "A smaller difference from the best value is no improvement.", at_least(0))
    target: float | None = setting(None, "Value at which the run ends; None: no target.", at_least(-1e30, below=1e30))


@dataclass(frozen=True, kw_only=True)
class InitSource:
    """Checkpoint of a part of the initial weights."""

    checkpoint: str = setting("", "A run directory, a step of it (runs/a/checkpoints/500), hf:FOLDER or hf:OWNER/NAME.")
    paths: Mapping[str, str | None] = table(
        "Path prefix here, or regular expression that starts with ^ -> prefix or replacement there; None: random."
    )


@dataclass(frozen=True, kw_only=True)
class Init(InitSource):
    """Checkpoints from which a new run takes its initial weights: one for all arrays, and others for parts of them."""

    sources: Mapping[str, InitSource] = table("Name -> checkpoint of the arrays that its paths name.")


@dataclass(frozen=True, kw_only=True)
class Resilience:
    """Checks during training, and reactions to failures."""

    divergence: str = setting(
        "stop",
        "Reaction to a spike, or to a loss or gradient that is not finite; skip leaves out the update.",
        one_of("stop", "skip", "rollback"),
    )
    spike: float | None = setting(None, "A loss above this multiple of the running median is a spike.", above(1))
    replica_check: Duration | None = setting(
        Duration(1000, "steps"), "Period of comparing the replicas of the state; None never compares.", BY_DATA
    )
    gradient_check: Duration | None = setting(
        None, "Period of computing the gradient of each device again on its neighbour; None never does.", BY_DATA
    )
    hang: Duration = setting(
        Duration(60, "seconds"), "A step is a hang if it takes longer than this and than 5 times the median.", BY_CLOCK
    )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A named evaluation: its period and its data, which is read once, in order."""

    data: Data = field(default_factory=Data)
    every: Duration | None = setting(Duration(1, "epochs"), "Period; None evaluates at the end only.", BY_DATA)
    at_start: bool = setting(False, "Also evaluate the initial weights, at step 0.")
    at_end: bool = setting(True, "Also evaluate at the last step, if the period does not end there.")
    batch_size: int | None = setting(None, "Examples per batch; None: train.global_batch_size.", at_least(1))
    use_ema: bool = setting(True, "Evaluate the averaged weights if train.ema_decay is set.")
    slices: Mapping[str, Target] = table("Name -> function of an example, which decides whether a slice has it.")
    worst: int = setting(0, "Number of worst examples to list.", at_least(0, below=MAX_WORST + 1))
    score: str | None = setting(None, "Number that ranks examples and slices, such as ap/car; None: loss.", SCORE)
    figures: int = setting(
        0,
        "Number of examples that Task.figure draws: the worst ones, or the first ones without worst.",
        at_least(0, below=MAX_FIGURES + 1),
    )
    worst_mode: str = setting("auto", "Which score is worst: max, min, or auto: as the metric or its name says.", MODE)
    per_example: bool = setting(False, "Keep the metrics of each example in per_example/*/STEP.parquet.")
    tags: Mapping[str, str] = table("Name -> entry of the examples, or function of one, to keep with per_example.")


@dataclass(frozen=True, kw_only=True)
class Hook(Target):
    """A user-defined object whose `run` is called with the trainer, the state and the step.

    It may return metrics, and may end the run.
    """

    every: Duration | None = setting(Duration(1, "epochs"), "Period; None calls it at the end only.", BY_DATA)


@dataclass(frozen=True, kw_only=True)
class Log:
    """Metrics and progress during training."""

    every: Duration = setting(Duration(50, "steps"), "Period of the rows in metrics.jsonl.", BY_DATA)
    tensorboard: bool = setting(True, "Also write TensorBoard event files.")
    progress: str = setting("auto", "How progress is shown on the terminal.", one_of("auto", "bar", "lines", "none"))
    verbose: bool = setting(False, "Also show each save, all numbers and tables of each evaluation, and all rates.")
    examples: bool = setting(False, "Write the examples that each step used to examples/*.jsonl.")
    trackers: Mapping[str, Target] = table("Name -> tracker that receives the metrics, such as MLflow.")
    report: bool = setting(False, "Write report.html when an attempt is done or has failed, as convoy report does.")
    layers: Duration | None = setting(None, "Period of a diagnosis of each layer; None: none.", BY_DATA)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One window of steps that the JAX profiler traces."""

    start: int | None = setting(None, "First step of the window; None does not profile.", at_least(0))
    steps: int = setting(5, "Number of steps in the window.", at_least(1))


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Compiled programs that are kept on disk between runs."""

    compiled: bool = setting(True, "Keep compiled programs in the user's cache directory.")
    max_gib: float = setting(
        2.0, "Largest size of the cache; the oldest entries are deleted first.", above(0, below=MAX_GIB)
    )
    programs: str | None = setting(None, "Folder of convoy compile --out, whose programs the run loads.", FOLDER)


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """The XLA compiler of the train step."""

    options: Mapping[str, bool | int | float | str | None] = table(
        "Option of XLA -> value; None leaves an option of the engine to XLA."
    )


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
    stop: Stop = field(default_factory=Stop)
    init: Init = field(default_factory=Init)
    resilience: Resilience = field(default_factory=Resilience)
    evaluations: Mapping[str, Evaluation] = table("Name -> evaluation.")
    hooks: Mapping[str, Hook] = table("Name -> hook.")
    log: Log = field(default_factory=Log)
    profile: Profile = field(default_factory=Profile)
    cache: Cache = field(default_factory=Cache)
    compiler: Compiler = field(default_factory=Compiler)
    tiny: Arguments = table('Overrides for --fast-dev-run: {"train.global_batch_size": 8}.')


def field_names(section: type) -> list[str]:
    """Returns the names of the fields of a section in schema order, without `arguments`."""
    return [f.name for f in dataclasses.fields(section) if f.name != "arguments"]
