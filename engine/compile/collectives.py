"""Reads the collectives of a compiled program (kind, mesh axes, bytes) from its HLO text on CPU, GPU and TPU.

The text is the HLO after SPMD partitioning (`Compiled.as_text()`), which numbers devices by their index in
`mesh.devices.flat`. *Moved* bytes are those that one device sends in a ring algorithm (Thakur et al. 2005; Patarasuk
and Yuan 2009), the minimum on links of equal speed. XLA:CPU uses all-reduce and dynamic-slice for a reduce-scatter.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from engine.compile.hlo_text import HloText, Instruction, shape_bytes, without_layout

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_COLLECTIVE = re.compile(rf"({'|'.join(KINDS)})(-start)?")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_SYNCHRONOUS = '"is_sync":true'  # a GPU writes collectives that it waits for as pairs, too
_WALKED = ("call", "async-start", "conditional", "while", "custom-call")

type Groups = np.ndarray  # [groups, devices of a group], indices of devices


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a program, or the sum of several of the same kind and axes."""

    kind: str  # one of KINDS
    axes: tuple[str, ...] | None  # mesh axes along which the devices of a group differ; None: unknown
    group: int  # devices per group
    count: int  # executions in one run of the program
    bytes: int  # bytes of the result on one device, over all executions
    moved: int  # bytes that one device sends, over all executions
    exact: bool = True  # False: it is in a loop of unknown trip count, which is counted as 1
    asynchronous: bool = False  # the device computes while the collective runs
    shape: str = dataclasses.field(
        default="", compare=False
    )  # shape of the result on one device, as HLO writes it; of a sum, that of the first


def collectives(hlo_text: str, mesh: Mesh) -> list[Collective]:
    """Returns the collectives of a compiled program, one for each instruction, in the order of the text.

    The body of a loop counts once per iteration. Of a conditional only the branch that moves most bytes counts. A
    collective that a TPU runs concurrently with several fusions counts once. Collectives of a single device are left
    out.

    Args:
        hlo_text: text of the compiled program.
        mesh: mesh for which it was compiled.
    """
    program = HloText.parse(hlo_text)
    return _Reader(program, mesh).walk(program.entry)


def summed(found: Iterable[Collective]) -> list[Collective]:
    """Returns one Collective for each combination of kind, axes and group size, with summed counts and bytes."""

    def key(c: Collective) -> tuple[str, tuple[str, ...], int]:
        return (c.kind, c.axes or (), c.group)

    return [
        dataclasses.replace(
            parts[0],
            count=sum(c.count for c in parts),
            bytes=sum(c.bytes for c in parts),
            moved=sum(c.moved for c in parts),
            exact=all(c.exact for c in parts),
            asynchronous=all(c.asynchronous for c in parts),
        )
        for _, group in itertools.groupby(sorted(found, key=key), key)
        if (parts := list(group))
    ]


class _Reader:
    """Finds the collectives of each computation of a program.

    Args:
        program: the computations.
        mesh: mesh for which it was compiled.
    """

    def __init__(self, program: HloText, mesh: Mesh):
        self.program, self.mesh = program, mesh
        self.known: dict[str, list[Collective]] = {}  # computation -> its collectives
        # Channels of collectives that a TPU starts in one fusion and advances in others, also in loops in between.
        self.started = {
            channel[1]
            for instructions in program.computations.values()
            if _starts(instructions)
            for i in instructions
            if _COLLECTIVE.fullmatch(i.opcode) and (channel := _CHANNEL.search(i.rest))
        }

    def walk(self, name: str) -> list[Collective]:
        """Returns the collectives of one run of a computation."""
        if name in self.known:
            return self.known[name]
        found: list[Collective] = []
        fused: set[str] = set()  # channels of collectives that several fusions share
        for instruction in self.program.computations.get(name, ()):
            opcode = instruction.opcode
            if _COLLECTIVE.fullmatch(opcode):
                found += _read(instruction, self.mesh)
            elif opcode == "fusion":
                found += self.fused(instruction, fused)
            elif opcode in _WALKED:
                parts = [self.walk(callee) for callee in instruction.callees()]
                if opcode == "conditional":
                    found += max(parts, key=lambda part: sum(c.moved for c in part), default=[])
                elif opcode == "while":
                    trips = self.program.trip_count(instruction)
                    found += [_times(c, trips) for part in parts for c in part]
                elif opcode == "async-start":
                    concurrent = _SYNCHRONOUS not in instruction.rest
                    found += [dataclasses.replace(c, asynchronous=concurrent) for part in parts for c in part]
                else:
                    found += [c for part in parts for c in part]
        self.known[name] = found
        return found

    def fused(self, fusion: Instruction, seen: set[str]) -> Iterator[Collective]:
        """Yields the collectives inside a fusion, which only TPUs have. `seen` holds the channels found so far.

        A reduce-scatter is a fusion `all-reduce-scatter` of an all-reduce, whose result is the part that is kept. An
        asynchronous collective appears in each fusion from its start to its end, under the same channel.
        """
        for callee in fusion.callees():
            instructions = self.program.computations.get(callee, ())
            for instruction in instructions:
                if instruction.opcode == "fusion":
                    yield from self.fused(instruction, seen)
                    continue
                if not _COLLECTIVE.fullmatch(instruction.opcode):
                    continue
                match = _CHANNEL.search(instruction.rest)
                channel = match[1] if match else ""
                if channel in seen or (channel in self.started and not _starts(instructions)):
                    continue
                if channel:
                    seen.add(channel)
                if callee.startswith("all-reduce-scatter"):
                    instruction = dataclasses.replace(instruction, opcode="reduce-scatter", shape=fusion.shape)
                for found in _read(instruction, self.mesh):
                    yield dataclasses.replace(found, asynchronous=channel in self.started)


