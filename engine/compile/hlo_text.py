"""Parses the HLO text of a compiled program: computations, instructions, and how often each computation runs.

GPUs and CPUs write the trip count of a loop into the text. TPUs do not, so that it is read from the loop: the constant
that the condition compares the counter with, divided by what the body adds to the counter.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_CALLEES = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|branch_computations|called_computations)="
    r"(?:\{([^}]*)\}|(%?[\w.-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OPERAND = re.compile(r"%([\w.-]+)")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)(\w*)\[([\d,<=]*)\]")
_LAYOUT = re.compile(r"\{[^{}]*\}|/\*[^*]*\*/")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation: `%name = shape opcode(rest`."""

    name: str
    shape: str
    opcode: str
    rest: str

    def callees(self, *kinds: str) -> list[str]:
        """Returns the called computations, such as kind "body"; without kinds all but conditions of loops."""
        return [
            name.strip().removeprefix("%")
            for kind, names, name in _CALLEES.findall(self.rest)
            if (kind in kinds if kinds else kind != "condition")
            for name in (names or name).split(",")
        ]

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names of the operands."""
        depth, end = 1, 0
        for end, sign in enumerate(self.rest):  # noqa: B007
            depth += (sign == "(") - (sign == ")")
            if depth == 0:
                break
        return _OPERAND.findall(self.rest[:end])


@dataclasses.dataclass(frozen=True)
class HloText:
    """The computations of a program. `runs` counts how often each is executed in one run of the program."""

    computations: Mapping[str, Sequence[Instruction]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "HloText":
        """Parses the text of `Compiled.as_text()`."""
        computations: dict[str, list[Instruction]] = {}
        entry = name = ""
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                name = header[2]
                computations[name] = []
                entry = name if header[1] else entry
            elif name and (match := _INSTRUCTION.match(line)):
                computations[name].append(Instruction(*match.groups()[1:]))
        return cls(computations, entry)

    def trip_count(self, loop: Instruction) -> int | None:
        """Returns the number of iterations of a `while` instruction; None if the text does not say it."""
        if match := _TRIPS.search(loop.rest):
            return int(match[1])
        condition = {i.name: i for name in loop.callees("condition") for i in self.computations.get(name, ())}
        body = {i.name: i for name in loop.callees("body") for i in self.computations.get(name, ())}
        compare = next((i for i in condition.values() if i.opcode == "compare" and "direction=LT" in i.rest), None)
        if compare is None or len(compare.operands) != 2:
            return None
        counter, limit = (condition.get(name) for name in compare.operands)
        end = _constant(limit)
        if counter is None or counter.opcode != "get-tuple-element" or end is None or not body:
            return None
        index = re.search(r"index=(\d+)", counter.rest)
        stride = _stride(body, int(index[1])) if index else None
        return -(-end // stride) if stride else None

    @functools.cached_property
    def runs(self) -> Mapping[str, int]:
        """How often each computation runs. A loop of unknown trip count counts as one iteration."""
        found: collections.Counter[str] = collections.Counter()

        def walk(name: str, times: int) -> None:
            found[name] += times
            for instruction in self.computations.get(name, ()):
                trips = (self.trip_count(instruction) or 1) if instruction.opcode == "while" else 1
                for callee in instruction.callees():
                    walk(callee, times * trips)

        walk(self.entry, 1)
        return found

    def executed(self) -> Iterator[tuple[int, str, Instruction]]:
        """Yields (executions, name of the computation, instruction) of every instruction that runs."""
        for name, instructions in self.computations.items():
            if times := self.runs.get(name, 0):
                for instruction in instructions:
                    yield times, name, instruction


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Returns (dtype, dimensions) of the arrays in the text of a shape, tuples included."""
    return [
        (kind + width + suffix, tuple(int(n.removeprefix("<=")) for n in dims.split(",") if n))
        for kind, width, suffix, dims in _ARRAY.findall(without_layout(shape))
    ]


def shape_bytes(shape: str) -> int:
    """Returns the bytes of the arrays in the text of a shape, tuples included."""
    bits = 0
    for kind, width, _, dims in _ARRAY.findall(without_layout(shape)):
        width = 8 if kind == "pred" else int(width or 0)
        bits += width * math.prod(int(n.removeprefix("<=")) for n in dims.split(",") if n)
    return -(-bits // 8)


def without_layout(shape: str) -> str:
    """Returns the text of a shape without layouts and comments."""
    return _LAYOUT.sub("", shape)


def _constant(instruction: Instruction | None) -> int | None:
    """Returns the value of an integer constant."""
    match = re.match(r"(\d+)\)", instruction.rest) if instruction and instruction.opcode == "constant" else None
    return int(match[1]) if match else None


def _stride(body: Mapping[str, Instruction], index: int) -> int | None:
    """Returns the constant that the body of a loop adds to entry `index` of its state; None if it is no constant."""
    *_, root = body.values()
    add = body.get(root.operands[index]) if index < len(root.operands) else None
    while add is not None and add.opcode in ("copy", "copy-start", "copy-done") and add.operands:
        add = body.get(add.operands[0])
    if add is None or add.opcode != "add":
        return None
    constants = [_constant(body.get(name)) for name in add.operands]
    return next((value for value in constants if value), None)
