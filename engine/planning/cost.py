"""The cost model: memory and step time of a candidate by formula.

`memory.py` predicts the memory. The time is the longer of FLOPs and memory traffic of each operation; the traffic of
each mesh axis in rings over the network that the axis crosses; the bubble of a pipeline; the update of the optimizer;
and the host's time for a dispatch.
"""

import dataclasses
import functools

from engine.compile.step_costs import Compiled
from engine.config.hardware import AXES
from engine.parallel import schedule
from engine.planning.candidates import Candidate
from engine.planning.machine import MEASURED, WHOLE
from engine.planning.memory import Cost, MemoryModel
from engine.planning.work import Work

CONCURRENT = ("fsdp", "data", "pipeline")
"""Axes whose collectives run while the device computes; it waits for those of the other axes."""
RING = 10 / 7
"""What a ring of attention computes in addition, as a share of attention without a ring. Without one, attention has 2
products forward and 5 backward. For each part of the keys, the backward pass of a ring runs the forward kernel two or
three times and the backward kernel twice: 14 to 16 products instead of 5."""
PATTERNS = {"expert": "all-to-all", "pipeline": "permute"}
"""Axis -> pattern of its activations, where it is not a ring."""
KINDS = {"all-to-all": "all-to-all", "ragged-all-to-all": "all-to-all", "collective-permute": "permute"}
"""Kind of a compiled collective -> its pattern, where it is not a ring."""


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
        machine = self.machine
        compute = candidate.accumulate * self.computation(candidate)
        stages, bubble = candidate.axes["pipeline"], 0.0
        if stages > 1:
            microbatches = candidate.microbatches or stages
            bubble = schedule.bubble(stages, microbatches, candidate.repeats, candidate.schedule)
        asynchronous, synchronous = self.communication(candidate, cost)
        hidden = machine.overlap * compute / max(sum(asynchronous.values()), machine.overlap * compute, 1e-30)
        cost.exposed = {**synchronous, **{axis: s * (1 - hidden) for axis, s in asynchronous.items()}}
        params, grads, optimizer = self.stored(candidate)
        update = (2 * params + grads + 2 * optimizer) / (machine.update or machine.bandwidth)
        if candidate.offload_optimizer:
            update += 2 * optimizer / machine.host_bandwidth
        moved = 2 * candidate.accumulate * self.moved(candidate) / machine.host_bandwidth
        cost.bubble = bubble
        cost.seconds = {
            "compute": compute,
            "bubble": compute * bubble / (1 - bubble),
            "exposed traffic": sum(cost.exposed.values()),
            "host traffic": max(0.0, moved - machine.overlap * compute),
            "update": update,
            "new memory": self.new_memory(cost),
            "dispatch": self.dispatch / candidate.steps_per_dispatch,
        }
        return cost

    @property
    def dispatch(self) -> float:
        """Seconds that the host needs for a dispatch."""
        return self.machine.dispatch + self.machine.array * self.arrays

    def computation(self, candidate: Candidate) -> float:
        """Returns the seconds in which a device computes a microbatch, without collectives."""
        machine, work, tensor = self.machine, self.work(candidate), candidate.axes["tensor"]
        again = RING * work.attention if self.recomputes_parts(candidate) else 0.0
        found = max(work.cost + again, 0.0) / machine.fused_bandwidth / self.divided(candidate)
        whole = work.partial * (1 - 1 / tensor) / (self.divided(candidate) / tensor)
        return found + WHOLE.get(machine.platform, 0.0) * whole / machine.bandwidth

    def recomputes_parts(self, candidate: Candidate) -> bool:
        """Returns whether a ring runs kernels again for each part of the keys (`layers/part.py`)."""
        has_ring = candidate.axes["context"] > 1 and candidate.context == "ring" and bool(self.attentions)
        has_kernel = self.machine.platform == "tpu" or (self.machine.platform == "gpu" and self.width(candidate) < 4)
        return has_ring and has_kernel

    def new_memory(self, cost: Cost) -> float:
        """Returns the seconds in which the operating system gives a step the memory of its temporary arrays."""
        kept = ("parameters", "optimizer", "batch", "program")
        return sum(size for part, size in cost.memory.items() if part not in kept) * self.machine.new_memory

    def work(self, candidate: Candidate) -> Work:
        """Returns the work of a microbatch.

        In the schedule 1f1b the layers run forward for the results, once more for the inputs of the later stages, and
        then as in a step.
        """
        again = 2 if candidate.axes["pipeline"] > 1 and candidate.schedule == "1f1b" else 0
        return self.traces.work(candidate.remat, candidate.precision, self.rows_of(candidate), again)

    def communication(self, candidate: Candidate, cost: Cost) -> tuple[dict[str, float], dict[str, float]]:
        """Returns axis -> seconds of the collectives that run during the computation, and of others.

        It also notes the traffic of each axis in `cost`.
        """
        axes, n = candidate.axes, candidate.accumulate
        work = self.work(candidate)
        weights = self.weights(candidate, work.layers)
        arrays = weights.collectives
        if self.machine.platform != "cpu":
            arrays = min(arrays, 3 * work.layers + 3)  # collectives of one layer are combined
        scatter = 2.0 if self.machine.platform == "cpu" else 1.0  # XLA:CPU all-reduces where others reduce-scatter
        summed, sums = 2 * weights.summed, 4.0
        if candidate.zero1:
            # A step gathers the parameters once. XLA:GPU gathers those in half precision in each pass instead, and
            # so do the layers on TPUs.
            in_passes = self.machine.platform == "gpu" and self.width(candidate) < 4
            gathers = 2 if in_passes or self.gathers_by_layer(candidate) else 1 / n
            summed += weights.zero1 * (scatter - 2 + gathers)
        elif n > 1 and axes["pipeline"] == 1 and not self.approximate:
            summed, sums = summed * 4 / self.width(candidate) / n, sums / n  # once after all microbatches, in float32
        passes = 3 if candidate.schedule == "1f1b" else 2  # forward, in 1f1b forward again, and backward
        share = axes["tensor"] * axes["pipeline"]
        patterns = dict(PATTERNS)
        attention = 3 * work.keys / share, 3 * work.layers
        if candidate.context == "all-to-all":
            patterns["context"] = "all-to-all"
            attention = self.exchanged_heads(candidate) / share / axes["context"], 8 * work.layers
        rest = axes["context"] * axes["pipeline"]
        sent = {  # axis -> bytes of whole arrays, number of collectives
            "fsdp": (weights.gathered + scatter * weights.scattered, arrays),
            "data": (summed, sums),
            "pipeline": (passes * work.carry * candidate.repeats / axes["context"] / axes["tensor"], 0),
            "tensor": ((1 + scatter) * work.partial / rest, 2 * work.sums),
            "expert": (work.exchanged / share, 4 * work.layers),
            "context": attention,
        }
        times = {
            axis: self.ring(candidate, axis, n * size, n * count, cost, patterns.get(axis, "ring"))
            for axis, (size, count) in sent.items()
        }
        during = {axis: times.pop(axis) for axis in CONCURRENT}
        for axis, size in weights.copied.items():
            during[f"gradients over {axis}"] = self.ring(candidate, axis, 2 * n * size, 4 * n, cost)
        return during, times

    def exchanged_heads(self, candidate: Candidate) -> float:
        """Returns the bytes of queries, keys, values and results that an all-to-all exchanges, with their gradients."""
        work = self.work(candidate)
        times = max((attention.repeated(candidate.axes) for attention in self.attentions), default=1.0)
        return 2 * (2 * work.queries + times * work.keys)

    def ring(
        self, candidate: Candidate, axis: str, size: float, count: float, cost: Cost, pattern: str = "ring"
    ) -> float:
        """Returns the seconds that collectives of `size` bytes take along an axis, and notes what a device sends.

        A device sends (n - 1) / n of the bytes within its slice, and a share of the rest to other slices. In an
        all-to-all each row has one receiver, so all rows that leave the slice cross the network.

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
        within, between = self.split(candidate.sizes, candidate.between, axis)
        near, far = size * (within - 1) / within, size / within * (between - 1) / between
        if pattern == "all-to-all":
            near, far = size * (within - 1) / total, size * (between - 1) / between
        if pattern == "permute":
            near, far = (0.0, size) if between > 1 else (size, 0.0)
        cost.traffic[axis] = cost.traffic.get(axis, 0.0) + near + far
        names = AXES if machine.torus else ()
        sizes = {name: self.split(candidate.sizes, candidate.between, name)[0] for name in names}
        return near / machine.axis_link(sizes, axis) + far / machine.network + count * machine.latency

    @functools.cache  # noqa: B019
    def split(self, sizes: tuple[int, ...], between: tuple[int, ...], axis: str) -> tuple[int, int]:
        """Returns `Machine.split` of a mesh, once."""
        return self.machine.split(dict(zip(AXES, sizes, strict=True)), dict(zip(AXES, between, strict=True)), axis)

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
            each = [self.per_byte(cost.candidate, axis, KINDS.get(c.kind, "ring")) for axis in c.axes or ("data",)]
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

    def per_byte(self, candidate: Candidate, axis: str, pattern: str) -> float:
        """Returns the seconds in which a device sends a byte along an axis, in a pattern of `ring`."""
        noted = Cost(candidate)
        seconds = self.ring(candidate, axis, 1.0, 0, noted, pattern)
        return seconds / noted.traffic[axis] if axis in noted.traffic else 1 / self.machine.link

    def margin(self, cost: Cost) -> float:
        """Returns the stated relative error of a time. That of a compiled step on a CPU is not by formula."""
        return MEASURED if cost.compiled and self.machine.platform == "cpu" else self.machine.margin

    def mfu(self, cost: Cost, peak: float) -> float:
        """Returns the model FLOPs per second as a share of the peak of all devices."""
        return self.traces.flops * self.rows / cost.step_s / (peak * self.machine.count)
