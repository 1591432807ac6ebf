"""`Joint`, a source that gives the examples of several datasets with different labels to one training run."""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from engine.base.duration import UNKNOWN_LENGTH
from engine.base.errors import DataError, did_you_mean
from engine.base.types import PyTree
from engine.cluster import group
from engine.data.adapt import Readable, as_source, counted, follows_run
from engine.data.batches import batch_bytes
from engine.data.collate import stack_examples
from engine.data.context import names_total_steps
from engine.data.sampling.sampler import Sampler, read_example
from engine.data.sampling.share_schedule import Times
from engine.data.source import SEPARATOR, BaseSource, Example, Examples, limited, source_name
from engine.joint.bundles import Bundles
from engine.joint.loss_weights import LossWeights, Weight
from engine.joint.plan import Choose, Every, Plan
from engine.joint.sampler import Datasets, JointSampler, NamedOrder, Shape, shapes_of
from engine.training.task import Task

MAX_SHAPES = 16
"""Most shapes of batches: each is a program that the run compiles."""


class Joint(BaseSource):
    """A source whose batches hold examples of several datasets, each with labels and shapes of its own.

    A row of a batch is a *bundle*: `rows[name]` examples of each dataset. `train.global_batch_size` counts bundles. So
    with rows={"boxes": 2, "lanes": 1} and a batch size of 16, a step takes 32 boxes and 16 lanes, and whatever splits
    rows splits both: devices, processes, microbatches.

    - The Task's `loss(model, batch, rng)` gets name -> batch, arrays `[rows, ...]`, and name -> random keys `[rows]`.
      It returns `Loss.sum(boxes=..., lanes=...)`, or a dict, with a loss for each dataset in the batch. A dataset may
      have several, by `Loss.sum` too.
    - Each dataset keeps its shuffle, epochs, transform, padding, packing and streams: an example at a position of its
      dataset is a pure function of (seed, position). The order depends on its name.
    - Length: `len`, and with it an epoch in `train.total` and other durations, is the number of bundles in which the
      dataset `epoch` is read once; by default the dataset that takes the most steps.
    - `data.limit` counts bundles: of each dataset, the first examples that so many bundles hold.
    - An evaluation reads one dataset, each example once: `Joint({"boxes": held_out})`. Then the Task's methods get only
      this dataset.
    - An example that cannot be read gives its bundle weight 0 (`data.on_error=skip`).
    """

    def __init__(
        self,
        sources: Mapping[str, Readable],
        rows: Mapping[str, int] | None = None,
        *,
        every: Mapping[str, int] | None = None,
        choose: Mapping[str, float] | None = None,
        weights: Mapping[str, Weight] | None = None,
        epoch: str | None = None,
    ):
        """Creates the source.

        Args:
            sources: name -> dataset: a source, a stream, an iterable or a generator function.
            rows: name -> examples in a bundle; 1 for others.
            every: name -> n: only every n-th step takes the dataset, the steps n, 2 n, ...; 1 for others.
            choose: name -> number above 0: each step takes one dataset, in these proportions. Not with `every`.
            weights: name -> factor of its losses in training, or time -> factor, such as {"0 steps": 0.1, "1000 steps":
                1.0}, linear in between; 1 for others.
            epoch: name of the dataset that defines an epoch.

        Raises:
            DataError: there is no dataset, one is empty, a name is unknown, or a number is not allowed.
        """
        names = _checked_names(sources)
        self.sources = self._parts = {name: as_source(sources[name], f"engine.Joint: dataset {name}") for name in names}
        self.rows = _counts(names, rows, "rows")
        """Name of each dataset -> its examples in a bundle."""
        if every and choose:
            raise DataError("engine.Joint: every and choose are both given. Use one of them.")
        self._every = _counts(names, every, "every")
        self._choose = _proportions(names, choose)
        self.plan: Plan = Every(self._every) if self._choose is None else Choose(self._choose)
        """Which datasets a step takes."""
        self.weights = LossWeights(weights or {})
        """Factors of the losses in training."""
        for where, found in (("weights", self.weights.names), ("epoch", [] if epoch is None else [epoch])):
            _check_names(names, found, where)
        if self.weights.names and len(names) == 1:
            raise DataError("engine.Joint: weights of one dataset change nothing. Leave them out.")
        self._given_epoch = epoch
        self._check_parts()
        if len(self._parts) == 1 and self.rows[names[0]] == 1 and self._parts[names[0]].has_take:
            self.take = self._take
        if len(self.plan.sets()) > 1:
            self.consecutive = 0
        elif len(self._shapes) > 1:
            self.consecutive = int(np.gcd.reduce([part.consecutive for part in self._parts.values()]))
        if any(follows_run(part) or _reads_total(part) for part in self._parts.values()):
            self.times = Times.parse({"0 steps": None, "100%": None}, "engine.Joint")

    def _check_parts(self) -> None:
        where = f" in process {group.index()}" if group.count() > 1 else ""
        for name, part in self._parts.items():
            if not len(part):
                raise DataError(
                    f"engine.Joint: dataset {name} ({source_name(part)}) has no examples{where}. Check its files and "
                    "arguments, or leave it out."
                )
            if part.continues_rows:
                raise DataError(
                    f"engine.Joint: dataset {name} ({source_name(part)}) continues drives in the rows of the batches, "
                    "of which some are idle, and a bundle has no idle rows. Use windows without carry=True."
                )
            if part.defines("adapt_task"):
                raise DataError(
                    f"engine.Joint: dataset {name} ({source_name(part)}) holds several datasets itself. Name all of "
                    "them in one engine.Joint."
                )

    @property
    def names(self) -> list[str]:
        """The sorted names of the datasets."""
        return list(self.rows)

    @property
    def epoch(self) -> str:
        """Name of the dataset that defines an epoch: the given one, or that which takes the most steps."""
        return self._given_epoch or max(self.names, key=lambda name: (self._bundles(name), name))

    def _bundles(self, name: str) -> int:
        """Returns the bundles in which a dataset is read once; UNKNOWN_LENGTH if its length is not known."""
        size = len(self._parts[name])
        if size >= UNKNOWN_LENGTH:
            return UNKNOWN_LENGTH
        return round(-(-size // self.rows[name]) / self._share(name))

    def __len__(self) -> int:
        """Number of bundles of an epoch; UNKNOWN_LENGTH if it is not known."""
        return self._bundles(self.epoch)

    def __getitem__(self, index: int) -> Example:
        """Returns the bundle of the unshuffled datasets at an index, each of which starts again at its end."""
        return Bundles({name: self._examples(name, index) for name, _ in self._shapes[-1]}, self.rows)

    def _examples(self, name: str, index: int) -> Example:
        part, count = self._parts[name], self.rows[name]
        if count == 1:
            return read_example(part, index % len(part))
        numbers = [number % len(part) for number in range(index * count, (index + 1) * count)]
        return stack_examples(
            [read_example(part, i) for i in numbers], lambda row: f"{numbers[row]} of {source_name(part)}"
        )

    def _take(self, indices: np.ndarray) -> Examples:
        [(name, part)] = self._parts.items()
        return Bundles({name: part.take(indices)}, self.rows)

    def _copy(self, parts: Mapping[str, BaseSource]) -> "Joint":
        """Returns the same source with other datasets."""
        found = copy.copy(self)
        for cached in ("_shapes", "specs", "measured"):
            vars(found).pop(cached, None)
        found.sources = found._parts = dict(parts)
        if self.defines("take"):
            found.take = found._take
        return found

    def limited(self, count: int) -> "Joint":
        """Returns the source of the first examples of each dataset that `count` bundles hold, and at least of one."""
        bundles = {name: max(1, self.plan.before(count, name)) for name in self.names}
        return self._copy({name: limited(part, bundles[name] * self.rows[name]) for name, part in self._parts.items()})

    def with_run(self, examples: int) -> "Joint":
        """Returns the source for a run of so many bundles, of which times in percent are shares."""
        parts = {
            name: part.with_run(round(examples * self.rows[name] * self._share(name)))
            for name, part in self._parts.items()
        }
        found = self._copy(parts)
        found.times = dataclasses.replace(self.times, run=examples)
        return found

    def _share(self, name: str) -> float:
        """Returns the share of the steps that take a dataset."""
        return 1 / self._every[name] if self._choose is None else self._choose[name] / sum(self._choose.values())

    def counted(self) -> "Joint":
        """Returns a source of known length, for which it reads streams of unknown length once."""
        return self._copy({name: counted(part) for name, part in self._parts.items()})

    def fingerprint(self) -> str:
        """Returns the fingerprints of the datasets, each with its rows and its steps."""

        def steps(name: str) -> str:
            if self._choose is not None:
                return f" chosen {self._choose[name]}"
            return f" every {self._every[name]}" if self._every[name] > 1 else ""

        return SEPARATOR.join(
            f"{name} x {self.rows[name]}{steps(name)}: {text}"
            for name, part in self._parts.items()
            for text in part.fingerprint().split(SEPARATOR)
        )

    @functools.cached_property
    def specs(self) -> dict[str, list[PyTree]]:
        """Name of each dataset -> the spec of an example in each of its shapes."""
        return {name: part.shape_specs() for name, part in self._parts.items()}

    @functools.cached_property
    def _shapes(self) -> list[Shape]:
        """The shapes of the batches; the largest, by its bytes, is the last."""
        found = shapes_of(self.plan.sets(), {name: len(specs) for name, specs in self.specs.items()})
        if len(found) > MAX_SHAPES:
            raise DataError(
                f"engine.Joint: the batches have {len(found)} shapes, allowed are {MAX_SHAPES}, since each is a "
                "program that the run compiles. Give the datasets fewer lengths, or other values of every."
            )
        return sorted(found, key=lambda shape: batch_bytes(self._spec(shape), 1))

    def _spec(self, shape: Shape) -> Bundles:
        """Returns the spec of a bundle."""
        return bundle_spec({name: self.specs[name][number] for name, number in shape}, self.rows)

    def shape_specs(self) -> list[PyTree]:
        return list(map(self._spec, self._shapes))

    def shape_names(self) -> list[str]:
        if len(self._shapes) == 1:
            return []
        names = {name: part.shape_names() for name, part in self._parts.items()}
        return [
            ", ".join(name + (f" {names[name][number]}" if len(names[name]) > 1 else "") for name, number in shape)
            for shape in self._shapes
        ]

    @functools.cached_property
    def measured(self) -> bool:
        """Whether the lengths of the examples are known without reading them, if they are ragged."""
        return all(part.measured for part in self._parts.values())

    def sampler(self, seed: int, shuffle: bool) -> Sampler:
        """Raises DataError: without the size of a batch, no step is known."""
        raise DataError("engine.Joint cannot be a part of another source. Put the other source into it.")

    def batch_sampler(self, seed: int, shuffle: bool, batch_size: int) -> JointSampler:
        """Returns the sampler of a training run with batches of so many bundles."""
        steps = 0 if self.times is None or self.times.run is None else self.times.run // batch_size
        own_steps = {name: self.plan.before(steps, name) for name in self.names}
        datasets = Datasets(self._parts, self.rows, self.plan, self._shapes, own_steps)
        return JointSampler(datasets, batch_size, seed, shuffle)

    def evaluation_order(self, batch_size: int) -> Sampler | None:
        return self._named(lambda part: part.evaluation_order(batch_size))

    def stored_order(self, batch_size: int) -> Sampler | None:
        return self._named(lambda part: part.stored_order(batch_size))

    def _named(self, order_of: Callable[[BaseSource], Sampler | None]) -> Sampler | None:
        [(name, part), *others] = self._parts.items()
        found = None if others else order_of(part)
        return None if found is None else NamedOrder(name, found)

    def record_name(self, index: int) -> str:
        [part, *others] = self._parts.values()
        return "" if others else part.record_name(index)

    def batch_text(self, rows: int) -> str:
        """Returns what a step takes, and what an epoch is."""
        counts = [self._step_text(name, rows * self.rows[name]) for name in self.names]
        last = " or " if self._choose is not None else " and "
        taken = last.join(filter(None, (", ".join(counts[:-1]), counts[-1])))
        return f"a step takes {taken}; an epoch is that of {self.epoch} ({source_name(self._parts[self.epoch])})."

    def _step_text(self, name: str, count: int) -> str:
        if self._choose is not None:
            return f"{count} {name} ({self._share(name):.0%} of the steps)"
        n = self._every[name]
        return f"{count} {name}" + (f" (one of {n} steps)" if n > 1 else "")

    def adapt_task(self, task: Task, where: str) -> Task:
        """Returns the Task for its batches. Raises DataError for an evaluation of several datasets."""
        from engine.joint.task import adapted

        if where != "data" and (len(self.names) > 1 or self.rows[self.names[0]] > 1):
            each = ", ".join(f"engine.Joint({{{name!r}: ...}})" for name in self.names)
            raise DataError(
                f"{where}: found engine.Joint of {_listed(self.rows)}. An evaluation reads one dataset, each example "
                f"once: make one for each, without rows: {each}."
            )
        return adapted(task, self, where)


def bundle_spec(parts: Mapping[str, PyTree], rows: Mapping[str, int]) -> Bundles:
    """Returns the spec of a bundle from the specs of an example of each dataset."""
    import jax

    def several(spec: jax.ShapeDtypeStruct, count: int) -> jax.ShapeDtypeStruct:
        return spec if count == 1 else jax.ShapeDtypeStruct((count, *spec.shape), spec.dtype)

    found = {name: jax.tree.map(lambda x, n=rows[name]: several(x, n), spec) for name, spec in parts.items()}
    return Bundles(found, rows)


def _listed(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{name} x {count}" if count > 1 else name for name, count in rows.items())


def _checked_names(sources: object) -> list[str]:
    """Returns the sorted names of the datasets. Raises DataError if they are not allowed."""
    if not isinstance(sources, Mapping) or not sources:
        found = "no datasets" if isinstance(sources, Mapping) else f"sources is a {type(sources).__name__}"
        raise DataError(f"engine.Joint: {found}. Pass at least one dataset: sources={{NAME: SOURCE}}.")
    for name in sources:
        if not isinstance(name, str) or not name or "/" in name or name == "loss":
            raise DataError(
                f"engine.Joint: a dataset has the name {name!r}. Allowed is text without '/' other than 'loss', since "
                "the metrics of its loss have this name."
            )
    return sorted(sources)


def _check_names(names: Sequence[str], found: Iterable[str], where: str) -> None:
    """Raises DataError for a name that is no dataset."""
    for name in found:
        if name not in names:
            raise DataError(
                f"engine.Joint: {where} has {name}, but no dataset has that name.{did_you_mean(str(name), names)} "
                f"Datasets: {', '.join(names)}."
            )


def _counts(names: Sequence[str], given: Mapping[str, int] | None, where: str) -> dict[str, int]:
    """Returns whole numbers from 1 by name, 1 for names that are not given. Raises DataError for others."""
    given = given or {}
    _check_names(names, given, where)
    for name, count in given.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise DataError(f"engine.Joint: {where} of {name} is {count!r}: allowed are whole numbers from 1.")
    return {name: int(given.get(name, 1)) for name in names}


def _proportions(names: Sequence[str], given: Mapping[str, float] | None) -> dict[str, float] | None:
    """Returns `choose`. Raises DataError if a name is unknown or missing, or a number is not above 0."""
    if given is None:
        return None
    _check_names(names, given, "choose")
    for name in names:
        value = given.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise DataError(
                f"engine.Joint: choose of {name} is {value!r}: allowed are numbers above 0, one for each dataset."
            )
    return {name: given[name] for name in names}


def _reads_total(source: BaseSource) -> bool:
    """Whether the transform of a dataset reads the length of the run."""
    return source.has_transform and names_total_steps(source.transform)
