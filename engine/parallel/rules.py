"""Sharding rules: the table from logical axes (names of dimensions) to mesh axes, and the checks of the table.

A model declares the logical axes of a parameter with `nnx.Param(value, logical_axes=("embed", "mlp"))`, or in a layer
of Flax with `kernel_metadata={"out_sharding": ("embed", "mlp")}`. A large parameter without logical axes is split over
`fsdp` along its largest divisible dimension. The checks run before compilation.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from engine.base.errors import ShardingError, did_you_mean
from engine.parallel.mesh import AXES, BATCH_AXES

Rules = Mapping[str, str | Sequence[str] | None]

RULES: Rules = {
    # dimensions of parameters
    "layers": "pipeline",
    "repeats": None,
    "expert": "expert",
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "vocab": "tensor",
    "norm": None,
    # dimensions of activations
    "batch": (*BATCH_AXES, "pipeline"),  # layers outside of a pipeline split the batch over its stages too
    "sequence": "context",
    "tokens": ("context", "tensor"),
}
ACTIVATIONS = ("batch", "sequence", "tokens")
"""Logical axes that only activations have."""
STACKED = ("repeats", "layers")
"""Logical axes of the leading dimensions of stacked parameters (`layers/stack.py`)."""
SMALLEST_SPLIT = 1024  # elements; splitting a smaller parameter without logical axes costs more than it saves
# A replicated parameter above both limits gets a warning: bytes, and the fraction of the bytes of all parameters.
LARGE_BYTES, LARGE_FRACTION = 2**20, 0.01
MAX_SHOWN = 5  # number of problems in an error text, and of large parameters in the warnings


class Shaped(Protocol):
    """An array or its abstract value."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...


def partition_specs(
    params: Mapping[str, Shaped], names: Mapping[str, Sequence[str | None]], rules: Rules, mesh: Mesh | AbstractMesh
) -> dict[str, PartitionSpec]:
    """Returns path -> PartitionSpec of every parameter.

    Args:
        params: path -> array or abstract value.
        names: path -> logical axes; parameters without logical axes are absent.
        rules: logical axis -> mesh axes: RULES with the overrides of the config.
        mesh: mesh of the parameters.

    Raises:
        ShardingError: `partition_spec` fails for a parameter. The text lists the first MAX_SHOWN distinct problems.
    """
    specs, problems = {}, {}
    for path, param in params.items():
        try:
            specs[path] = partition_spec(path, param.shape, names.get(path), rules, mesh)
        except ShardingError as error:
            problems[str(error)] = None  # a dict as an ordered set: a wrong rule is listed once, not for each parameter
    if problems:
        more = f"\n(and {len(problems) - MAX_SHOWN} more)" if len(problems) > MAX_SHOWN else ""
        raise ShardingError("\n".join(list(problems)[:MAX_SHOWN]) + more)
    return specs


