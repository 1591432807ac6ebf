"""The memory of a candidate by formula.

The state is divided by the sharding rules. Temporary arrays are those of the unsharded program at the rows of one
device. Batches wait on the devices, since the host dispatches ahead.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from engine.base.errors import ShardingError
from engine.compile.build import DTYPES
from engine.config.hardware import AXES
from engine.data.prefetch import dispatches_in_flight
from engine.parallel import schedule
from engine.parallel.rules import STACKED, axes_of, partition_specs, split_over_data, state_spec, to_entry
from engine.planning.candidates import Attention, Candidate
from engine.planning.machine import Machine
from engine.planning.tracing import Traces
from engine.planning.weight_traffic import Weight, WeightTraffic, weight_traffic, zero1_divides

SAFE = 0.9
"""Share of a device's memory that a candidate that fits may need; the rest is for the runtime and fragmentation."""
OFFLOAD, ON_DEVICE = "offload:", "full"
"""Prefix of the remat policies that move activations to the host, and the policy that keeps as much on the device."""


@dataclasses.dataclass(eq=False)
class Cost:
    """Predicted memory, time and traffic of a candidate."""

    candidate: Candidate
    memory: dict[str, float] = dataclasses.field(default_factory=dict)  # part -> bytes of a device
    host: float = 0.0  # bytes of host memory for a device
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # part -> seconds of a step
    traffic: dict[str, float] = dataclasses.field(default_factory=dict)  # axis -> bytes that a device sends in a step
    exposed: dict[str, float] = dataclasses.field(default_factory=dict)  # axis -> seconds that the device waits for it
    bubble: float = 0.0
    problem: str = ""  # why the candidate is impossible
    compiled: bool = False  # memory and traffic are those of the compiled program

    @property
    def bytes(self) -> float:
        """Bytes of a device."""
        return sum(self.memory.values())

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())


