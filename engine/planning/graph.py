"""A traced program as a graph of operations: called functions inlined, unused operations removed, arrays sized.

XLA fuses element-wise operations, so that their results need no memory unless several operations read them. The graph
marks these *virtual* arrays. It is a model of the compiler, not the compiler: `convoy plan` checks its numbers against
compiled programs.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax.extend.core import Jaxpr, Literal, Var

from engine.compile.flops import equation_flops
from engine.training.jaxprs import inner_jaxprs

PRODUCTS = ("dot_general", "ragged_dot_general", "conv_general_dilated")
LOOPS = ("scan", "while", "cond")
VIEWS = (
    "reshape", "squeeze", "expand_dims", "optimization_barrier", "sharding_constraint", "layout_constraint", "name",
    "copy", "stop_gradient",
)  # fmt: skip
"""Operations whose result is the memory of their operand."""
WRITTEN = (
    *PRODUCTS, *LOOPS, "reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin", "cumsum", "cumlogsumexp", "cummax",
    "gather", "scatter", "scatter-add", "scatter_add", "sort", "top_k", "concatenate", "dynamic_update_slice",
    "random_bits", "threefry2x32", "fft", "pallas_call", "reduce_window_max", "reduce_window_sum",
    "select_and_scatter_add", "all_to_all",
)  # fmt: skip
"""Operations whose result XLA writes into memory."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation; arrays are numbers, literals are -1."""

    name: str
    params: Mapping[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    flops: int  # FLOPs per execution, without those of nested graphs
    nested: tuple["Graph", ...] = ()
    times: int = 1  # executions of the nested graphs


@dataclasses.dataclass(frozen=True)
class Graph:
    """Operations in order."""

    operations: Sequence[Operation]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: Mapping[int, tuple[int, ...]]
    bytes: Mapping[int, int]

    @functools.cached_property
    def readers(self) -> Mapping[int, list[Operation]]:
        """Array -> the operations that read it."""
        found: dict[int, list[Operation]] = collections.defaultdict(list)
        for operation in self.operations:
            for x in dict.fromkeys(operation.inputs):
                found[x].append(operation)
        return found

    @functools.cached_property
    def virtual(self) -> set[int]:
        """Arrays without memory of their own."""
        kept = set(self.outputs)
        found = set()
        for operation in self.operations:
            for x in operation.outputs:
                if operation.name in VIEWS or (operation.name == "broadcast_in_dim" and x not in kept):
                    found.add(x)  # a loop that starts with zeros computes in the memory of its result
                elif operation.name not in WRITTEN and x not in kept:
                    readers = self.readers.get(x, [])
                    if len(readers) <= 1 and not any(r.name in LOOPS or r.name in PRODUCTS for r in readers):
                        found.add(x)
        return found

    @functools.cached_property
    def peak(self) -> int:
        """Most bytes of arrays at one time, without the inputs; the outputs stay until the end."""
        last: dict[int, int] = {}
        for i, operation in enumerate(self.operations):
            last.update(dict.fromkeys(operation.inputs, i))
        for i in reversed(range(len(self.operations))):  # a virtual array is computed when it is read
            operation = self.operations[i]
            if ends := [last.get(x, i) for x in operation.outputs if x in self.virtual]:
                for x in operation.inputs:
                    last[x] = max(last.get(x, i), *ends)
        end = len(self.operations)
        last.update(dict.fromkeys(self.outputs, end))
        for operation in reversed(self.operations):  # a view of an output keeps the memory of its operand
            if operation.name in VIEWS and any(last.get(x) == end for x in operation.outputs):
                last.update(dict.fromkeys(operation.inputs, end))
        freed: dict[int, list[int]] = collections.defaultdict(list)
        live = peak = 0
        inputs = set(self.inputs)
        for i, operation in enumerate(self.operations):
            for x in operation.outputs:
                if x not in self.virtual:
                    live += self.bytes[x]
                    freed[max(last.get(x, i), i)].append(x)
            inner = max((graph.peak for graph in operation.nested), default=0)
            peak = max(peak, live + inner)
            live -= sum(self.bytes[x] for x in freed.pop(i, ()) if x not in inputs)
        return peak

    @functools.cached_property
    def roots(self) -> Mapping[int, int]:
        """View -> the array whose memory it is."""
        found: dict[int, int] = {}
        for operation in self.operations:
            if operation.name in VIEWS:
                found[operation.outputs[0]] = found.get(operation.inputs[0], operation.inputs[0])
        return found


def make_graph(jaxpr: Jaxpr) -> Graph:
    """Returns the graph of a jaxpr."""
    return _Builder().build(jaxpr)


def parts_by_rows(small: Graph, large: Graph) -> tuple[Graph, Graph] | None:
    """Returns graphs with the bytes of arrays that no row changes, and with those that the rows of `small` add.

    None: the two programs differ in more than sizes.

    Args:
        small: the program with some rows.
        large: the program with twice the rows.
    """
    if [o.name for o in small.operations] != [o.name for o in large.operations]:
        return None
    fixed, added = [], []
    for a, b in zip(small.operations, large.operations, strict=True):
        parts = [parts_by_rows(*pair) for pair in zip(a.nested, b.nested, strict=True)]
        if None in parts:
            return None
        fixed.append(dataclasses.replace(a, nested=tuple(part[0] for part in parts if part)))
        added.append(dataclasses.replace(a, nested=tuple(part[1] for part in parts if part)))
    more = {x: max(large.bytes.get(x, 0) - size, 0) for x, size in small.bytes.items()}
    rest = {x: max(size - more[x], 0) for x, size in small.bytes.items()}
    return (
        dataclasses.replace(small, operations=fixed, bytes=rest),
        dataclasses.replace(small, operations=added, bytes=more),
    )


class _Builder:
    def __init__(self):
        self.numbers = itertools.count()
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.bytes: dict[int, int] = {}
        self.operations: list[Operation] = []

    def build(self, jaxpr: Jaxpr) -> Graph:
        known: dict[Var, int] = {}
        for x in (*jaxpr.constvars, *jaxpr.invars):
            known[x] = self.number(x)
        inputs = tuple(known[x] for x in (*jaxpr.constvars, *jaxpr.invars))
        outputs = self.inline(jaxpr, known)
        return Graph(_used(self.operations, outputs), inputs, outputs, self.shapes, self.bytes)

    def number(self, x: Var | Literal) -> int:
        n, shape = next(self.numbers), getattr(x.aval, "shape", ())
        self.shapes[n] = shape
        self.bytes[n] = math.prod(shape) * getattr(getattr(x.aval, "dtype", None), "itemsize", 4)
        return n

    def inline(self, jaxpr: Jaxpr, known: dict[Var, int]) -> tuple[int, ...]:
        """Adds the operations of a jaxpr, and returns the numbers of its results."""

        def find(x: Var | Literal) -> int:
            return -1 if isinstance(x, Literal) else known.setdefault(x, self.number(x))

        for equation in jaxpr.eqns:
            name, inputs = equation.primitive.name, tuple(find(x) for x in equation.invars)
            inner = list(inner_jaxprs(equation))
            if inner and name not in LOOPS and name != "pallas_call" and len(inner[0].invars) == len(inputs):
                arguments = {x: n if n >= 0 else self.number(x) for x, n in zip(inner[0].invars, inputs, strict=True)}
                arguments |= {x: self.number(x) for x in inner[0].constvars}
                known.update(zip(equation.outvars, self.inline(inner[0], arguments), strict=True))
                continue
            outputs = tuple(find(x) for x in equation.outvars)
            nested = tuple(make_graph(graph) for graph in inner) if name != "pallas_call" else ()
            times = equation.params["length"] if name == "scan" else 1
            flops = 0 if nested else equation_flops(equation)
            self.operations.append(Operation(name, equation.params, inputs, outputs, flops, nested, times))
            if name == "scan":
                self.share(len(self.operations) - 1)
        return tuple(find(x) for x in jaxpr.outvars)

    def share(self, scan: int) -> None:
        """Makes views of the results of a scan that stack the same array as another one, as XLA stacks it once."""
        operation = self.operations[scan]
        (body,), outputs = operation.nested, list(operation.outputs)
        first: dict[int, int] = {}  # array of the body -> its stack
        for i, (part, x) in enumerate(zip(body.outputs, operation.outputs, strict=True)):
            if part < 0 or len(self.shapes[x]) == len(body.shapes[part]):  # the carry is no stack
                continue
            root = body.roots.get(part, part)
            same = first.setdefault(root, x)
            if same != x and self.bytes[same] == self.bytes[x]:
                outputs[i] = next(self.numbers)  # a result without bytes in its place
                self.shapes[outputs[i]], self.bytes[outputs[i]] = (), 0
                self.operations.append(Operation("reshape", {}, (same,), (x,), 0))
        self.operations[scan] = dataclasses.replace(operation, outputs=tuple(outputs))


def _used(operations: Sequence[Operation], outputs: Sequence[int]) -> list[Operation]:
    """Returns the operations whose results are used."""
    used, found = set(outputs), []
    for operation in reversed(operations):
        if used.intersection(operation.outputs):
            used.update(operation.inputs)
            found.append(operation)
    return found[::-1]
