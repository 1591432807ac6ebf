"""What a traced program of one device computes, moves and keeps, and which of it a mesh has to communicate.

Products of activations with a parameter show the traffic of a mesh. If the contracted dimension of the parameter is
split, each device has a part of a sum. If the experts are split, rows go to their experts and back. So any model is
understood by the logical axes of its parameters, without knowing its family.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

from engine.parallel.rules import STACKED
from engine.planning.graph import PRODUCTS, VIEWS, WRITTEN, Graph, Operation

type Names = tuple[str | None, ...]
type Axes = Callable[[str | None], Sequence[str]]
"""Logical axis -> mesh axes."""

CARRY = "carry of a stack"
_PARTS = ("slice", "dynamic_slice", "gather", "split", "unstack")
_UPDATES = ("dynamic_update_slice", "scatter", "scatter-add", "scatter_add")
_SAME = (*VIEWS, "convert_element_type", "reduce_precision", "slice", "dynamic_slice", "add_any")
SUMS = ("flops", "bytes", "cost", "attention", "partial", "exchanged", "keys", "queries", "sums", "kept")
"""Fields of Work that add up over programs."""


@dataclasses.dataclass
class Work:
    """Totals of one program of one device, with loops multiplied out."""

    flops: float = 0.0
    bytes: float = 0.0  # read from and written to memory
    cost: float = 0.0  # the same, where each operation takes the longer of its bytes and its FLOPs / balance
    attention: float = 0.0  # the part of it in products with scores of attention
    peak: float = 0.0  # most bytes of temporary arrays at one time, gradients included
    partial: float = 0.0  # bytes of sums of which a device has a part if `tensor` splits parameters
    exchanged: float = 0.0  # bytes of rows that go to experts and back
    keys: float = 0.0  # bytes of keys and values of attention
    queries: float = 0.0  # bytes of its queries
    carry: float = 0.0  # bytes that pass from one layer of a stack to the next
    kept: float = 0.0  # bytes that the loops over the layers of stacks keep for the backward pass
    sums: float = 0.0  # number of partial sums
    layers: int = 1  # most iterations of a loop over layers
    uses: dict[str, int] = dataclasses.field(default_factory=dict)  # path of a parameter -> products with it
    in_loops: set[str] = dataclasses.field(default_factory=set)  # paths of parameters that all iterations of a loop use
    stacks: "Work | None" = None  # the part in loops over the layers of stacks; None without such loops

    def plus(self, other: "Work", times: float = 1.0) -> "Work":
        """Returns the totals of this program and of executions of another one."""
        sums = {name: getattr(self, name) + times * getattr(other, name) for name in SUMS}
        return dataclasses.replace(self, **sums)

    def between(self, other: "Work", share: float) -> "Work":
        """Returns the totals at a share of the way to another program of the same model with more rows."""
        mixed = {
            field.name: getattr(self, field.name) + share * (getattr(other, field.name) - getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.type is float or field.type == "float"
        }
        stacks = self.stacks and other.stacks and self.stacks.between(other.stacks, share)
        return dataclasses.replace(self, **mixed, stacks=stacks)


def measure(
    graph: Graph,
    params: Mapping[int, tuple[str, Names]],
    axes: Axes,
    balance: float,
    eight_bits: float | None = None,
    share: Callable[[int | None], float] = lambda dimension: 1.0,
) -> Work:
    """Returns the work of a program.

    Args:
        graph: the program.
        params: input -> path and logical axes of a parameter.
        axes: mesh axes of a logical axis.
        balance: FLOP that a device computes while it moves a byte of its memory.
        eight_bits: likewise of products in eight bits; None: `balance`.
        share: share of these FLOP that a product reaches whose smallest dimension this is; None for a convolution.
    """
    found = Work(peak=graph.peak)
    _Walk(found, axes, balance, eight_bits or balance, share).walk(graph, dict(params), 1)
    return found


class _Walk:
    def __init__(self, work: Work, axes: Axes, balance: float, eight_bits: float, share: Callable[[int | None], float]):
        self.work, self.axes, self.balance, self.eight_bits, self.share = work, axes, balance, eight_bits, share
        self.in_stack = False
        self.sliced: set[str] = set()  # paths of parameters of which each iteration of a loop has another part

    def walk(self, graph: Graph, params: dict[int, tuple[str, Names]], times: int) -> None:
        sources = _Sources(graph, _scores(graph, params))
        partial: dict[int, float] = {}  # array that is a part of a sum -> its bytes
        for operation in graph.operations:
            if operation.nested:
                self.loop(graph, operation, params, times)
                continue
            self.count(graph, operation, sources, times)
            if _is_carry(operation):
                self.work.carry = max(self.work.carry, graph.bytes[operation.outputs[0]])
                self.work.layers = max(self.work.layers, times)
            if operation.name in PRODUCTS:
                self.product(graph, operation, params, partial, times)
            elif names := _names(graph, operation, params):
                params[operation.outputs[0]] = names
            self.merge(operation, partial, times)

    def count(self, graph: Graph, operation: Operation, sources: "_Sources", times: int) -> None:
        """Adds the FLOPs and the bytes of an operation."""
        written = sum(graph.bytes[x] for x in operation.outputs if x not in graph.virtual and x not in sources.scores)
        if not written and not operation.flops:
            return
        if operation.name in _UPDATES:
            moved = 2.0 * graph.bytes[operation.inputs[-1]] if operation.inputs[-1] >= 0 else 0.0
        else:
            moved = written + sum(sources.of_operation(operation).values())
        self.work.flops += times * operation.flops
        self.work.bytes += times * moved
        balance = self.eight_bits if _in_eight_bits(graph, operation) else self.balance
        if operation.name in PRODUCTS:
            balance *= self.share(_smallest(graph, operation))
        cost = times * max(moved, operation.flops / balance)
        self.work.cost += cost
        if operation.name in PRODUCTS and sources.scores.intersection((*operation.inputs, *operation.outputs)):
            self.work.attention += cost

    def loop(self, graph: Graph, operation: Operation, params: dict, times: int) -> None:
        nested = max(operation.nested, key=lambda inner: len(inner.operations))
        inner = dict(zip(reversed(nested.inputs), reversed(operation.inputs), strict=False))
        known = {}
        for x, outer in inner.items():
            if outer in params:
                path, names = params[outer]
                sliced = len(nested.shapes[x]) < len(graph.shapes[outer])
                known[x] = (path, names[1:] if sliced else names)
                self.sliced.update([path] if sliced else [])
        if self.in_stack or not _has_carry(nested):
            self.walk(nested, known, times * operation.times)
            return
        whole, self.work, self.in_stack = self.work, Work(uses=self.work.uses, in_loops=self.work.in_loops), True
        self.walk(nested, known, times * operation.times)
        layers, self.work, self.in_stack = self.work, whole, False
        stacked = [x for x in operation.outputs if graph.shapes[x][:1] == (operation.times,)]
        layers.kept = times * sum(graph.bytes[x] for x in stacked)
        whole.stacks = whole.stacks.plus(layers) if whole.stacks else layers
        whole.carry, whole.layers = max(whole.carry, layers.carry), max(whole.layers, layers.layers)
        for name in SUMS:
            setattr(whole, name, getattr(whole, name) + getattr(layers, name))

    def product(self, graph: Graph, operation: Operation, params: dict, partial: dict[int, float], times: int) -> None:
        """Adds the traffic of a product of an activation with a parameter."""
        out = graph.bytes[operation.outputs[0]]
        for side in (0, 1):
            x = operation.inputs[side]
            if x not in params or operation.name == "conv_general_dilated":
                continue
            path, names = params[x]
            self.work.uses[path] = self.work.uses.get(path, 0) + times
            self.work.in_loops.update([path] if times > 1 and path not in self.sliced else [])
            contracted, batch = _dimensions(operation, side)
            split = {i for i, name in enumerate(names) if "tensor" in self.axes(name)}
            if split & set(contracted):
                partial[operation.outputs[0]] = out
                self.work.partial += times * out
                self.work.sums += times
            if any("expert" in self.axes(name) for i, name in enumerate(names) if i in batch):
                other = operation.inputs[1 - side]
                self.work.exchanged += times * min(out, graph.bytes.get(other, out))
            results = {name for i, name in enumerate(names) if i not in contracted}
            self.work.keys += times * out if "kv_heads" in results else 0.0
            self.work.queries += times * out if "heads" in results else 0.0

    def merge(self, operation: Operation, partial: dict[int, float], times: int) -> None:
        """Follows parts of sums to where they are added, since their sum is communicated once."""
        found = [x for x in operation.inputs if x in partial]
        if not found or operation.name in PRODUCTS:
            return
        if operation.name in ("add_any", "add"):
            if len(found) == 2:
                self.work.partial -= times * partial[found[1]]
                self.work.sums -= times
                partial[operation.outputs[0]] = partial[found[0]]
        elif operation.name in (*_SAME, "transpose"):
            partial[operation.outputs[0]] = partial[found[0]]


def _has_carry(graph: Graph) -> bool:
    """Returns whether a graph is the body of a loop over the layers of a stack."""
    return any(_is_carry(operation) or any(map(_has_carry, operation.nested)) for operation in graph.operations)


def _is_carry(operation: Operation) -> bool:
    return operation.name == "name" and operation.params.get("name") == CARRY


def _in_eight_bits(graph: Graph, operation: Operation) -> bool:
    """Returns whether an operation is a product of two arrays in eight bits."""
    factors = [x for x in operation.inputs[:2] if x >= 0]
    return operation.name in PRODUCTS and all(graph.bytes[x] == math.prod(graph.shapes[x]) for x in factors)


def _smallest(graph: Graph, operation: Operation) -> int | None:
    """Returns the smallest of the three dimensions of a product, without those of a batch; None for a convolution."""
    if operation.name == "conv_general_dilated":
        return None
    sizes = []
    for side in (0, 1):
        shape, (contracted, batch) = graph.shapes.get(operation.inputs[side], ()), _dimensions(operation, side)
        sizes.append(math.prod(size for i, size in enumerate(shape) if i not in (*contracted, *batch)))
        sizes.append(math.prod(shape[i] for i in contracted if i < len(shape)))
    return min(sizes)


class _Sources:
    """The arrays in memory that an operation reads, through virtual arrays."""

    def __init__(self, graph: Graph, scores: set[int]):
        self.graph, self.scores = graph, scores
        self.made = {x: operation for operation in graph.operations for x in operation.outputs}
        self.of = functools.cache(self._of)

    def of_operation(self, operation: Operation) -> dict[int, int]:
        """Returns array -> bytes read by an operation."""
        if operation.name in _PARTS:
            return {-2: sum(self.graph.bytes[x] for x in operation.outputs)}
        found: dict[int, int] = {}
        for x in operation.inputs:
            found |= self.of(x)
        return found

    def _of(self, x: int) -> dict[int, int]:
        if x < 0 or x in self.scores:
            return {}
        if x in self.graph.virtual and x in self.made:
            found = self.of_operation(self.made[x])
            return {(x if source == -2 else source): size for source, size in found.items()}
        return {x: self.graph.bytes[x]}


def _scores(graph: Graph, params: Mapping[int, object]) -> set[int]:
    """Returns the scores of attention and what is computed from them one by one.

    Kernels keep them on the chip, and the blocks of a CPU in its cache. Scores are the product of two activations, row
    by row, with more elements than either.
    """
    found: set[int] = set()
    for operation in graph.operations:
        if operation.nested or not operation.outputs:
            continue
        out = operation.outputs[0]
        size = math.prod(graph.shapes[out])
        inputs = [x for x in operation.inputs if x >= 0]
        if operation.name == "dot_general":
            batch = operation.params["dimension_numbers"][1][0]
            larger = all(math.prod(graph.shapes[x]) < size for x in inputs)
            if batch and larger and not any(x in params for x in inputs):
                found.add(out)
        elif operation.name not in WRITTEN:
            found.update([out] if any(x in found and math.prod(graph.shapes[x]) == size for x in inputs) else [])
    return found


def _dimensions(operation: Operation, side: int) -> tuple[Sequence[int], Sequence[int]]:
    """Returns the contracted and the batch dimensions of an operand of a product."""
    if operation.name == "ragged_dot_general":
        numbers = operation.params["ragged_dot_dimension_numbers"]
        contracted, batch = numbers.dot_dimension_numbers
        groups = numbers.rhs_group_dimensions if side == 1 else ()
        return contracted[side], (*batch[side], *groups)
    contracted, batch = operation.params["dimension_numbers"]
    return contracted[side], batch[side]


def _names(graph: Graph, operation: Operation, params: Mapping[int, tuple[str, Names]]) -> tuple[str, Names] | None:
    """Returns the path and the logical axes of the result of an operation on a parameter; None if they are lost."""
    x = operation.inputs[0] if operation.inputs else -1
    if x not in params or len(operation.outputs) != 1:
        return None
    path, names = params[x]
    before, after = graph.shapes[x], graph.shapes[operation.outputs[0]]
    if operation.name == "transpose":
        return path, tuple(names[i] for i in operation.params["permutation"])
    if operation.name not in _SAME or len(names) != len(before):
        return None
    if len(before) == len(after):
        return path, names
    if names[:2] == STACKED and after == (before[0] * before[1], *before[2:]):
        return path, names[1:]  # without a pipeline, a stack runs the layers of all repeats in one loop
    kept = [name for name, size in zip(names, before, strict=True) if size != 1]
    shape = [size for size in before if size != 1]
    if shape != [size for size in after if size != 1]:
        return None
    rest = collections.deque(kept)
    return path, tuple(rest.popleft() if size != 1 else None for size in after)