class MemoryModel:
    """Predicts the memory of the candidates of one config on one machine.

    Args:
        traces: the unsharded programs.
        machine: the devices.
    """

    def __init__(self, traces: Traces, machine: Machine):
        self.traces, self.machine, self.model = traces, machine, traces.model
        state = traces.program.abstract_state
        self.rows = traces.program.batch_size
        self.params = {path: (x.shape, x.dtype.itemsize) for path, x in state.params.items()}
        # Path of a parameter -> bytes of the optimizer state of its shape, and (shape, bytes) of the other arrays.
        self.optimizer = dict.fromkeys(self.params, 0)
        self.factors: dict[str, list[tuple[tuple[int, ...], int]]] = {path: [] for path in self.params}
        self.rest = 0  # bytes of the arrays that every device holds
        for path, leaf in jax.tree.leaves_with_path(state.opt_state):
            size = math.prod(leaf.shape) * leaf.dtype.itemsize
            of = next((key for part in reversed(path) if (key := getattr(part, "key", None)) in self.params), None)
            if of is None:
                self.rest += size
            elif leaf.shape == self.params[of][0]:
                self.optimizer[of] += size
            else:
                self.factors[of].append((leaf.shape, size))
        self.rest += sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state.model_state))
        self.ema = state.ema is not None
        self.trained, self.stacked = set(self.model.trained), self.model.stacked
        self.prefetch = traces.prefetch
        self.approximate = traces.program.spec.approximate_accumulation
        arrays = jax.tree.leaves(traces.program.abstract_batch)
        self.arrays = len(jax.tree.leaves(state)) + len(arrays)
        self.row_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays) / self.rows
        self.attentions = Attention.all_of(traces.used)
        self.unrolls = machine.platform == "cpu" and traces.program.spec.unroll

    @functools.cache  # noqa: B019
    def specs(self, sizes: tuple[int, ...]) -> Mapping[str, Sequence[tuple[str, ...]]]:
        """Returns path -> mesh axes of each dimension. Raises ShardingError if parameters do not fit the mesh."""
        mesh = AbstractMesh(sizes, AXES)
        specs = partition_specs(self.model.params, self.model.names, self.traces.rules, mesh)
        return {path: [(x,) if isinstance(x, str) else tuple(x or ()) for x in spec] for path, spec in specs.items()}

    @functools.cache  # noqa: B019
    def state(self, sizes: tuple[int, ...], zero1: bool, splits: bool = False) -> tuple[float, float, float]:
        """Returns the bytes of parameters, of gradients, and of the optimizer state of a device.

        `splits`: whether ZeRO-1 also splits the parameters (`StepSpec.splits_params`).
        """
        axes: dict[str, int] = dict(zip(AXES, sizes, strict=True))
        params = grads = optimizer = 0.0
        for path, spec in self.specs(sizes).items():
            shape, width = self.params[path]
            parts = math.prod(axes[axis] for entry in spec for axis in entry)
            over_data = axes["data"] if zero1 and path in self.trained and zero1_divides(shape, spec, axes) else 1
            copies = 1 + (self.ema and path in self.trained)
            params += copies * math.prod(shape) * width / parts / (over_data if splits else 1)
            if path in self.trained:
                grads += math.prod(shape) * width / parts / over_data
                optimizer += self.optimizer[path] / parts / over_data
        return params, grads, optimizer + self._factors(sizes, zero1)

    def _factors(self, sizes: tuple[int, ...], zero1: bool) -> float:
        """Returns the bytes on a device of the optimizer state of other shapes than the parameters, such as factors."""
        mesh, found = AbstractMesh(sizes, AXES), 0.0
        for path, arrays in self.factors.items():
            if not arrays:
                continue
            param, spec = self.params[path][0], PartitionSpec(*map(to_entry, self.specs(sizes)[path]))
            spec = split_over_data(spec, param, mesh) if zero1 else spec
            for shape, size in arrays:
                entries = state_spec(shape, param, spec, mesh)
                found += size / math.prod(mesh.shape[axis] for entry in entries for axis in axes_of(entry))
        return found

    def stored(self, candidate: Candidate) -> tuple[float, float, float]:
        """Returns `state` of a candidate between two steps."""
        half = self.width(candidate) < 4
        return self.state(candidate.sizes, candidate.zero1, candidate.zero1 and half)

    def divides(self, sizes: tuple[int, ...]) -> bool:
        """Returns whether the parameters divide over a mesh."""
        try:
            self.specs(sizes)
        except ShardingError:
            return False
        return True

    def memory(self, candidate: Candidate) -> Cost:
        """Returns the memory of a candidate, without its time."""
        cost = Cost(candidate)
        try:
            stored, grads, optimizer = self.stored(candidate)
            params, _, _ = self.state(candidate.sizes, candidate.zero1)  # their bytes as the layers use them
        except ShardingError as error:
            cost.problem = str(error).splitlines()[0]
            return cost
        start, slope = self.traces.peak(on_device(candidate.remat), candidate.precision)
        whole = self.state((1,) * len(AXES), False)
        fixed = max(start - whole[1], 0.0) * params / max(whole[0], 1.0)
        activations = self.activations(candidate, slope)
        moved = self.moved(candidate)
        in_loops = self.traces.work(on_device(candidate.remat), candidate.precision, self.traces.rows).in_loops
        whole = self.whole_stage(candidate)
        gathered = self.gathered(candidate.sizes, self.width(candidate), frozenset(in_loops), whole)
        gathered += self.unsplit(candidate)
        if candidate.accumulate > 1:
            gathered += grads  # the gradient of a microbatch is added to the sum
        cost.memory = {
            "parameters": stored + self.rest,
            "optimizer": 0.0 if candidate.offload_optimizer else optimizer,
            "batch": self.batches(candidate),
            "gradients": grads,
            "activations": activations,
            "temporary": fixed + gathered,
        }
        cost.host = moved
        if candidate.offload_optimizer:
            cost.host += optimizer
            # The update reads the state back, when the activations are gone.
            cost.memory["temporary"] += max(0.0, optimizer - activations - cost.memory["temporary"])
        return cost

    def batches(self, candidate: Candidate) -> float:
        """Returns the bytes of all batches on a device: of the dispatch that runs, and of those that wait behind it.

        A loop over several steps or microbatches has a copy of its batches as one array.
        """
        k, each = candidate.steps_per_dispatch, self.row_bytes * self.rows / candidate.shards
        limit = None if self.machine.platform == "cpu" else self.machine.memory
        dispatches = 1 + dispatches_in_flight(self.prefetch, round(k * each), limit)
        return each * (dispatches * k + (k if k > 1 and not self.unrolls else 0) + (candidate.accumulate > 1))

    def rows_of(self, candidate: Candidate) -> float:
        """Returns the rows of a microbatch on one device."""
        return self.rows / candidate.accumulate / candidate.shards

    def divided(self, candidate: Candidate) -> int:
        """Returns the devices among which the activations and products of a row are divided."""
        return math.prod(candidate.axes[axis] for axis in ("tensor", "context", "pipeline"))

    def activations(self, candidate: Candidate, slope: float) -> float:
        """Returns the bytes of activations of a device.

        A stage of a pipeline keeps those of its layers for each tick ("gpipe"), or those of one microbatch and repeat,
        and the inputs of more ("1f1b").

        Args:
            candidate: the candidate.
            slope: bytes for each row of a microbatch on one device.
        """
        rows, stages = self.rows_of(candidate), candidate.axes["pipeline"]
        whole = slope * rows / self.divided(candidate)
        if stages == 1:
            return whole
        work = self.traces.work(on_device(candidate.remat), candidate.precision, rows)
        microbatches = candidate.microbatches or stages
        inputs, kept = schedule.memory(stages, microbatches, candidate.repeats, candidate.schedule)
        layers = min(max(work.kept, 0.0) / self.divided(candidate), whole)  # bytes for all microbatches and repeats
        carry = work.carry / microbatches / candidate.axes["context"] / candidate.axes["tensor"]
        return whole + layers * (kept / (microbatches * candidate.repeats) - 1) + inputs * carry

    def moved(self, candidate: Candidate) -> float:
        """Returns the bytes of activations of a microbatch that a device moves to the host, with remat=offload."""
        if not candidate.remat.startswith(OFFLOAD):
            return 0.0
        rows, precision = self.rows_of(candidate), candidate.precision
        kept, rest = (self.traces.work(policy, precision, rows).kept for policy in (candidate.remat, ON_DEVICE))
        saved = candidate.remat.replace(OFFLOAD, "save:")
        peaks = (self.traces.peak(policy, precision) for policy in (saved, ON_DEVICE))
        more, less = (start + slope * rows for start, slope in peaks)
        return max(kept - rest, more - less, 0.0) / self.divided(candidate)

    @functools.cache  # noqa: B019
    def gathered(self, sizes: tuple[int, ...], width: int, in_loops: frozenset[str], whole: float) -> float:
        """Returns the bytes of gathered weights: two layers of each stack, or the largest parameter outside of one.

        A stage of a pipeline has all of its layers, if it gathers them once.

        Kernels of convolutions are whole during the step (`training/model.py`). A parameter that a loop uses,
        such as the head of a language model whose loss is computed in chunks, is also held in float32, and so is the
        sum of its gradient.

        Args:
            sizes: devices of each mesh axis.
            width: bytes of a number in the precision of the computation.
            in_loops: paths of parameters that each iteration of a loop uses.
            whole: `whole_stage`.
        """
        axes: dict[str, int] = dict(zip(AXES, sizes, strict=True))
        stacked = single = summed = kernels = 0.0
        for path, spec in self.specs(sizes).items():
            split = any("fsdp" in entry for entry in spec) and axes["fsdp"] > 1
            shape, _ = self.params[path]
            leading = self.stacked.get(path, 0)
            size = math.prod(shape[leading:]) / math.prod(axes[a] for e in spec[leading:] for a in e if a != "fsdp")
            if split and leading:
                stacked += width * size
            elif split and path in self.model.convolutions:
                kernels += width * size
            elif split:
                single = max(single, width * size)
            if path in in_loops:
                summed += size * ((width if split else 0) + (4 if width < 4 else 0) + 4)
        return max(0.0 if whole else 2 * stacked, single, summed) + whole + kernels

    def unsplit(self, candidate: Candidate) -> float:
        """Returns the bytes of what ZeRO-1 splits and a step holds whole.

        In bfloat16 the parameters are gathered, and the gradient of each layer is split when it is known. In float32
        the parameters are stored whole, and the gradients count. TPUs gather kernels layer by layer: two layers of each
        stack, or the largest kernel outside of one.
        """
        if not candidate.zero1 or candidate.axes["data"] == 1:
            return 0.0
        if not self.gathers_by_layer(candidate):
            return self.weights(candidate, 1).zero1
        stacked = single = rest = 0.0
        for path, spec in self.specs(candidate.sizes).items():
            shape, leading = self.params[path][0], self.stacked.get(path, 0)
            if path not in self.trained or not zero1_divides(shape, spec, candidate.axes):
                continue
            parts = math.prod(candidate.axes[axis] for entry in spec for axis in entry)
            size = self.width(candidate) * math.prod(shape) / parts
            if len([name for name in self.model.names.get(path, ()) if name not in STACKED]) != 2:
                rest += size
            elif leading:
                stacked += size / math.prod(shape[:leading])
            else:
                single = max(single, size)
        return max(2 * stacked, single) + rest

    def gathers_by_layer(self, candidate: Candidate) -> bool:
        """Returns whether layers gather what ZeRO-1 splits, each in its turn (`Layout.gathers_over_data`)."""
        alone = candidate.axes["data"] > 1 and candidate.axes["tensor"] == 1
        return candidate.zero1 and alone and self.machine.platform == "tpu" and candidate.precision == "bfloat16"

    def weights(self, candidate: Candidate, loops: int) -> WeightTraffic:
        """Returns the traffic of the parameters in a microbatch; `weight_traffic` has `loops`."""
        stages, width = candidate.axes["pipeline"], self.width(candidate)
        if stages == 1:
            return self._traffic(candidate.sizes, width, loops, 2.0 if loops > 1 else 1.0, 1.0, 1.0)
        passes, ticks = schedule.passes(stages, candidate.microbatches or stages, candidate.repeats, candidate.schedule)
        sums = ticks
        if self.whole_stage(candidate):  # "1f1b" sums in float32; XLA joins the gathers of its two passes
            loops, passes, sums = 1, 1.0, max(4 / width, 1.0) if candidate.schedule == "1f1b" else 1.0
        return self._traffic(candidate.sizes, width, loops, passes, sums, ticks)

    def whole_stage(self, candidate: Candidate) -> float:
        """Returns the bytes of the parameters that a stage of a pipeline gathers once, and of their gradients.

        It is 0 if nothing is gathered, or in each tick: `layers/pipeline.py` has the same rule.
        """
        if candidate.axes["pipeline"] == 1:
            return 0.0
        elements = self._split_elements(candidate.sizes)
        whole = schedule.whole_bytes(elements, self.width(candidate), candidate.schedule)
        known = None if self.machine.platform == "cpu" else self.machine.memory / self.machine.share
        return whole if schedule.gathers_once(whole, known) else 0.0

    @functools.cache  # noqa: B019
    def _split_elements(self, sizes: tuple[int, ...]) -> float:
        """Returns the elements of a stage's parameters that its devices of `data` and `fsdp` divide among them."""
        axes: dict[str, int] = dict(zip(AXES, sizes, strict=True))
        found = 0.0
        for path, spec in self.specs(sizes).items():
            over = {axis for entry in spec for axis in entry}
            if path in self.stacked and any(axes[axis] > 1 for axis in over & {"data", "fsdp"}):
                found += math.prod(self.params[path][0]) / math.prod(axes[a] for a in over - {"data", "fsdp"})
        return found

    @functools.cache  # noqa: B019
    def _traffic(
        self, sizes: tuple[int, ...], width: int, loops: int, passes: float, sums: float, ticks: float
    ) -> WeightTraffic:
        weights = [
            Weight(self.params[path][0], spec, path in self.trained, path in self.stacked)
            for path, spec in self.specs(sizes).items()
        ]
        axes: dict[str, int] = dict(zip(AXES, sizes, strict=True))
        return weight_traffic(weights, axes, width=width, loops=loops, passes=passes, sums=sums, ticks=ticks)

    def width(self, candidate: Candidate) -> int:
        """Returns the bytes of a number in the precision of the computation."""
        return jnp.dtype(DTYPES[candidate.precision]).itemsize

    def fits(self, cost: Cost) -> bool:
        """Returns whether a candidate fits the memory of a device."""
        return not cost.problem and cost.bytes <= SAFE * self.machine.memory


def on_device(remat: str) -> str:
    """Returns the remat policy that keeps on the device what this one keeps there."""
    return ON_DEVICE if remat.startswith(OFFLOAD) else remat
