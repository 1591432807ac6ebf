"""What a step of a small model costs, read from its HLO: kernels that are started, bytes moved, FLOPs and padding.

A small model keeps no accelerator busy: the start of a kernel takes a GPU about 3 to 5 us, which is more than most
kernels of such a model take. Kernels in one CUDA graph, a *command buffer* of XLA, start without the host.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import jax
from jax.sharding import Mesh

from engine.compile.collectives import collectives
from engine.compile.hlo_text import HloText, Instruction, arrays
from engine.compile.instructions import executed

ROUNDED: Mapping[str, tuple[int, int]] = {"tpu": (8, 128), "gpu": (8, 8)}
"""Platform -> multiples of the rows, and of the features, of a product in half precision. A TPU multiplies by 128 x 128
weights; tensor cores load 16 bytes at once."""
_THUNK = re.compile(r"^( *)\d+: k(\w+)", re.MULTILINE)
_CONTAINERS = re.compile(r"While|Conditional|Sequential|Async\w+|DynamicSliceFusion|\w+Done|WaitForStreams")
_DOT = re.compile(r"lhs_batch_dims=\{([\d,]*)\}|lhs_contracting_dims=\{([\d,]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_CUDNN = re.compile(r'custom_call_target="__cudnn\$conv(\w+)"')
_CUBLAS = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\].*?"lhs_batch_dimensions":\[([^\]]*)\]')


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """Costs of one step on one device.

    Attributes:
        launches: instructions that run: on a GPU, kernels that are started, with those of collectives.
        bytes: read from and written to memory.
        flops: of products and convolutions.
        padded_flops: the same where each product has the sizes that the hardware computes.
        sent: bytes that go to other devices.
        collectives: operations between devices.
        memory: bytes of memory for arguments and everything else that is temporary; not divided by the steps.
    """

    launches: float
    bytes: float
    flops: float
    padded_flops: float
    sent: float
    collectives: float
    memory: float

    @property
    def padding(self) -> float:
        """Share of the padded FLOPs that is padding."""
        return 1 - self.flops / self.padded_flops if self.padded_flops else 0.0


def step_costs(executable: jax.stages.Compiled, mesh: Mesh, steps: int = 1) -> StepCosts:
    """Returns the costs of a step of a compiled program of `steps` steps."""
    text = str(executable.as_text())
    program, sent = HloText.parse(text), collectives(text, mesh)
    sizes_of = list(products(program))
    moved = list(executed(program))
    found = StepCosts(
        launches=sum(i.times for i in moved) + sum(c.count for c in sent),
        bytes=sum(i.times * i.bytes for i in moved),
        flops=sum(2 * times * math.prod(sizes) for times, sizes in sizes_of),
        padded_flops=sum(
            2 * times * rounded(sizes, *ROUNDED[mesh.devices.flat[0].platform]) for times, sizes in sizes_of
        ),
        sent=sum(c.moved for c in sent),
        collectives=sum(c.count for c in sent),
        memory=_memory(executable),
    )
    each = {name: value / steps for name, value in dataclasses.asdict(found).items()}
    return StepCosts(**{**each, "memory": found.memory})


def _memory(executable: jax.stages.Compiled) -> float:
    found = executable.memory_analysis()
    return sum(getattr(found, f"{kind}_size_in_bytes", 0) for kind in ("argument", "temp"))


def host_starts(thunks: str, steps: int = 1) -> float:
    """Returns how often the host starts something in a step on a GPU: a kernel or a copy, or a graph of several.

    Args:
        thunks: what XLA executes, as `thunk_sequence_after_thunk_passes.txt` of its dump says it.
        steps: steps of the program, which is how often the body of its loop runs.
    """
    starts, graph = 0, None  # `graph`: indentation of the graph that holds the present line
    for match in _THUNK.finditer(thunks):
        indent, kind = len(match[1]), match[2]
        if graph is not None and indent > graph:
            continue
        graph = indent if kind == "CommandBuffer" else None
        if not _CONTAINERS.fullmatch(kind):
            starts += steps if indent else 1
    return starts / steps


def products(program: HloText) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Yields executions and (products, rows, features, features of the result) of products and convolutions."""
    for name, instructions in program.computations.items():
        if not (times := program.runs.get(name, 0)):
            continue
        shapes = {i.name: i.shape for i in instructions}
        for i in instructions:
            if found := _sizes(i, shapes):
                yield times, found


