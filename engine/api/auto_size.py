"""Chooses `train.global_batch_size`, `train.accumulate` or `train.remat` if it is auto, by compiled programs.

The batch is the largest whose step fits into memory, and the microbatches are the fewest. Of the values of
`train.remat`, the cheapest that fits is chosen (`compile/step_time.py`). Nothing is allocated. All processes compile
the same programs in the same order; the primary compares the largest need with the smallest memory, estimates the time,
and sends its answer.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh

from engine.base.errors import ConfigError, ShardingError
from engine.compile.memory_limit import Limit, memory_limit
from engine.compile.out_of_memory import smaller
from engine.config.identity import is_identity
from engine.config.schema import Config, MeshSpec, Train
from engine.config.setting import AUTO
from engine.layers.rematerialization import policies
from engine.loop.compiled_sizes import CompiledSizes
from engine.parallel.mesh import check_batch
from engine.parallel.schedule import row_unit

AUTOMATIC = ("global_batch_size", "accumulate", "remat")
"""Fields of the section `train` that may be auto; only one of them at a time."""
RESOLUTION = 32  # the batch is the largest to within this part of it
KEPT_SHARE = 1.1  # share of the limit for stored values: another release of XLA may need a little more


def auto_fields(train: Train) -> list[str]:
    """Returns the fields that are auto."""
    return [f"train.{name}" for name in AUTOMATIC if getattr(train, name) == AUTO]


def with_values(train: Train, values: Sequence[Any]) -> Train:
    """Returns the section with the values of AUTOMATIC where it has auto."""
    given = zip(AUTOMATIC, values, strict=True)
    return dataclasses.replace(train, **{name: value for name, value in given if getattr(train, name) == AUTO})


def choose_sizes(
    config: Config,
    mesh: Mesh,
    compiled: Callable[[Limit], CompiledSizes],
    say: Callable[[str], None],
    stored: Sequence[str] = (),
) -> Train:
    """Returns the section `train` with values in place of auto, with which the step and the evaluations fit.

    The same section is returned if nothing is or was auto.

    Args:
        config: config of the run.
        mesh: the devices.
        compiled: compiles the programs of different sizes, for a limit of memory.
        say: called with a sentence about the choice.
        stored: fields of a resumed run whose values auto gave at its start.

    Raises:
        ConfigError: nothing fits, or the memory of the devices is not known.
    """
    train = config.train
    fields = stored or auto_fields(train)
    if not fields:
        return train
    kind, limit = mesh.devices.flat[0].device_kind, memory_limit(train.memory_gib, mesh)
    if limit is None and stored:
        say(f"{stored[0]} = auto: the run keeps its value, unchecked, since the memory of a {kind} is not known")
        return train
    if limit is None:
        raise ConfigError(
            f"{fields[0]} = auto: the memory of a {kind} is not known. Set train.memory_gib to the GiB of each device "
            "that a step may use, or replace auto by a value."
        )
    chooser = _Chooser(compiled(limit), mesh, row_unit(mesh, config.sharding.microbatches), config.mesh)
    if stored:
        return chooser.check_stored(train, stored[0], say)
    more = ""
    if train.remat == AUTO:
        found = chooser.remat(train)
        chooser.check_evaluations(found)
    elif train.accumulate == AUTO:
        found = chooser.accumulate(train)
        chooser.check_evaluations(found)
    else:
        found, more = chooser.limit_batch(chooser.batch(train))
    why = chooser.sizes if chooser.sizes.shares else "the model has no layer that supports remat"
    say(f"{fields[0]} = auto: {_value(found, fields[0])}{more} ({why})")
    return found


@dataclasses.dataclass(frozen=True)
class _Chooser:
    """Chooses the automatic settings of a run.

    Attributes:
        sizes: compiles programs and has their needs.
        mesh: the devices.
        row_unit: number of which the rows of a microbatch are a multiple.
        mesh_spec: config section `mesh`, for advice.
    """

    sizes: CompiledSizes
    mesh: Mesh
    row_unit: int
    mesh_spec: MeshSpec

    def batch(self, train: Train) -> Train:
        """Chooses the batch by the step; it has at most as many rows as the data, if that is possible."""
        unit = self.row_unit * train.accumulate
        most = max(1, self.sizes.examples // unit)
        count = largest_fitting(
            lambda count: self.sizes.share(count * unit, _with_batch(train, count * unit)), 1.0, most
        )
        if count is None:
            what, smallest = f"the smallest batch, {unit},", _with_batch(train, unit)
            raise self._nothing_fits("train.global_batch_size", what, smaller(smallest, self.mesh_spec))
        return _with_batch(train, count * unit)

    def limit_batch(self, train: Train) -> tuple[Train, str]:
        """Makes the chosen batch smaller if evaluations share it and do not fit; returns a text about that, too."""
        shares = {name: share for name, share in self.sizes.evaluation_shares(train).items() if share > 1}
        if not shares:
            return train, ""
        for name, share in shares.items():
            if self.sizes.evaluations[name].batch_size is not None:
                raise self._evaluation_error(name, share, train)
        unit = self.row_unit * train.accumulate

        def need(count: int) -> float:
            found = self.sizes.evaluation_shares(_with_batch(train, count * unit))
            return max(found[name] for name in shares)

        largest = max(shares, key=lambda name: shares[name])
        count = largest_fitting(need, 1.0, train.global_batch_size // unit - 1)
        if count is None:
            raise self._evaluation_error(largest, shares[largest], train)
        text = (
            f", since evaluation {largest} needs {self.sizes.share_text(shares[largest])} with "
            f"{train.global_batch_size} rows; a smaller evaluations.{largest}.batch_size allows a larger batch"
        )
        return _with_batch(train, count * unit), text

    def accumulate(self, train: Train, stored: int | None = None) -> Train:
        """Chooses the number of microbatches; a resume chooses more than `stored`."""
        check_batch(self.mesh, train.global_batch_size, 1)
        # If the batch is no multiple of the rows, the first step raises the error.
        most = max(1, train.global_batch_size // self.row_unit)
        candidates = [n for n in range(1, most + 1) if most % n == 0 and n > (stored or 0)] or [most]

        def split(count: int) -> Train:
            return dataclasses.replace(train, accumulate=count)

        def fits(count: int) -> bool:
            try:
                return self.sizes.share(count, split(count)) <= 1
            except (ConfigError, ShardingError) as error:
                if not self.sizes.shares:
                    raise
                last = max(self.sizes.shares)
                raise ConfigError(
                    f"train.accumulate = auto: with {last}, a step needs {self.sizes.text(last)} of "
                    f"{self.sizes.limit.text}; and {count} is not possible: {error}"
                ) from error

        count = smallest_fitting(fits, candidates)
        if count is None:
            most_split = split(candidates[-1])
            resumed = [*self._allowed(most_split, "train.accumulate"), "devices with more memory"]
            advice = smaller(most_split, self.mesh_spec) if stored is None else resumed
            raise self._nothing_fits("train.accumulate", f"the most microbatches, {candidates[-1]},", advice)
        return split(count)

    def remat(self, train: Train, stored: str | None = None) -> Train:
        """Chooses the value of `train.remat` whose step takes least time, of those that fit; not `stored`.

        A value that keeps less computes more. So the first one that fits and takes longer than an earlier one ends the
        search.
        """
        choices = policies(self.sizes.used(dataclasses.replace(train, remat="none")))
        if len(choices) == 1 and stored is None:
            return dataclasses.replace(train, remat=choices[0])
        best, least = None, math.inf
        for name in (name for name in choices if name != stored):
            if self.sizes.share(name, dataclasses.replace(train, remat=name), timed=True) > 1:
                continue
            if self.sizes.seconds[name] > least:
                break
            best, least = name, self.sizes.seconds[name]
        if best is not None:
            return dataclasses.replace(train, remat=best)
        fullest = dataclasses.replace(train, remat="full")
        resumed = [*self._allowed(fullest, "train.remat"), "devices with more memory"]
        advice = smaller(fullest, self.mesh_spec) if stored is None else resumed
        raise self._nothing_fits("train.remat", f"the best of {', '.join(map(str, self.sizes.shares))},", advice)

    def _nothing_fits(self, field: str, what: str, advice: Sequence[str]) -> ConfigError:
        need = self.sizes.text(min(self.sizes.shares, key=lambda size: self.sizes.shares[size]))
        return ConfigError(
            f"{field} = auto: even with {what} a step needs {need} of {self.sizes.limit.text}. To shrink the run: "
            f"{'; '.join(advice)}."
        )

    def _allowed(self, train: Train, tried: str) -> list[str]:
        """Returns the settings of `smaller` that a resume may change, without the field that was tried."""
        found = [text for text in smaller(train, self.mesh_spec)[:-1] if not is_identity(text.partition("=")[0])]
        return [text for text in found if not text.startswith(tried)]

    def check_evaluations(self, train: Train, allowed: float = 1.0) -> None:
        """Raises ConfigError if an evaluation needs more than this share of the limit."""
        for name, share in self.sizes.evaluation_shares(train).items():
            if share > allowed:
                raise self._evaluation_error(name, share, train)

    def _evaluation_error(self, name: str, share: float, train: Train) -> ConfigError:
        field, own = f"evaluations.{name}.batch_size", self.sizes.evaluations[name].batch_size
        rows = own or train.global_batch_size
        origin = "" if own else " (that of the training)"
        return ConfigError(
            f"{field} = {rows}{origin}: with the train state, the evaluation needs {self.sizes.share_text(share)} of "
            f"{self.sizes.limit.text}. Set {field} to a smaller number, or split the state over more devices "
            "(mesh.fsdp)."
        )

    def check_stored(self, train: Train, field: str, say: Callable[[str], None]) -> Train:
        """Checks a value that auto gave at the start of a run on the devices of its resume.

        If the step does not fit, more microbatches or another value of `train.remat` are chosen if `field` is that one,
        since they do not change the result but by rounding. Otherwise the resume is refused, since the batch is an
        identity field.
        """
        value = _value(train, field)
        if self.sizes.share(value, train) > KEPT_SHARE:
            free = not train.approximate_accumulation
            if field == "train.remat" or (field == "train.accumulate" and free):
                choose = self.remat if field == "train.remat" else self.accumulate
                train = choose(train, stored=value)
                found = f"{_value(train, field)} instead of {value}, the value of the run so far"
                say(f"{field} = auto: {found} ({self.sizes})")
            else:
                size = train.global_batch_size
                advice = [f"train.global_batch_size={size} with train.accumulate=auto, which splits this batch"] * free
                advice += [*self._allowed(train, "train.accumulate"), "devices with more memory"]
                raise ConfigError(
                    f"{field} = auto: the run began with {value}, which a resume cannot change. A step needs "
                    f"{self.sizes.text(value)} here; allowed are {self.sizes.limit.text}. Resume with "
                    f"{'; '.join(advice)}."
                )
        self.check_evaluations(train, KEPT_SHARE)
        return train


def _value(train: Train, field: str) -> Any:
    """Returns the value of a field such as "train.remat"."""
    return getattr(train, field.removeprefix("train."))


def _with_batch(train: Train, size: int) -> Train:
    return dataclasses.replace(train, global_batch_size=size)


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