def _starts(instructions: Sequence[Instruction]) -> bool:
    """Returns whether a computation starts an asynchronous collective of a TPU."""
    return any('"AsyncCollectiveStart"' in i.rest for i in instructions if i.opcode == "custom-call")


def _times(c: Collective, trips: int | None) -> Collective:
    n = trips or 1
    return dataclasses.replace(
        c, count=c.count * n, bytes=c.bytes * n, moved=c.moved * n, exact=c.exact and trips is not None
    )


def _read(instruction: Instruction, mesh: Mesh) -> list[Collective]:
    """Returns the collective of one instruction, or an empty list if no device sends anything."""
    match = _COLLECTIVE.fullmatch(instruction.opcode)
    assert match is not None
    kind, start = match[1], bool(match[2])
    shape = _result(instruction.shape, kind, start)
    size = shape_bytes(shape)
    groups = _pairs(instruction.rest) if kind == "collective-permute" else _groups(instruction.rest, mesh.size)
    if groups is not None and (groups.size == 0 or groups.shape[1] < 2):
        return []
    group = mesh.size if groups is None else groups.shape[1]
    axes = None if groups is None else _axes(groups, mesh)
    concurrent = start and _SYNCHRONOUS not in instruction.rest
    return [
        Collective(kind, axes, group, 1, size, _moved(kind, size, group), asynchronous=concurrent, shape=shape.strip())
    ]


def _moved(kind: str, size: int, n: int) -> int:
    """Returns the bytes that a device sends in a ring of n devices, for a result of `size` bytes."""
    factor = {
        "all-reduce": 2 * (n - 1) / n,
        "reduce-scatter": n - 1,
        "collective-permute": 1,
        "collective-broadcast": 1,
    }.get(kind, (n - 1) / n)
    return round(size * factor)


def _axes(groups: Groups, mesh: Mesh) -> tuple[str, ...]:
    """Returns the mesh axes along which the devices of a group differ."""
    indices = np.stack(np.unravel_index(groups, mesh.devices.shape))  # [axes, groups, devices of a group]
    differ = (indices != indices[..., :1]).any(axis=(1, 2))
    return tuple(axis for axis, differs in zip(mesh.axis_names, differ, strict=True) if differs)


def _result(shape: str, kind: str, start: bool) -> str:
    """Returns the text of the result's shape. The start of an asynchronous collective also has the operand's shape.

    For an all-reduce the operand may be missing; the shape is then not a tuple of tuples.
    """
    shape = without_layout(shape)
    with_operand = "((" if kind == "all-reduce" else "("
    if not start or not shape.startswith(with_operand):
        return shape
    depth, parts = 0, [""]
    for sign in shape[1:-1]:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts[1] if len(parts) > 1 else parts[0]


def _pairs(rest: str) -> Groups | None:
    """Returns the pairs of a permute whose source and target differ, `[pairs, 2]`."""
    match = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest)
    if match is None:
        return None
    pairs = [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", match[1])]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], int).reshape(-1, 2)


def _groups(rest: str, devices: int) -> Groups | None:
    """Returns the groups of a collective in one of the three notations of XLA; None for another.

    - `{{0,1},{2,3}}` is a list of groups.
    - `[2,4]<=[4,2]T(1,0)` numbers devices from 0 in shape [4,2], transposes, and splits the result into 2 groups of 4.
    - `mesh['a'=2,'b'=4] {'b'}` has groups along axes of a mesh. The devices may have an explicit order,
      `device_ids=([4,2]T(1,0))` or `device_ids=(0,2,1,3)`. `'b':(2)2` is a part of an axis: of size 2, after a part of
      size 2.
    """
    if match := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", rest):
        lists = [[int(n) for n in part.split(",")] for part in re.findall(r"\{([\d,]+)\}", match[1])]
        return np.array(lists or [list(range(devices))])
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        return _iota(match[3]).reshape(int(match[1]), int(match[2]))
    match = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? ?\{([^}]*)\}", rest)
    if match is None:
        return None
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", match[1])}
    order = _iota(match[2]) if match[2] and match[2].startswith("[") else _numbers(match[2] or "")
    ids = (np.array(order) if len(order) else np.arange(math.prod(sizes.values()))).reshape(-1)
    return _along(ids, sizes, re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", match[3]))


def _along(ids: np.ndarray, sizes: Mapping[str, int], axes: Sequence[tuple[str, str, str]]) -> Groups:
    """Returns groups of devices along axes of a mesh, or along parts of axes (name, size before it, its size)."""
    shape: list[int] = []
    chosen: list[int] = []
    for name, size in sizes.items():
        parts = sorted((int(before or 1), int(part or size)) for axis, before, part in axes if axis == name)
        done = 1
        for before, part in parts:
            if before > done:
                shape.append(before // done)
            chosen.append(len(shape))
            shape.append(part)
            done = before * part
        if done < size or not parts:
            shape.append(size // done)
    grid = ids.reshape(shape)
    others = [i for i in range(len(shape)) if i not in chosen]
    return grid.transpose(*others, *chosen).reshape(-1, math.prod(shape[i] for i in chosen))


def _iota(text: str) -> np.ndarray:
    """Returns the flat numbers of `[4,2]T(1,0)`: 0 to 7 in this shape, transposed."""
    shape, _, order = text.partition("T")
    grid = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return (grid.transpose(_numbers(order)) if order else grid).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
