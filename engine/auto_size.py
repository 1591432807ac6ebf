"""Chooses `train.global_batch_size` and `train.accumulate` if they are auto: the largest step that fits into memory.

What a step needs is what XLA states of the compiled program, so nothing is allocated. All processes compile the same
programs in the same order; the primary compares the largest need with the smallest memory and sends its answer.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from engine.cluster import group
from engine.cluster.host_memory import host_memory
from engine.config.allowed_values import AUTO
from engine.config.errors import ConfigError, ShardingError
from engine.config.schema import Config, Sharding, Train
from engine.config.text import from_text
from engine.data.prefetch import IN_FLIGHT
from engine.data.source import Source
from engine.parallel.memory import compiled_bytes, device_memory_limit
from engine.parallel.mesh import batch_sharding, check_batch
from engine.parallel.report import device_bytes, size_text
from engine.parallel.schedule import microbatch_count
from engine.resilience.out_of_memory import smaller
from engine.run.directory import RunDirectory
from engine.saved.run import newest_checkpoint
from engine.training.build import build_program, check_unrolled
from engine.training.task import Task

DEVICE_SHARE = 0.9  # of the memory that JAX can allocate: the rest is for fragments and for small programs
HOST_SHARE = 0.5  # of the memory of the host, which also holds the data and the libraries
RESOLUTION = 32  # the batch is the largest to within this part of it
COMPILE_S = 3600.0  # seconds that a process may compile longer than the others


@dataclasses.dataclass(frozen=True)
class Limit:
    """The memory that a step may use on each device."""

    bytes: float
    text: str


class Steps:
    """Compiles steps of different sizes and remembers what they need; every process calls it with the same sizes.

    Args:
        config: config of the run.
        task: its Task.
        mesh: the devices.
        source: the training data.
    """

    def __init__(self, config: Config, task: Task, mesh: Mesh, source: Source):
        self._config, self._task, self._mesh, self._source = config, task, mesh, source
        self.limit = memory_limit(config.train, mesh)
        self.shares: dict[int, float] = {}
        """Size -> share of the limit that its step needs; infinite if the compiler found that it does not fit.

        The same in every process, also where the limits differ.
        """

    def share(self, size: int, train: Train) -> float:
        """Returns the share of the limit that the step of these settings needs; compiles it.

        Raises:
            ConvoyError: the Task, the data, the mesh and the settings do not fit together.
        """
        config = dataclasses.replace(self._config, train=train)
        program, _ = build_program(self._task, self._mesh, self._source, config)
        check_unrolled(program, train)
        try:
            found = compiled_bytes(program.trace(train.steps_per_dispatch).lower().compile())
            batch = sum(map(device_bytes, jax.tree.leaves(program.abstract_batch)))
            need = float(found + IN_FLIGHT * train.steps_per_dispatch * batch)  # the program holds those of a dispatch
        except jax.errors.JaxRuntimeError as error:  # the compiler for TPUs refuses a program that does not fit
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            need = math.inf
        answer = group.decide(
            [need if need < math.inf else None, self.limit.bytes],
            lambda values, missing: _judge([values[process] for process in sorted(values)]),
            "the size of a step",
            COMPILE_S,
        )
        self.shares[size] = math.inf if answer is None else answer
        return self.shares[size]

    def text(self, size: int) -> str:
        """Returns what the step of a size that was compiled needs."""
        share = self.shares[size]
        return "more than the compiler allows" if share == math.inf else size_text(share * self.limit.bytes)

    def __str__(self) -> str:
        """Returns the sizes that were tried with what they need."""
        texts = [f"{size}: {self.text(size)}" for size in sorted(self.shares)]
        plural = "s" * (len(texts) > 1)
        return f"{len(texts)} program{plural} compiled: {', '.join(texts)}; allowed are {self.limit.text}"


def _judge(values: Sequence[Sequence[float | None]]) -> float | None:
    """Returns the largest need as a share of the memory, of the processes' (need, memory); None if it is infinite."""
    shares = [math.inf if need is None else need / (limit or 1) for need, limit in values]
    return None if math.inf in shares else max(shares)


