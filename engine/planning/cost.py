"""The cost model: memory and step time of a candidate by formula.

`memory.py` predicts the memory. The time is the longer of FLOPs and memory traffic of each operation; the traffic of
each mesh axis in rings over the network that the axis crosses; the bubble of a pipeline; the update of the optimizer;
and the host's time for a dispatch.
"""

import dataclasses
import math

import jax.numpy as jnp

from engine.config.hardware import AXES
from engine.parallel import schedule
from engine.planning.candidates import Candidate
from engine.planning.compiled import Compiled
from engine.planning.memory import Cost, MemoryModel
from engine.training.build import DTYPES

CONCURRENT = ("fsdp", "data", "pipeline")
"""Axes whose collectives run while the device computes; it waits for those of the other axes."""
PATTERNS = {"expert": "all-to-all", "pipeline": "permute"}
"""Axis -> pattern of its activations, where it is not a ring."""
COPIES = ("pipeline", "fsdp", "expert", "context")
"""Axes besides `data` that split rows or sequences: the gradients of parameters that they do not split are summed."""


class CostModel(MemoryModel):
    """Predicts memory and time of the candidates of one config on one machine.

    Args:
        traces: the unsharded programs.
        machine: the devices.
    """

    def cost(self, candidate: Candidate, cost: Cost | None = None) -> Cost:
        """Returns memory and time of a candidate; `cost` has the memory if it is known."""
        cost = cost or self.memory(candidate)
        if cost.problem:
            return cost
        machine, axes, precision = self.machine, candidate.axes, candidate.precision
        rows, n = self.rows_of(candidate), candidate.accumulate
        work = self.traces.work(candidate.remat, precision, rows)
        compute = n * max(work.cost, 0.0) / machine.bandwidth / self.divided(candidate)
        stages, bubble = axes["pipeline"], 0.0
        if stages > 1:
            microbatches = candidate.microbatches or stages
            bubble = schedule.bubble(stages, microbatches, self.sharding.repeats, self.sharding.schedule)
        asynchronous, synchronous = self.communication(candidate, cost)
        hidden = machine.overlap * compute / max(sum(asynchronous.values()), machine.overlap * compute, 1e-30)
        cost.exposed = {**synchronous, **{axis: s * (1 - hidden) for axis, s in asynchronous.items()}}
        params, grads, optimizer = self.stored(candidate)
        update = (2 * params + grads + 2 * optimizer) / machine.bandwidth
        if candidate.offload_optimizer:
            update += 2 * optimizer / machine.host_bandwidth
        cost.bubble = bubble
        cost.seconds = {
            "compute": compute,
            "bubble": compute * bubble / (1 - bubble),
            "exposed traffic": sum(cost.exposed.values()),
            "update": update,
            "new memory": self.new_memory(cost),
            "dispatch": machine.dispatch / candidate.steps_per_dispatch,
        }
        return cost

    def new_memory(self, cost: Cost) -> float:
        """Returns the seconds in which the operating system gives a step the memory of its temporary arrays."""
        kept = ("parameters", "optimizer", "batch", "program")
        return sum(size for part, size in cost.memory.items() if part not in kept) / self.machine.fresh

    def communication(self, candidate: Candidate, cost: Cost) -> tuple[dict[str, float], dict[str, float]]:
        """Returns axis -> seconds of the collectives that run during the computation, and of others.

        It also notes the traffic of each axis in `cost`.
        """
        axes, n, precision = candidate.axes, candidate.accumulate, candidate.precision
        width = jnp.dtype(DTYPES[precision]).itemsize
        work = self.traces.work(candidate.remat, precision, self.rows_of(candidate))
        scatter = 2.0 if self.machine.platform == "cpu" else 1.0  # XLA:CPU all-reduces where others reduce-scatter
        gathers, reduced, arrays = 0.0, 0.0, 0
        copied = dict.fromkeys(COPIES, 0.0)  # bytes of gradients of which each device of the axis has a part
        for path, spec in self.specs(candidate.sizes).items():
            shape, _ = self.params[path]
            others = math.prod(axes[a] for entry in spec for a in entry if a != "fsdp")
            size = math.prod(shape) * width / others
            split = any("fsdp" in entry for entry in spec) and axes["fsdp"] > 1
            if split:
                passes = 2 if path in self.model.stacked and work.layers > 1 else 1
                gathers += size * (passes + scatter * (path in self.trained))
                arrays += (passes + 1) * (work.layers if path in self.model.stacked else 1)
            if path in self.trained:
                reduced += size / (axes["fsdp"] if split else 1)
                for axis in COPIES:
                    if not any(axis in entry for entry in spec):
                        copied[axis] += size / (axes["fsdp"] if split else 1)
        if self.machine.platform != "cpu":
            arrays = min(arrays, 3 * work.layers + 3)  # collectives of one layer are combined
        share = axes["tensor"] * axes["pipeline"]
        rest = axes["context"] * axes["pipeline"]
        sent = {  # axis -> bytes of whole arrays, number of collectives
            "fsdp": (gathers, arrays),
            "data": (2 * reduced, 4),
            "pipeline": (2 * work.carry * self.sharding.repeats / axes["context"] / axes["tensor"], 0),
            "tensor": ((1 + scatter) * work.partial / rest, 2 * work.sums),
            "expert": (work.exchanged / share, 4 * work.layers),
            "context": (3 * work.keys / share, 3 * work.layers),
        }
        times = {
            axis: self.ring(candidate, axis, n * size, n * count, cost, PATTERNS.get(axis, "ring"))
            for axis, (size, count) in sent.items()
        }
        during = {axis: times.pop(axis) for axis in CONCURRENT}
        for axis, size in copied.items():
            during[f"gradients over {axis}"] = self.ring(candidate, axis, 2 * n * size, 4 * n, cost)
        return during, times

    def ring(
        self, candidate: Candidate, axis: str, size: float, count: float, cost: Cost, pattern: str = "ring"
    ) -> float:
        """Returns the seconds that collectives of `size` bytes take along an axis, and notes what a device sends.

        A device sends (n - 1) / n of the bytes within its island, and a share of the rest to other islands. In an
        all-to-all each row has one receiver, so all rows that leave the island cross the network.

        Args:
            candidate: the candidate.
            axis: mesh axis.
            size: bytes of whole arrays that are gathered or scattered; twice those that are summed.
            count: number of collectives.
            cost: receives the traffic.
            pattern: "ring", "all-to-all", or "permute", in which a device sends all bytes to the next one.
        """
        machine, total = self.machine, candidate.axes[axis]
        if total == 1 or size <= 0:
            return 0.0
        within, between = machine.split(candidate.axes, candidate.dcn, axis)
        near, far = size * (within - 1) / within, size / within * (between - 1) / between
        if pattern == "all-to-all":
            near, far = size * (within - 1) / total, size * (between - 1) / between
        if pattern == "permute":
            near, far = (0.0, size) if between > 1 else (size, 0.0)
        cost.traffic[axis] = cost.traffic.get(axis, 0.0) + near + far
        sizes = {name: machine.split(candidate.axes, candidate.dcn, name)[0] for name in AXES}
        return near / machine.axis_link(sizes, axis) + far / machine.network + count * machine.latency

    def with_compiled(self, cost: Cost, compiled: Compiled) -> Cost:
        """Returns the cost of a candidate with the memory and the traffic of its compiled step.

        On CPUs also with its time: there the text of a program shows all that runs, the bubble of a pipeline and the
        update included. On others it has kernels, whose FLOPs the text does not have.
        """
        traffic = dict(compiled.traffic)
        # The program is one step: its batch is one of those that are on a device.
        memory = {**compiled.memory, "batch": max(compiled.memory["batch"], cost.memory["batch"])}
        found = dataclasses.replace(cost, memory=memory, host=compiled.host, traffic=traffic, compiled=True, exposed={})
        during = 0.0
        for c in compiled.collectives:
            each = [self.per_byte(cost.candidate, axis) for axis in c.axes or ("data",)]
            seconds = c.moved * max(each) + c.count * self.machine.latency
            if c.asynchronous:
                during += seconds
            else:
                name = " x ".join(c.axes or ("?",))
                found.exposed[name] = found.exposed.get(name, 0.0) + seconds
        exposed = sum(found.exposed.values()) + max(0.0, during - self.machine.overlap * cost.seconds["compute"])
        found.seconds = {**cost.seconds, "exposed traffic": exposed, "new memory": self.new_memory(found)}
        if self.machine.platform == "cpu":
            peak = self.machine.peak(cost.candidate.precision)
            found.seconds |= {"compute": compiled.seconds(peak, self.machine.bandwidth), "bubble": 0.0, "update": 0.0}
        return found

    def per_byte(self, candidate: Candidate, axis: str) -> float:
        """Returns the seconds in which a device sends a byte along an axis."""
        noted = Cost(candidate)
        seconds = self.ring(candidate, axis, 1.0, 0, noted, PATTERNS.get(axis, "ring"))
        return seconds / noted.traffic[axis] if axis in noted.traffic else 1 / self.machine.link

    def mfu(self, cost: Cost, peak: float) -> float:
        """Returns the model FLOPs per second as a share of the peak of all devices."""
        return self.traces.flops * self.rows / cost.step_s / (peak * self.machine.count)
