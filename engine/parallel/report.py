"""One text about where everything lies: the mesh, each parameter, the bytes on a device.

Owns: the lines of `convoy explain`. Does not own: the decisions (`mesh.py`, `rules.py`). Repeated layers, whose
paths differ only in numbers, are folded into one line.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int32": "i32", "uint32": "u32", "bool": "bool"}


def describe(mesh: Mesh, state: Mapping[str, Any], names: Mapping[str, Any], total_steps: int) -> str:
    """Returns the report.

    Args:
        mesh: the resolved mesh.
        state: the train state as ShapeDtypeStruct with shardings.
        names: path -> logical axes of the parameters that have some.
        total_steps: of the run.
    """
    axes = "  ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    device = mesh.devices.flat[0]
    lines = [f"mesh: {axes}  ({mesh.size} x {device.device_kind})", f"steps: {total_steps}", ""]
    for part in ("params", "carried", "ema", "opt_state"):
        leaves = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree.leaves_with_path(state.get(part, {}))
        }
        if not leaves:
            continue
        count = sum(math.prod(leaf.shape) for leaf in leaves.values())
        size = sum(device_bytes(leaf) for leaf in leaves.values())
        lines.append(f"{part}: {count:,} numbers, {size_text(size)}/device")
        if part != "opt_state":
            lines += [f"  {line}" for line in _fold(leaves, names)]
    total = sum(device_bytes(leaf) for leaf in jax.tree.leaves(state))
    lines += ["", f"state: {size_text(total)}/device on {'x'.join(map(str, mesh.devices.shape))}"]
    return "\n".join(lines)


def device_bytes(leaf: Any) -> int:
    """Bytes of an abstract array that one device holds."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def size_text(size: float) -> str:
    """Bytes as B, KiB, MiB or GiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _fold(leaves: Mapping[str, Any], names: Mapping[str, Any]) -> list[str]:
    """One line for each parameter; those that differ only in numbers of their path share one."""
    rows: dict[tuple[str, ...], int] = {}
    for path, leaf in leaves.items():
        text = f"{SHORT.get(leaf.dtype.name, leaf.dtype.name)}[{','.join(map(str, leaf.shape))}]"
        logical = f"({', '.join(map(str, names[path]))})" if path in names else "-"
        spec = "P(" + ", ".join(map(repr, leaf.sharding.spec)) + ")"
        key = (re.sub(r"\d+", "*", path), text, logical, spec, f"{size_text(device_bytes(leaf))}/device")
        rows[key] = rows.get(key, 0) + 1
    table = [(path, f"x{n}" if n > 1 else "", *rest) for (path, *rest), n in rows.items()]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