def memory_limit(train: Train, mesh: Mesh) -> Limit:
    """Returns the memory that a step may use on each device of a mesh.

    It is `train.memory_gib`; or DEVICE_SHARE of the memory that JAX can allocate, which is that of the hardware table
    for devices that are absent; or on CPUs, HOST_SHARE of the memory of the host, divided by its devices.

    Raises:
        ConfigError: none of them is known.
    """
    if train.memory_gib is not None:
        limit = train.memory_gib * 2**30
        return Limit(limit, f"{size_text(limit)} on each device (train.memory_gib)")
    found = device_memory_limit(mesh)
    if found is not None:
        text = f"{size_text(DEVICE_SHARE * found)} on each device, {DEVICE_SHARE:.0%} of its {size_text(found)}"
        return Limit(DEVICE_SHARE * found, text)
    host = host_memory()
    if host is None or mesh.devices.flat[0].platform != "cpu":
        raise ConfigError(
            f"{' and '.join(auto_fields(train))} = auto: the memory of a {mesh.devices.flat[0].device_kind} is not "
            "known. Set train.memory_gib to the GiB of each device that a step may use, or give numbers."
        )
    devices = len(mesh.local_devices) * group.count()  # the processes may share this host
    each = HOST_SHARE * host.bytes / devices
    return Limit(each, f"{size_text(each)} on each of {devices} CPU devices, {HOST_SHARE:.0%} of {host}")


def auto_fields(train: Train) -> list[str]:
    """Returns the fields that are auto."""
    names = ("global_batch_size", "accumulate")
    return [f"train.{name}" for name in names if getattr(train, name) == AUTO]


def with_stored_sizes(config: Config, directory: RunDirectory) -> Config:
    """Returns the config of a resumed run with the numbers that auto gave at its start; else the same config."""
    if not auto_fields(config.train):
        return config

    def stored() -> list[int] | None:
        if newest_checkpoint(directory) is None:
            return None
        train = from_text(directory.read_config_text(), str(directory.config)).train
        return [train.global_batch_size, train.accumulate]

    found = group.run_on_primary(stored, "the stored size of a step")
    return config if found is None else _with_numbers(config, *found)


def _with_numbers(config: Config, batch_size: int, accumulate: int) -> Config:
    """Returns the config with these numbers where it has auto."""
    train = config.train
    numbers = {
        "global_batch_size": batch_size if train.global_batch_size == AUTO else train.global_batch_size,
        "accumulate": accumulate if train.accumulate == AUTO else train.accumulate,
    }
    return dataclasses.replace(config, train=dataclasses.replace(train, **numbers))


def choose_sizes(config: Config, task: Task, mesh: Mesh, source: Source, say: Callable[[str], None]) -> Config:
    """Returns the config with numbers in place of auto; the same config if nothing is auto.

    Args:
        config: config of the run.
        task: its Task.
        mesh: the devices.
        source: the training data.
        say: called with a sentence about the choice.

    Raises:
        ConfigError: nothing fits, or the memory of the devices is not known.
    """
    fields = auto_fields(config.train)
    if not fields:
        return config
    steps = Steps(config, task, mesh, source)
    rows = row_unit(mesh, config.sharding)
    if config.train.accumulate == AUTO:
        found = _choose_accumulate(config, mesh, rows, steps)
    else:
        found = _choose_batch(config, rows, len(source), steps)
    value = found.train.accumulate if config.train.accumulate == AUTO else found.train.global_batch_size
    say(f"{fields[0]} = auto: {value} ({steps})")
    return found


def row_unit(mesh: Mesh, sharding: Sharding) -> int:
    """Returns the number of which the rows of a microbatch are a multiple.

    It is the number of devices that split the rows, in a pipeline times its microbatches.
    """
    shards = math.prod(mesh.shape[axis] for axis in jax.tree.leaves(tuple(batch_sharding(mesh).spec)))
    stages = mesh.shape["pipeline"]
    return shards * (microbatch_count(sharding.microbatches, stages) if stages > 1 else 1)