def product_flops(program: HloText, computation: str, i: Instruction) -> int:
    """Returns the FLOPs of products and convolutions in one execution of an instruction, those that it calls included.

    Args:
        program: the program.
        computation: name of the computation of the instruction.
        i: the instruction.
    """
    sizes = _sizes(i, {x.name: x.shape for x in program.computations[computation]})
    called = (name for name in i.callees() if name in program.computations)
    inner = (product_flops(program, name, x) for name in called for x in program.computations[name])
    return (2 * math.prod(sizes) if sizes else 0) + sum(inner)


def _sizes(i: Instruction, shapes: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """Returns the sizes of a product; None for another instruction. A convolution is a product for each offset."""
    if i.opcode == "dot":
        groups = _DOT.findall(i.rest)
        return _product(i, shapes, *("".join(found) for found in zip(*groups, strict=True)))
    if i.opcode == "custom-call" and "__cublas$" in i.rest and (match := _CUBLAS.search(i.rest)):
        return _product(i, shapes, *(",".join(re.findall(r"\d+", text)) for text in (match[2], match[1])))
    cudnn = _CUDNN.search(i.rest) if i.opcode == "custom-call" else None
    labels = _LABELS.search(i.rest)
    if labels is None or not (cudnn or i.opcode == "convolution"):
        return None
    first, second = (_dims(shapes[operand]) for operand in i.operands[:2])
    direction = cudnn[1] if cudnn else "Forward"
    kernel, out = {
        "BackwardInput": (second, first),
        "BackwardFilter": (_dims(i.shape), second),
    }.get(direction, (second, _dims(i.shape)))
    inputs, outputs = (kernel[labels[2].index(letter)] for letter in "io")
    features, offsets = out[labels[3].index("f")], math.prod(kernel) // (inputs * outputs)
    rows = math.prod(out) // features
    if (window := _WINDOW.search(i.rest)) and "lhs_dilate" in window[1] and not cudnn:
        spatial = [(first[labels[1].index(n)], kernel[labels[2].index(n)], out[labels[3].index(n)])
                   for n in map(str, range(len(first) - 2))]  # fmt: skip
        rows = math.ceil(rows * _inside(window[1], spatial))
    return offsets, rows, inputs, outputs


def _inside(window: str, sizes: Sequence[tuple[int, int, int]]) -> Fraction:
    """Returns the share of the products of a convolution that fall on numbers of the input, not between or outside.

    A TPU multiplies a batch of matrices as a convolution over a dilated input, in which each output meets one matrix.

    Args:
        window: the window as HLO says it, such as "size=24 stride=23 lhs_dilate=24".
        sizes: of the input, the kernel and the output along each spatial dimension.
    """
    found = {name: text.split("x") for name, text in (part.split("=") for part in window.split())}
    share = Fraction(1)
    for n, (size, kernel, outputs) in enumerate(sizes):
        stride, between, apart = (int(found[k][n]) if k in found else 1 for k in ("stride", "lhs_dilate", "rhs_dilate"))
        first = int(found["pad"][n].split("_")[0]) if "pad" in found else 0
        places = (o * stride + k * apart - first for o in range(outputs) for k in range(kernel))
        inside = sum(place % between == 0 and 0 <= place // between < size for place in places)
        share *= Fraction(inside, kernel * outputs)
    return share


def _product(i: Instruction, shapes: Mapping[str, str], batch: str, contracted: str) -> tuple[int, int, int, int]:
    left, result = _dims(shapes[i.operands[0]]), math.prod(_dims(i.shape))
    products, features = (math.prod(left[int(n)] for n in text.split(",") if n) for text in (batch, contracted))
    rows = math.prod(left) // (products * features)
    columns = result // (products * rows)
    return products, max(rows, columns), features, min(rows, columns)


def _dims(shape: str) -> tuple[int, ...]:
    """Returns the dimensions of an array, or of the first of a tuple."""
    return arrays(shape)[0][1]


def rounded(sizes: tuple[int, int, int, int], rows: int, features: int) -> int:
    """Returns the size of a product whose rows and features are rounded up to multiples."""

    def up(size: int, multiple: int) -> int:
        return -(-size // multiple) * multiple

    products, count, inputs, outputs = sizes
    return products * up(count, rows) * up(inputs, features) * up(outputs, features)
