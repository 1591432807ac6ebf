"""Candidates: meshes and settings among which a plan chooses."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from engine.config.hardware import AXES
from engine.config.schema import Sharding, Train
from engine.parallel import schedule
from engine.parallel.layout import ATTENTION
from engine.parallel.mesh import Axes, axes_text
from engine.planning.machine import Machine

LARGEST = {"tensor": 16, "context": 16, "pipeline": 16, "expert": 64}
"""Axis -> most devices that a candidate has on it; more lose to other axes."""
SHARED = 16
"""Most devices that share a row of a batch that a plan proposes."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh and the settings of a run that change its speed and memory, and not its result.

    `precision` alone changes the result, by rounding.
    """

    sizes: tuple[int, ...]  # size of each axis, over all slices
    between: tuple[int, ...]  # factor of each axis between slices of TPUs
    remat: str = "none"
    accumulate: int = 1
    precision: str = "float32"
    zero1: bool = False
    offload_optimizer: bool = False
    microbatches: int | None = None
    steps_per_dispatch: int = 1
    schedule: str = "gpipe"
    repeats: int = 1
    context: str = "ring"

    @functools.cached_property
    def axes(self) -> Mapping[str, int]:
        """Axis -> devices over all slices."""
        return dict(zip(AXES, self.sizes, strict=True))

    @functools.cached_property
    def dcn(self) -> Mapping[str, int]:
        """Axis -> slices."""
        return dict(zip(AXES, self.between, strict=True))

    @property
    def within(self) -> Mapping[str, int]:
        """Axis -> devices within a slice."""
        return {axis: self.axes[axis] // self.dcn[axis] for axis in AXES}

    @property
    def shards(self) -> int:
        """Devices among which the rows of a microbatch are divided."""
        return self.axes["data"] * self.axes["fsdp"] * self.axes["expert"]

    def overrides(self) -> dict[str, object]:
        """Returns path of a config field -> value."""
        found: dict[str, object] = {"mesh.preset": "auto"}
        found |= {f"mesh.{axis}": size for axis, size in self.within.items()}
        found |= {f"mesh.dcn.{axis}": size for axis, size in self.dcn.items()}
        found |= {
            "train.remat": self.remat,
            "train.accumulate": self.accumulate,
            "train.precision": self.precision,
            "train.offload_optimizer": self.offload_optimizer,
            "train.steps_per_dispatch": self.steps_per_dispatch,
            "sharding.zero1": self.zero1,
        }
        if self.axes["pipeline"] > 1:
            found["sharding.microbatches"] = self.microbatches
            found["sharding.schedule"] = self.schedule
            found["sharding.repeats"] = self.repeats
        if self.axes["context"] > 1:
            found["sharding.context"] = self.context
        return found

    def __str__(self) -> str:
        parts = [axes_text(self.axes)]
        if any(size > 1 for size in self.between):
            parts[0] += f" (slices: {axes_text(self.dcn)})"
        parts += [self.context] if self.context != "ring" else []
        parts += [self.schedule] if self.schedule != "gpipe" else []
        parts += [f"repeats={self.repeats}"] if self.repeats > 1 else []
        parts += [f"remat={self.remat}"] if self.remat != "none" else []
        parts += [f"accumulate={self.accumulate}"] if self.accumulate > 1 else []
        parts += ["zero1"] if self.zero1 else []
        parts += ["offload"] if self.offload_optimizer else []
        return ", ".join(parts)


def candidate_of(train: Train, sharding: Sharding, axes: Axes) -> Candidate:
    """Returns the candidate that a config is, the inverse of `engine.planning.plan.with_candidate`.

    Args:
        train: config section `train`.
        sharding: config section `sharding`.
        axes: its mesh for some devices, of `parallel.mesh.axes_of`.
    """
    stages = axes.sizes["pipeline"]
    found = Candidate(
        tuple(axes.sizes[axis] for axis in AXES),
        tuple(axes.between[axis] for axis in AXES),
        remat=train.remat,
        accumulate=train.accumulate,
        precision=train.precision,
        zero1=sharding.zero1,
        offload_optimizer=train.offload_optimizer,
        steps_per_dispatch=train.steps_per_dispatch,
    )
    if axes.sizes["context"] > 1:
        found = dataclasses.replace(found, context=sharding.context)
    if stages == 1:
        return found
    microbatches = schedule.microbatch_count(sharding.microbatches, stages)
    return dataclasses.replace(found, microbatches=microbatches, schedule=sharding.schedule, repeats=sharding.repeats)


@dataclasses.dataclass(frozen=True)
class Attention:
    """The sizes of an attention, and how a mesh may split its sequences."""

    positions: int
    heads: int
    kv_heads: int
    causal: bool

    @classmethod
    def parse(cls, text: str) -> "Attention":
        """Returns the attention of an entry of `Layout.used`."""
        positions, heads, kv_heads, causal = map(int, text.removeprefix(ATTENTION).split(","))
        return cls(positions, heads, kv_heads, bool(causal))

    @classmethod
    def all_of(cls, used: Collection[str]) -> "list[Attention]":
        """Returns the attentions among the entries of `Layout.used`."""
        return [cls.parse(text) for text in sorted(used) if text.startswith(ATTENTION)]

    def has_ring(self, axes: Mapping[str, int]) -> bool:
        """Returns whether a ring is possible; in causal order each device has two parts of a sequence."""
        return self.positions % (axes["context"] * (2 if self.causal else 1)) == 0

    def has_all_to_all(self, axes: Mapping[str, int]) -> bool:
        """Returns whether the positions, and the heads of a device, divide."""
        return self.positions % axes["context"] == 0 and self._heads(axes) % axes["context"] == 0

    def repeated(self, axes: Mapping[str, int]) -> float:
        """Returns how often an all-to-all repeats each head of keys so that the devices divide them."""
        parts = axes["context"] * self.heads // self._heads(axes)
        return math.lcm(self.kv_heads, parts) / self.kv_heads

    def _heads(self, axes: Mapping[str, int]) -> int:
        return self.heads // axes["tensor"] if self.heads % axes["tensor"] == 0 else self.heads


@dataclasses.dataclass(frozen=True)
class Choices:
    """What the model and the config allow.

    Attributes:
        rows: rows of the global batch.
        axes: mesh axes that the model supports.
        layers: greatest common divisor of the layers of its stacks; each axis `pipeline` divides it.
        remats: policies of train.remat.
        precisions: values of train.precision.
        accumulates: whether microbatches are exact for the model.
        offloads: whether the devices can read host memory.
        repeats: values of `sharding.repeats`, groups of layers of a pipeline stage.
        schedules: values of `sharding.schedule`.
        attentions: the sizes of each attention of the model.
        evaluations: name -> batch size of an evaluation, which the devices of the rows divide too.
        steps: values of train.steps_per_dispatch, ascending.
        unrolled: most steps times microbatches of a dispatch, where each is compiled separately; None: no limit.
    """

    rows: int
    axes: Sequence[str]
    layers: int
    remats: Sequence[str]
    precisions: Sequence[str]
    accumulates: bool = True
    offloads: bool = False
    repeats: Sequence[int] = (1,)
    schedules: Sequence[str] = ("gpipe",)
    attentions: Sequence["Attention"] = ()
    evaluations: Mapping[str, int] = dataclasses.field(default_factory=dict)
    steps: Sequence[int] = (1,)
    unrolled: int | None = None

    @property
    def batches(self) -> dict[str, int]:
        """Path of a config field -> rows of a batch."""
        evaluations = {f"evaluations.{name}.batch_size": size for name, size in self.evaluations.items()}
        return {"train.global_batch_size": self.rows, **evaluations}

    def divides(self, shards: int) -> bool:
        """Returns whether every batch divides over a number of devices."""
        return all(size % shards == 0 for size in self.batches.values())

    def contexts(self, axes: Mapping[str, int]) -> list[str]:
        """Returns the values of `sharding.context` that each attention of the model allows with the axes of a mesh."""
        if axes["context"] == 1:
            return ["ring"]
        checks = {"ring": Attention.has_ring, "all-to-all": Attention.has_all_to_all}
        return [name for name, allows in checks.items() if all(allows(one, axes) for one in self.attentions)]

    def allows(self, accumulate: int, steps: int) -> bool:
        """Returns whether the engine compiles a dispatch of so many microbatches and steps."""
        return self.unrolled is None or accumulate * steps <= self.unrolled


def meshes(machine: Machine, choices: Choices) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yields (size of each axis over all slices, size between slices) of every mesh for a machine."""
    slices = machine.slices if machine.platform == "tpu" else 1
    outer = ("data", "pipeline") if "pipeline" in choices.axes else ("data",)
    for crossing in outer if slices > 1 else ("data",):
        between = tuple(slices if axis == crossing else 1 for axis in AXES)
        for within in _sizes(machine.count // slices, choices, AXES):
            sizes = tuple(a * b for a, b in zip(within, between, strict=True))
            axes = dict(zip(AXES, sizes, strict=True))
            rows = axes["data"] * axes["fsdp"] * axes["expert"]
            if choices.divides(rows) and choices.layers % axes["pipeline"] == 0:
                yield sizes, between


def _sizes(devices: int, choices: Choices, axes: Sequence[str]) -> Iterator[tuple[int, ...]]:
    axis, *rest = axes
    if not rest:
        if devices == 1 or (axis in choices.axes and devices <= LARGEST.get(axis, devices)):
            yield (devices,)
        return
    largest = LARGEST.get(axis, devices) if axis in choices.axes else 1
    for size in (n for n in range(1, min(devices, largest) + 1) if devices % n == 0):
        for more in _sizes(devices // size, choices, rest):
            yield (size, *more)


def settings(mesh: tuple[tuple[int, ...], tuple[int, ...]], choices: Choices) -> Iterator[Candidate]:
    """Yields the candidates with one mesh."""
    sizes, between = mesh
    axes: dict[str, int] = dict(zip(AXES, sizes, strict=True))
    shards = axes["data"] * axes["fsdp"] * axes["expert"]
    contexts = choices.contexts(axes)
    for accumulate in _accumulations(choices.rows // shards) if choices.accumulates else (1,):
        if not choices.allows(accumulate, choices.steps[0]):
            continue
        pipelines = list(_pipelines(choices.rows // accumulate // shards, axes["pipeline"], choices))
        for remat in choices.remats:
            for precision in choices.precisions:
                for zero1 in (False, True) if axes["data"] > 1 else (False,):
                    for offload in (False, True) if choices.offloads else (False,):
                        for pipeline, context in itertools.product(pipelines, contexts):
                            yield Candidate(
                                sizes,
                                between,
                                remat,
                                accumulate,
                                precision,
                                zero1,
                                offload,
                                context=context,
                                **pipeline,
                            )


def _accumulations(rows: int) -> list[int]:
    """Returns the numbers of microbatches, powers of two, that divide the `rows` of a device."""
    return [n for n in (2**i for i in range(rows.bit_length())) if rows % n == 0]


def _pipelines(rows: int, stages: int, choices: Choices) -> Iterator[dict[str, Any]]:
    """Yields the settings of a pipeline for the rows of one device, as fields of Candidate."""
    if stages == 1:
        yield {}
        return
    for repeats in choices.repeats:
        microbatches = _microbatches(rows, stages, repeats)
        if microbatches is None or choices.layers % (stages * repeats):
            continue
        for kind in choices.schedules:
            yield {"microbatches": microbatches, "repeats": repeats, "schedule": kind}


def _microbatches(rows: int, stages: int, repeats: int) -> int | None:
    """Returns the microbatches of a pipeline: four per stage, or the most below that divide the rows; None for none.

    With several repeats they go in groups of `stages`.
    """
    wanted = 2 * schedule.microbatch_count(None, stages)
    fits = [n for n in range(stages, min(rows, wanted) + 1, stages if repeats > 1 else 1) if rows % n == 0]
    return max(fits, default=None)


def divisible(
    machine: Machine, choices: Choices, allows: Callable[[tuple[int, ...]], bool] = lambda sizes: True
) -> dict[str, int]:
    """Returns path of a config field -> next larger batch size, for batches that no mesh of a machine divides.

    The devices that split rows are as few as the other axes of the model allow, where at most `SHARED` devices of a
    host or slice share a row. Empty if the batches are not the reason why no mesh is possible.

    Args:
        machine: the devices.
        choices: what the model and the config allow.
        allows: whether the parameters divide over a mesh of these sizes.
    """
    any_rows = dataclasses.replace(choices, rows=machine.count, evaluations={})
    possible: list[tuple[int, tuple[int, ...]]] = []
    for sizes, _ in meshes(machine, any_rows):
        axes: dict[str, int] = dict(zip(AXES, sizes, strict=True))
        if axes["tensor"] * axes["context"] <= min(SHARED, machine.slice_size) and choices.contexts(axes):
            possible.append((axes["data"] * axes["fsdp"] * axes["expert"] * axes["pipeline"], sizes))
    shards = next((shards for shards, sizes in sorted(possible) if allows(sizes)), 1)
    return {path: -(-size // shards) * shards for path, size in choices.batches.items() if size % shards}


def fewer_devices(machine: Machine, choices: Choices) -> int:
    """Returns the largest number of devices, at most those of a machine, that divides every batch."""
    common = math.gcd(*choices.batches.values())
    return max(n for n in range(1, min(common, machine.count) + 1) if common % n == 0)