def partition_spec(
    path: str, shape: Sequence[int], names: Sequence[str | None] | None, rules: Rules, mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Returns the PartitionSpec of one parameter.

    Args:
        path: path of the parameter, for error texts.
        shape: shape of the parameter.
        names: a logical axis or None for each dimension, or None for a parameter without logical axes. A stacked
            parameter whose layer has no logical axes has only those of STACKED, for its leading dimensions.
        rules: logical axis -> mesh axes.
        mesh: mesh of the parameter.

    Raises:
        ShardingError: the number of names is wrong, a name or its mesh axis is unknown, a mesh axis is used twice, or a
            dimension is not divisible.
    """
    if names is None:
        return _default_spec(shape, mesh)
    if len(names) < len(shape) and set(names) <= set(STACKED):
        stack = partition_spec(path, shape[: len(names)], names, rules, mesh)
        return PartitionSpec(*stack, *_default_spec(shape[len(names) :], mesh))
    if len(names) != len(shape):
        raise ShardingError(
            f"{path}: {len(names)} axis names {tuple(names)} for shape {list(shape)}. Name each dimension."
        )
    used: dict[str, str] = {}
    entries = []
    for name, size in zip(names, shape, strict=True):
        axes = mesh_axes(path, name, rules)
        for axis in axes:
            if axis in used:
                raise ShardingError(
                    f"{path}: axes {used[axis]!r} and {name!r} are both mapped to mesh axis {axis!r}. "
                    f"Map one of them to None in sharding.rules."
                )
            used[axis] = str(name)
        shards = math.prod(mesh.shape[axis] for axis in axes)
        if size % shards:
            text = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
            raise ShardingError(
                f"{path}: axis {name!r} = {size} is not divisible by mesh axis {text}. "
                f"Use a multiple of {shards} ({-(-size // shards) * shards}), "
                f"{axes[0]}={math.gcd(size, mesh.shape[axes[0]])}, or map {name!r} to None in sharding.rules."
            )
        entries.append(to_entry(axes))
    return PartitionSpec(*entries)


def mesh_axes(path: str, name: str | None, rules: Rules) -> tuple[str, ...]:
    """Returns the mesh axes of one logical axis; none for None.

    Args:
        path: path of the parameter, or another name of the array, for error texts.
        name: the logical axis.
        rules: logical axis -> mesh axes.

    Raises:
        ShardingError: the logical axis has no rule, or its rule has an unknown mesh axis.
    """
    if name is None:
        return ()
    if name not in rules:
        raise ShardingError(
            f"{path}: no sharding rule for axis {name!r}.{did_you_mean(name, rules)} "
            f"Rules here: {', '.join(rules)}. Add one with --config.sharding.rules.{name}=fsdp (or None)."
        )
    axes = axes_of(rules[name])
    for axis in axes:
        if axis not in AXES:
            raise ShardingError(
                f"sharding.rules.{name}: no mesh axis {axis!r}.{did_you_mean(axis, AXES)} Mesh axes: {', '.join(AXES)}."
            )
    return axes


def _default_spec(shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Returns the spec of a parameter without logical axes: its largest divisible dimension is split over `fsdp`.

    Parameters below SMALLEST_SPLIT and parameters without a divisible dimension are replicated.
    """
    shards = mesh.shape["fsdp"]
    divisible = [i for i, size in enumerate(shape) if size % shards == 0]
    if shards == 1 or math.prod(shape) < SMALLEST_SPLIT or not divisible:
        return PartitionSpec()
    split = max(divisible, key=lambda i: shape[i])
    return PartitionSpec(*(("fsdp" if i == split else None) for i in range(len(shape))))


def warnings(
    params: Mapping[str, Shaped], names: Mapping[str, Sequence[str | None]], rules: Rules, mesh: Mesh | AbstractMesh
) -> list[str]:
    """Returns warnings about valid settings that are rarely intended.

    - `mesh.fsdp` or `mesh.tensor` is above 1, but splits no parameter.
    - `sharding.rules` has a rule for a logical axis that no parameter has.
    - A large parameter is replicated over `fsdp`.

    Args:
        params, names, rules, mesh: as for `partition_specs`.
    """
    specs = partition_specs(params, names, rules, mesh)
    used = {path: {axis for entry in spec for axis in axes_of(entry)} for path, spec in specs.items()}
    found = [
        f"mesh.{axis} = {mesh.shape[axis]} splits no parameter, so these devices hold identical parameters"
        f"{' and repeat the same computation' if axis not in BATCH_AXES else ''}. {_advice(axis, rules)}"
        for axis in ("fsdp", "tensor")
        if mesh.shape[axis] > 1 and not any(axis in axes for axes in used.values())
    ]
    known = {name for path in names for name in names[path] if name is not None}
    found += [
        f"sharding.rules.{name}: no parameter has an axis of this name.{did_you_mean(name, known | set(RULES))}"
        for name in rules
        if name not in RULES and name not in known
    ]
    return found + _replication_warnings(params, names, rules, mesh, used)


def axes_of(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the mesh axes of a rule or of one entry of a PartitionSpec as a tuple."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def split_over_data(spec: PartitionSpec, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Returns the spec with `data` on the dimension whose part is the largest that `data` divides, as in ZeRO-1.

    It is the spec itself if `data` splits the array already, or divides no dimension.
    """
    entries = _entries(spec, shape)
    if any("data" in axes for axes in entries) or not _split_largest(entries, shape, "data", mesh):
        return spec
    return PartitionSpec(*map(to_entry, entries))


def state_spec(
    shape: Sequence[int], param: Sequence[int], spec: PartitionSpec, mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Returns the spec of an array that an optimizer stores for a parameter.

    An array of the parameter's shape has its spec. Another, such as a factor of SOAP, `[layers, rows, rows]`, or the
    row of Adafactor, `[layers, rows]`, keeps the split of the dimensions that have the parameter's size: all of them
    if it has as many dimensions, else the first ones. Each other axis that splits the parameter splits the dimension
    whose part is the largest that it divides. An array of a replicated parameter is split as a parameter without
    logical axes. Arrays below SMALLEST_SPLIT are replicated.

    Args:
        shape: shape of the array.
        param: shape of the parameter.
        spec: of arrays with the parameter's shape; with ZeRO-1 it has `data`.
        mesh: the mesh.
    """
    if tuple(shape) == tuple(param):
        return spec
    if math.prod(shape) < SMALLEST_SPLIT:
        return PartitionSpec()
    of_param = _entries(spec, param)
    if not any(of_param):  # a parameter too small to be split, such as a narrow output layer
        return _default_spec(shape, mesh)
    same = [size == other for size, other in zip(shape, param, strict=False)]
    if len(shape) != len(param):
        same = same[: same.index(False)] if False in same else same
    entries: list[tuple[str, ...]] = [of_param[i] if i < len(same) and same[i] else () for i in range(len(shape))]
    kept = {axis for axes in entries for axis in axes}
    for axis in (axis for axes in of_param for axis in axes if axis not in kept):
        _split_largest(entries, shape, axis, mesh)
    return PartitionSpec(*map(to_entry, entries))


def _entries(spec: PartitionSpec, shape: Sequence[int]) -> list[tuple[str, ...]]:
    """Returns the mesh axes of each dimension."""
    return [axes_of(entry) for entry in (*spec, *[None] * (len(shape) - len(spec)))]


def _split_largest(entries: list[tuple[str, ...]], shape: Sequence[int], axis: str, mesh: Mesh | AbstractMesh) -> bool:
    """Adds an axis to the dimension whose part is the largest that it divides; returns whether there is one."""
    parts = [size // math.prod(mesh.shape[a] for a in axes) for size, axes in zip(shape, entries, strict=True)]
    fits = [i for i, part in enumerate(parts) if part % mesh.shape[axis] == 0]
    if fits:
        split = max(fits, key=lambda i: parts[i])
        entries[split] = (*entries[split], axis)
    return bool(fits)


def to_entry(axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """Returns the entry of a PartitionSpec for a dimension that is split over these mesh axes."""
    if len(axes) > 1:
        return axes
    return axes[0] if axes else None


def _advice(axis: str, rules: Rules) -> str:
    """Returns how to make mesh axis `axis` split a parameter, or to omit the axis."""
    mapped = [name for name, axes in rules.items() if axis in axes_of(axes) and name not in ACTIVATIONS]
    names = f"Name dimensions {' or '.join(map(repr, mapped))} in the model, or use" if mapped else "Use"
    return f"{names} mesh.{axis}=1."


def _replication_warnings(
    params: Mapping[str, Shaped],
    names: Mapping[str, Sequence[str | None]],
    rules: Rules,
    mesh: Mesh | AbstractMesh,
    used: Mapping[str, set[str]],
) -> list[str]:
    """Returns warnings about the MAX_SHOWN largest parameters that are replicated over `fsdp`, the largest first.

    `used` maps the path of a parameter to the mesh axes that split it.
    """
    shards = mesh.shape["fsdp"]
    if shards == 1:
        return []
    sizes = {path: math.prod(param.shape) * param.dtype.itemsize for path, param in params.items()}
    limit = max(LARGE_BYTES, LARGE_FRACTION * sum(sizes.values()))
    large = sorted(
        (path for path in sizes if sizes[path] > limit and "fsdp" not in used[path]), key=lambda p: -sizes[p]
    )
    found = []
    for path in large[:MAX_SHOWN]:
        shape = list(params[path].shape)
        if path in names and not set(names[path]) <= set(STACKED):
            fix = f"none of its axes {tuple(names[path])} is mapped to fsdp. Map one in sharding.rules."
        else:
            fix = f"no dimension is divisible by {shards}. Use a multiple of {shards}, or another mesh.fsdp."
        found.append(
            f"{path} {shape}, {sizes[path] / 2**20:.1f} MiB, is replicated over mesh axis fsdp={shards}: {fix}"
        )
    return found + ([f"(and {len(large) - MAX_SHOWN} more such parameters)"] if len(large) > MAX_SHOWN else [])
