"""The report of `convoy explain`: the mesh, the sharding of each array, its bytes on a device, and the collectives.

Repeated layers, whose paths differ only in numbers, share one line.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import jax
from jax.sharding import Mesh
from jax.tree_util import KeyPath

from engine.base.formatting import aligned, size_text
from engine.base.types import PyTree
from engine.compile.collectives import Collective, summed
from engine.config.schema import MeshSpec, Sharding
from engine.parallel import schedule
from engine.parallel.memory import device_bytes
from engine.parallel.mesh import axes_of, axes_text
from engine.parallel.rules import RULES

type Names = Mapping[str, Sequence[str | None]]
"""Path -> logical axes, of the parameters that have names."""
type Leaves = Iterable[tuple[KeyPath, jax.ShapeDtypeStruct]]

PARTS = {"params": "params", "carried": "model_state", "ema": "ema", "opt_state": "opt_state"}
"""Key of a stored state -> its name in the report."""
SHOWN_FROZEN = 6  # paths that `describe_frozen` names
SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int32": "i32", "uint32": "u32", "bool": "bool"}


def describe(
    spec: MeshSpec,
    sharding: Sharding,
    mesh: Mesh,
    state: Mapping[str, PyTree],
    names: Names,
    total_steps: int,
) -> str:
    """Returns the report.

    Args:
        spec: config section `mesh`.
        sharding: config section `sharding`.
        mesh: the resolved mesh.
        state: the stored train state, as ShapeDtypeStruct with shardings.
        names: logical axes of the parameters.
        total_steps: number of steps of the run.
    """
    lines = [*_mesh_lines(spec, sharding, mesh), f"steps: {total_steps}", ""]
    params = state["params"]
    for part, label in PARTS.items():
        leaves = jax.tree.leaves_with_path(state.get(part, {}))
        if not leaves:
            continue
        count = sum(math.prod(leaf.shape) for _, leaf in leaves)
        size = sum(device_bytes(leaf) for _, leaf in leaves)
        lines.append(f"{label}: {count:,} numbers, {size_text(size)}/device")
        rows = _optimizer_rows(leaves, params, names) if part == "opt_state" else _rows(leaves, names)
        lines += [f"  {line}" for line in aligned(rows)]
    total = sum(device_bytes(leaf) for leaf in jax.tree.leaves(state))
    lines += ["", f"state: {size_text(total)}/device on {axes_text(mesh.shape)}"]
    return "\n".join(lines)


def describe_frozen(params: Mapping[str, jax.ShapeDtypeStruct], trained: Collection[str]) -> str | None:
    """Returns a line about the parameters that are not trained; None if all are trained.

    Args:
        params: path -> parameter.
        trained: paths of the trained parameters.
    """
    frozen = [path for path in params if path not in trained]
    if not frozen:
        return None
    count, whole = (sum(math.prod(params[path].shape) for path in paths) for paths in (frozen, params))
    parts = list(dict.fromkeys(re.sub(r"\d+", "*", path) for path in frozen))
    more = f" and {len(parts) - SHOWN_FROZEN} more" if len(parts) > SHOWN_FROZEN else ""
    return (
        f"frozen, without gradient and optimizer state: {count:,} of {whole:,} numbers: "
        f"{', '.join(parts[:SHOWN_FROZEN])}{more}"
    )


def _mesh_lines(spec: MeshSpec, sharding: Sharding, mesh: Mesh) -> list[str]:
    """Returns the lines about the mesh, its origin and slices, changed sharding rules, and the pipeline."""
    axes, device = axes_of(spec, list(mesh.devices.flat)), mesh.devices.flat[0]
    lines = [f"mesh: {axes_text(mesh.shape)} ({mesh.size} x {device.device_kind}), from {axes.origin}"]
    if axes.slices > 1:
        lines.append(
            f"slices: {axes.slices}, {axes_text(axes.between)} between them, {axes_text(axes.within)} within each"
        )
    changed = {name: axis for name, axis in sharding.rules.items() if name not in RULES or RULES[name] != axis}
    if changed:
        lines.append("rules: " + ", ".join(f"{name} -> {axis}" for name, axis in changed.items()))
    if (stages := mesh.shape["pipeline"]) > 1:
        lines += _pipeline_lines(sharding, stages)
    return lines


def _pipeline_lines(sharding: Sharding, stages: int) -> list[str]:
    """Returns a line about the pipeline, and the cost of each schedule."""
    repeats, microbatches = sharding.repeats, schedule.microbatch_count(sharding.microbatches, stages)
    lines = [f"pipeline: {stages} stages, {microbatches} microbatches, {repeats} repeats, {sharding.schedule}"]
    for kind in ("gpipe", "1f1b"):
        inputs, activations = schedule.memory(stages, microbatches, repeats, kind)
        kept = f"{activations} microbatch{'es' if activations > 1 else ''}"
        kept += f" and the inputs of {inputs}" if inputs else ""
        waiting = schedule.bubble(stages, microbatches, repeats, kind)
        lines.append(f"  {kind}: stages wait {waiting:.0%} of the time, and keep the activations of {kept}")
    return lines


def describe_flops(model: float, hardware: float, at_least: bool) -> str:
    """Returns a line about the FLOPs of one step over all devices.

    Args:
        model: model FLOPs, by definition.
        hardware: FLOPs that the step executes.
        at_least: whether the step executes more, in loops of unknown length.
    """
    ratio = f" ({hardware / model:.2f} times)" if model and not at_least else ""
    return (
        f"FLOPs of a step, on all devices: {model:.3e} of the model (PaLM's rule, causal attention halved), "
        f"{'at least ' if at_least else ''}{hardware:.3e} executed{ratio}"
    )


def describe_collectives(found: Iterable[Collective], platform: str) -> str:
    """Returns a table of the collectives of one step, with their bytes on one device, and notes below it.

    Args:
        found: the collectives of the compiled step.
        platform: platform for which it was compiled.
    """
    parts = sorted(summed(found), key=lambda c: -c.moved)
    if not parts:
        return "collectives of a step: none"
    rows = [
        (
            c.kind + ("" if c.exact else " *"),
            "?" if c.axes is None else " x ".join(c.axes),
            f"{c.group} devices",
            f"x{c.count}",
            f"{size_text(c.bytes)} of results",
            f"{size_text(c.moved)} sent",
        )
        for c in parts
    ]
    lines = ["collectives of a step, on each device:", *(f"  {line}" for line in aligned(rows))]
    lines.append(f"  in all {size_text(sum(c.moved for c in parts))} sent by each device, in rings")
    if platform == "cpu":
        lines.append(
            "  compiled for CPU, which has no reduce-scatter: gradients of split parameters are all-reduced here, and "
            "reduce-scattered on GPUs and TPUs, which sends half as much"
        )
    if not all(c.exact for c in parts):
        lines.append("  * in a loop whose number of iterations is unknown: counted as one iteration")
    return "\n".join(lines)


def _rows(leaves: Leaves, names: Names) -> list[tuple[str, ...]]:
    """Returns a row for each array. Arrays whose paths differ only in numbers share a row, which shows the numbers."""
    found: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for path, leaf in leaves:
        text, key = _path_text(path), _param_of(path)
        logical = f"({', '.join(map(str, names[key]))})" if key in names else "-"
        size = f"{size_text(device_bytes(leaf))}/device"
        row = (re.sub(r"\d+", "*", text), _array_text(leaf), logical, _split_text(leaf.sharding.spec), size)
        found.setdefault(row, []).append(tuple(map(int, re.findall(r"\d+", text))))
    return [
        (_numbered(path, numbers), f"x{len(numbers)}" if len(numbers) > 1 else "", *rest)
        for (path, *rest), numbers in found.items()
    ]


def _split_text(spec: Iterable[str | tuple[str, ...] | None]) -> str:
    """Returns the mesh axes of each dimension: "(fsdp, -)", "(data+fsdp)"; "whole" if no dimension is split."""
    texts = ["-" if axes is None else axes if isinstance(axes, str) else "+".join(axes) for axes in spec]
    return f"({', '.join(texts)})" if any(text != "-" for text in texts) else "whole"


def _numbered(path: str, numbers: Sequence[tuple[int, ...]]) -> str:
    """Returns a path with the numbers of its arrays for each `*`: `hidden/0..11/kernel`, `stages/0,2/scale`."""
    columns = iter([sorted(set(column)) for column in zip(*numbers, strict=True)])
    return re.sub(r"\*", lambda star: _range_text(next(columns)), path)


def _range_text(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 2 and last - first == len(numbers) - 1:
        return f"{first}..{last}"
    return ",".join(map(str, numbers)) if len(numbers) <= 8 else f"{first},{numbers[1]},..,{last}"


def _optimizer_rows(leaves: Leaves, params: Mapping[str, jax.ShapeDtypeStruct], names: Names) -> list[tuple[str, ...]]:
    """Returns rows as `_rows` does, but arrays with their parameters' shapes and shardings share a row ("mu/...")."""
    families: dict[str, list[tuple[KeyPath, jax.ShapeDtypeStruct]]] = {}
    for path, leaf in leaves:
        prefix = _path_text(path[:-1]) if _param_of(path) in params else ""
        families.setdefault(prefix, []).append((path, leaf))
    rows: list[tuple[str, ...]] = []
    for prefix, family in families.items():
        pairs = [(leaf, params.get(_param_of(path))) for path, leaf in family]
        if all(p is not None and (leaf.shape, leaf.sharding) == (p.shape, p.sharding) for leaf, p in pairs):
            kinds = ", ".join(sorted({_dtype_text(leaf) for leaf, _ in pairs}))
            size = size_text(sum(device_bytes(leaf) for leaf, _ in pairs))
            rows.append((f"{prefix}/...", f"x{len(family)}", kinds, "", "as the parameters", f"{size}/device"))
        else:
            like = {_param_of(path) for (path, _), (leaf, p) in zip(family, pairs, strict=True) if _is_like(leaf, p)}
            rows += _rows(family, {path: axes for path, axes in names.items() if path in like})
    return rows


def _is_like(leaf: jax.ShapeDtypeStruct, param: jax.ShapeDtypeStruct | None) -> bool:
    """Returns whether an array has the dimensions of its parameter, and so its logical axes."""
    return param is not None and leaf.shape == param.shape


def _path_text(path: KeyPath) -> str:
    """Returns the keys of a path, without the leading numbers that nested optimizers add."""
    text = jax.tree_util.keystr(path, simple=True, separator="/")
    return re.sub(r"^(\d+/)+(?=\D)", "", text)


def _param_of(path: KeyPath) -> str:
    """Returns the path of an array's parameter: the last key, since parameters are a flat dict by path."""
    return str(getattr(path[-1], "key", ""))


def _array_text(leaf: jax.ShapeDtypeStruct) -> str:
    return f"{_dtype_text(leaf)}[{','.join(map(str, leaf.shape))}]"


def _dtype_text(leaf: jax.ShapeDtypeStruct) -> str:
    return SHORT.get(str(leaf.dtype), str(leaf.dtype))
