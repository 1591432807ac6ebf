"""Chooses `train.global_batch_size` and `train.accumulate` if they are auto: the largest step that fits into memory.

What a program needs is what XLA states of it, so nothing is allocated. All processes compile the same programs in the
same order; the primary compares the largest need with the smallest memory and sends its answer.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
from jax.sharding import Mesh

from engine.api.saved_run import newest_checkpoint
from engine.base.errors import ConfigError, ShardingError
from engine.cluster import group
from engine.compile.memory_limit import memory_limit
from engine.compile.out_of_memory import smaller
from engine.config.allowed_values import AUTO
from engine.config.identity import is_identity
from engine.config.schema import Config, Sharding, Train
from engine.config.text import from_text
from engine.data.source import Source
from engine.loop.compiled_sizes import CompiledSizes
from engine.parallel.mesh import batch_sharding, check_batch
from engine.parallel.schedule import microbatch_count
from engine.run.directory import RunDirectory
from engine.training.task import Task

RESOLUTION = 32  # the batch is the largest to within this part of it
KEPT_SHARE = 1.1  # of the limit, for stored sizes: another release of XLA may need a little more


def auto_fields(train: Train) -> list[str]:
    """Returns the fields that are auto."""
    names = ("global_batch_size", "accumulate")
    return [f"train.{name}" for name in names if getattr(train, name) == AUTO]


def with_stored_sizes(config: Config, directory: RunDirectory) -> tuple[Config, list[str]]:
    """Returns the config of a resumed run with the numbers that auto gave at its start, and the fields that have them.

    The config of a new run is returned unchanged.
    """
    fields = auto_fields(config.train)
    if not fields:
        return config, []

    def stored() -> list[int] | None:
        if newest_checkpoint(directory) is None:
            return None
        train = from_text(directory.read_config_text(), str(directory.config)).train
        return [train.global_batch_size, train.accumulate]

    found = group.run_on_primary(stored, "the stored size of a step")
    return (config, []) if found is None else (_with_numbers(config, *found), fields)


def _with_numbers(config: Config, batch_size: int, accumulate: int) -> Config:
    """Returns the config with these numbers where it has auto."""
    train = config.train
    numbers = {
        "global_batch_size": batch_size if train.global_batch_size == AUTO else train.global_batch_size,
        "accumulate": accumulate if train.accumulate == AUTO else train.accumulate,
    }
    return dataclasses.replace(config, train=dataclasses.replace(train, **numbers))


def choose_sizes(
    config: Config,
    task: Task,
    mesh: Mesh,
    source: Source,
    evaluation_sources: Mapping[str, Source],
    say: Callable[[str], None],
    stored: Sequence[str] = (),
) -> Config:
    """Returns the config with numbers in place of auto, with which the step and the evaluations fit into memory.

    The same config is returned if nothing is or was auto.

    Args:
        config: config of the run.
        task: its Task.
        mesh: the devices.
        source: the training data.
        evaluation_sources: name of an evaluation -> its data.
        say: called with a sentence about the choice.
        stored: fields of a resumed run whose numbers auto gave at its start.

    Raises:
        ConfigError: nothing fits, or the memory of the devices is not known.
    """
    fields = stored or auto_fields(config.train)
    if not fields:
        return config
    kind, limit = mesh.devices.flat[0].device_kind, memory_limit(config.train.memory_gib, mesh)
    if limit is None and stored:
        say(f"{stored[0]} = auto: the run keeps its number, unchecked, since the memory of a {kind} is not known")
        return config
    if limit is None:
        raise ConfigError(
            f"{fields[0]} = auto: the memory of a {kind} is not known. Set train.memory_gib to the GiB of each device "
            "that a step may use, or give numbers."
        )
    sizes = CompiledSizes(config, task, mesh, source, evaluation_sources, limit)
    if stored:
        return _check_stored(config, stored[0], mesh, sizes, say)
    more = ""
    if config.train.accumulate == AUTO:
        found = _choose_accumulate(config, mesh, sizes)
        _check_evaluations(found, sizes)
    else:
        found, more = _limit_batch(_choose_batch(config, mesh, len(source), sizes), mesh, sizes)
    value = found.train.accumulate if config.train.accumulate == AUTO else found.train.global_batch_size
    say(f"{fields[0]} = auto: {value}{more} ({sizes})")
    return found


def row_unit(mesh: Mesh, sharding: Sharding) -> int:
    """Returns the number of which the rows of a microbatch are a multiple.

    It is the number of devices that split the rows, in a pipeline times its microbatches.
    """
    shards = math.prod(mesh.shape[axis] for axis in jax.tree.leaves(tuple(batch_sharding(mesh).spec)))
    stages = mesh.shape["pipeline"]
    return shards * (microbatch_count(sharding.microbatches, stages) if stages > 1 else 1)


def _choose_batch(config: Config, mesh: Mesh, examples: int, sizes: CompiledSizes) -> Config:
    """Chooses the batch by the step; it has at most `examples` rows, if that is possible."""
    unit = row_unit(mesh, config.sharding) * config.train.accumulate
    most = max(1, examples // unit)
    count = largest_fitting(lambda count: sizes.share(count * unit, _batch(config, count * unit).train), 1.0, most)
    if count is None:
        what, smallest = f"the smallest batch, {unit},", _batch(config, unit)
        raise _nothing_fits("train.global_batch_size", what, sizes, smallest)
    return _batch(config, count * unit)


def _batch(config: Config, size: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, global_batch_size=size))


def _limit_batch(config: Config, mesh: Mesh, sizes: CompiledSizes) -> tuple[Config, str]:
    """Makes the chosen batch smaller if evaluations have the same and do not fit; returns a text about that, too."""
    shares = {name: share for name, share in sizes.evaluation_shares(config.train).items() if share > 1}
    if not shares:
        return config, ""
    for name, share in shares.items():
        if config.evaluations[name].batch_size is not None:
            raise _evaluation_error(name, share, config, sizes)
    unit = row_unit(mesh, config.sharding) * config.train.accumulate

    def need(count: int) -> float:
        found = sizes.evaluation_shares(_batch(config, count * unit).train)
        return max(found[name] for name in shares)

    largest = max(shares, key=lambda name: shares[name])
    count = largest_fitting(need, 1.0, config.train.global_batch_size // unit - 1)
    if count is None:
        raise _evaluation_error(largest, shares[largest], config, sizes)
    text = (
        f", since evaluation {largest} needs {sizes.share_text(shares[largest])} with "
        f"{config.train.global_batch_size} rows; a smaller evaluations.{largest}.batch_size allows a larger batch"
    )
    return _batch(config, count * unit), text


def _choose_accumulate(config: Config, mesh: Mesh, sizes: CompiledSizes, stored: int | None = None) -> Config:
    """Chooses the number of microbatches; a resume chooses more than `stored`."""
    train = config.train
    check_batch(mesh, train.global_batch_size, 1)
    # If the batch is no multiple of the rows, the first step raises the error.
    most = max(1, train.global_batch_size // row_unit(mesh, config.sharding))
    candidates = [n for n in range(1, most + 1) if most % n == 0 and n > (stored or 0)] or [most]

    def split(count: int) -> Config:
        return dataclasses.replace(config, train=dataclasses.replace(train, accumulate=count))

    def fits(count: int) -> bool:
        try:
            return sizes.share(count, split(count).train) <= 1
        except (ConfigError, ShardingError) as error:
            if not sizes.shares:
                raise
            last = max(sizes.shares)
            raise ConfigError(
                f"train.accumulate = auto: with {last}, a step needs {sizes.text(last)} of {sizes.limit.text}; and "
                f"{count} is not possible: {error}"
            ) from error

    count = smallest_fitting(fits, candidates)
    if count is None:
        what = f"the most microbatches, {candidates[-1]},"
        raise _nothing_fits("train.accumulate", what, sizes, split(candidates[-1]), resumes=stored is not None)
    return split(count)


def _nothing_fits(field: str, what: str, sizes: CompiledSizes, config: Config, *, resumes: bool = False) -> ConfigError:
    need = sizes.text(min(sizes.shares, key=lambda size: sizes.shares[size]))
    advice = smaller(config.train, config.mesh)
    if resumes:
        advice = [*_allowed(config), "devices with more memory"]
    return ConfigError(
        f"{field} = auto: even with {what} a step needs {need} of {sizes.limit.text}. To shrink the run: "
        f"{'; '.join(advice)}."
    )


def _allowed(config: Config) -> list[str]:
    """Returns the settings of `smaller` that a resume may change, without the number of microbatches."""
    found = [text for text in smaller(config.train, config.mesh)[:-1] if not is_identity(text.partition("=")[0])]
    return [text for text in found if not text.startswith("train.accumulate")]


def _check_evaluations(config: Config, sizes: CompiledSizes, allowed: float = 1.0) -> None:
    """Raises ConfigError if an evaluation needs more than this share of the limit."""
    for name, share in sizes.evaluation_shares(config.train).items():
        if share > allowed:
            raise _evaluation_error(name, share, config, sizes)


def _evaluation_error(name: str, share: float, config: Config, sizes: CompiledSizes) -> ConfigError:
    field, own = f"evaluations.{name}.batch_size", config.evaluations[name].batch_size
    rows = own or config.train.global_batch_size
    origin = "" if own else " (that of the training)"
    return ConfigError(
        f"{field} = {rows}{origin}: with the train state, the evaluation needs {sizes.share_text(share)} of "
        f"{sizes.limit.text}. Set {field} to a smaller number, or split the state over more devices (mesh.fsdp)."
    )


def _check_stored(config: Config, field: str, mesh: Mesh, sizes: CompiledSizes, say: Callable[[str], None]) -> Config:
    """Checks a number that auto gave at the start of a run on the devices of its resume.

    If the step does not fit, more microbatches are chosen if `field` is their number, since they do not change the
    result but by rounding. Otherwise the resume is refused, since the batch is an identity field.
    """
    train = config.train
    value = train.accumulate if field == "train.accumulate" else train.global_batch_size
    if sizes.share(value, train) > KEPT_SHARE:
        free = not train.approximate_accumulation
        if field == "train.accumulate" and free:
            config = _choose_accumulate(config, mesh, sizes, stored=value)
            say(f"{field} = auto: {config.train.accumulate} instead of {value}, the number of the run so far ({sizes})")
        else:
            size = train.global_batch_size
            advice = [f"train.global_batch_size={size} with train.accumulate=auto, which splits this batch"] * free
            advice += _allowed(config)
            raise ConfigError(
                f"{field} = auto: the run began with {value}, which a resume cannot change. A step needs "
                f"{sizes.text(value)} here; allowed are {sizes.limit.text}. Resume with "
                f"{'; '.join([*advice, 'devices with more memory'])}."
            )
    _check_evaluations(config, sizes, KEPT_SHARE)
    return config


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