def _choose_batch(config: Config, rows: int, examples: int, steps: Steps) -> Config:
    """Chooses the batch; `rows` as of `row_unit`."""
    train = config.train
    unit = rows * train.accumulate
    most = max(1, examples // unit)

    def sized(count: int) -> Train:
        return dataclasses.replace(train, global_batch_size=count * unit)

    count = largest_fitting(lambda count: steps.share(count * unit, sized(count)), 1.0, most)
    if count is None:
        raise _nothing_fits("train.global_batch_size", f"the smallest batch, {unit},", steps, sized(1), config)
    return dataclasses.replace(config, train=sized(count))


def _choose_accumulate(config: Config, mesh: Mesh, rows: int, steps: Steps) -> Config:
    """Chooses the number of microbatches; `rows` as of `row_unit`."""
    train = config.train
    check_batch(mesh, train.global_batch_size, 1)
    most = max(1, train.global_batch_size // rows)  # if the batch is no multiple, the first step raises the error
    candidates = [n for n in range(1, most + 1) if most % n == 0]

    def split(count: int) -> Train:
        return dataclasses.replace(train, accumulate=count)

    def fits(count: int) -> bool:
        try:
            return steps.share(count, split(count)) <= 1
        except (ConfigError, ShardingError) as error:
            if not steps.shares:
                raise
            last = max(steps.shares)
            raise ConfigError(
                f"train.accumulate = auto: with {last}, a step needs {steps.text(last)} of {steps.limit.text}; and "
                f"{count} is not possible: {error}"
            ) from error

    count = smallest_fitting(fits, candidates)
    if count is None:
        what = f"the most microbatches, {candidates[-1]},"
        raise _nothing_fits("train.accumulate", what, steps, split(candidates[-1]), config)
    return dataclasses.replace(config, train=split(count))


def _nothing_fits(field: str, what: str, steps: Steps, train: Train, config: Config) -> ConfigError:
    need = steps.text(min(steps.shares, key=lambda size: steps.shares[size]))
    return ConfigError(
        f"{field} = auto: even with {what} a step needs {need} of {steps.limit.text}. To shrink the run: "
        f"{'; '.join(smaller(train, config.mesh))}."
    )


def largest_fitting(needs: Callable[[int], float], limit: float, most: int) -> int | None:
    """Returns the largest size from 1 to `most` that needs at most `limit`, to within RESOLUTION; None if 1 does not.

    It calls `needs` for 1 and 2, then for the size at which the line through the two largest known sizes reaches the
    limit. After a size that the compiler refuses, and after a few calls, it bisects.
    """
    known = {1: needs(1)}
    if known[1] > limit:
        return None
    low, high = 1, most + 1  # low fits; high does not, or is not allowed
    while high - low > (step := max(1, low // RESOLUTION)):
        known_finite = sorted(size for size, need in known.items() if need < math.inf)
        if len(known_finite) < 2:
            guess = 2 * low
        elif known.get(high) == math.inf or len(known) > 6:
            guess = math.isqrt(low * high)
        else:
            a, b = known_finite[-2:]
            slope = (known[b] - known[a]) / (b - a)
            guess = int(b + (limit - known[b]) / slope) if slope > 0 else 2 * b
        guess = min(max(guess, low + step), high - 1)
        known[guess] = needs(guess)
        low, high = (guess, high) if known[guess] <= limit else (low, guess)
    return low


def smallest_fitting(fits: Callable[[int], bool], candidates: Sequence[int]) -> int | None:
    """Returns the first of the ascending candidates that fits, or None; all after it fit too.

    It tries the first, second, fourth, eighth, and so on, and then bisects.
    """
    low, high = -1, 0  # the indices: low does not fit
    while not fits(candidates[high]):
        low = high
        if low == len(candidates) - 1:
            return None
        high = min(2 * high + 1, len(candidates) - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(candidates[middle]) else (middle, high)
    return candidates[high]
