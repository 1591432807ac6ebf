"""Sharding rules: the table from logical axes (names of dimensions) to mesh axes, and its checks.

A parameter names its dimensions with `nnx.Param(value, logical_axes=("embed", "mlp"))`, or in a layer of Flax with
`kernel_metadata={"out_sharding": ("embed", "mlp")}`. A large parameter without names is split over `fsdp` along its
largest divisible dimension. Errors name the parameter, before anything is compiled.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from jax.sharding import Mesh, PartitionSpec

from engine.config.errors import ShardingError, did_you_mean
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
    "batch": (*BATCH_AXES, "pipeline"),  # the model before and after a pipeline is split over its stages, too
    "sequence": "context",
    "tokens": ("context", "tensor"),
}
ACTIVATIONS = ("batch", "sequence", "tokens")
"""Names that only activations have."""
STACKED = ("repeats", "layers")
"""Names of the leading dimensions of a stack of layers; other names belong to one layer."""
SMALLEST_SPLIT = 1024  # elements; splitting a smaller parameter without names costs more than it saves
LARGE_BYTES, LARGE_FRACTION = 2**20, 0.01  # a replicated parameter above both (bytes, fraction of all) gets a warning
MAX_SHOWN = 5  # problems, or parameters of a warning, that are listed


class Shaped(Protocol):
    """An array or its abstract value."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...


def partition_specs(
    params: Mapping[str, Shaped], names: Mapping[str, Sequence[str | None]], rules: Rules, mesh: Mesh
) -> dict[str, PartitionSpec]:
    """Returns path -> PartitionSpec of every parameter.

    Args:
        params: path -> array or abstract value.
        names: path -> logical axes, of the parameters that have names.
        rules: name -> mesh axes, the defaults with the overrides of the config.
        mesh: mesh of the parameters.

    Raises:
        ShardingError: the text lists the problems of all parameters (see `partition_spec`).
    """
    specs, problems = {}, {}
    for path, param in params.items():
        try:
            specs[path] = partition_spec(path, param.shape, names.get(path), rules, mesh)
        except ShardingError as error:
            problems[str(error)] = None  # a dict, so that a wrong rule is listed once and not for each parameter
    if problems:
        more = f"\n(and {len(problems) - MAX_SHOWN} more)" if len(problems) > MAX_SHOWN else ""
        raise ShardingError("\n".join(list(problems)[:MAX_SHOWN]) + more)
    return specs


def partition_spec(
    path: str, shape: Sequence[int], names: Sequence[str | None] | None, rules: Rules, mesh: Mesh
) -> PartitionSpec:
    """Returns the PartitionSpec of one parameter.

    Args:
        path: path of the parameter, for error texts.
        shape: shape of the parameter.
        names: a logical axis or None for each dimension; None for a parameter without names; only names of STACKED for
            a stack of layers without names.
        rules: name -> mesh axes.
        mesh: mesh of the parameter.

    Raises:
        ShardingError: a name is unknown, a mesh axis is used twice, or a dimension is not divisible.
    """
    if names is None:
        return _unnamed(shape, mesh)
    if len(names) < len(shape) and set(names) <= set(STACKED):
        stack = partition_spec(path, shape[: len(names)], names, rules, mesh)
        return PartitionSpec(*stack, *_unnamed(shape[len(names) :], mesh))
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
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            text = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
            raise ShardingError(
                f"{path}: axis {name!r} = {size} is not divisible by mesh axis {text}. "
                f"Use a multiple of {parts} ({-(-size // parts) * parts}), "
                f"{axes[0]}={math.gcd(size, mesh.shape[axes[0]])}, or map {name!r} to None in sharding.rules."
            )
        entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*entries)


def mesh_axes(path: str, name: str | None, rules: Rules) -> tuple[str, ...]:
    """Returns the mesh axes of one logical axis.

    Raises:
        ShardingError: the name has no rule, or its rule has an unknown mesh axis. `path` is part of the error text.
    """
    if name is None:
        return ()
    if name not in rules:
        raise ShardingError(
            f"{path}: no sharding rule for axis {name!r}.{did_you_mean(name, rules)} "
            f"Rules here: {', '.join(rules)}. Add one with --config.sharding.rules.{name}=fsdp (or None)."
        )
    value = rules[name]
    axes = () if value is None else (value,) if isinstance(value, str) else tuple(value)
    for axis in axes:
        if axis not in AXES:
            raise ShardingError(
                f"sharding.rules.{name}: no mesh axis {axis!r}.{did_you_mean(axis, AXES)} Mesh axes: {', '.join(AXES)}."
            )
    return axes


def _unnamed(shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Returns the spec that splits the largest divisible dimension over `fsdp`; small parameters are replicated."""
    parts = mesh.shape["fsdp"]
    fits = [i for i, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or math.prod(shape) < SMALLEST_SPLIT or not fits:
        return PartitionSpec()
    split = max(fits, key=lambda i: shape[i])
    return PartitionSpec(*(("fsdp" if i == split else None) for i in range(len(shape))))


def warnings(
    params: Mapping[str, Shaped], names: Mapping[str, Sequence[str | None]], rules: Rules, mesh: Mesh
) -> list[str]:
    """Returns warnings about valid settings that are rarely intended.

    These are a mesh axis that splits no parameter, a large parameter that is replicated over `fsdp`, and a rule of the
    config for a name that no parameter has.

    Args:
        params: path -> array or abstract value.
        names: path -> logical axes, of the parameters that have names.
        rules: name -> mesh axes.
        mesh: mesh of the parameters.
    """
    specs = partition_specs(params, names, rules, mesh)
    used = {path: {axis for entry in spec for axis in _entry(entry)} for path, spec in specs.items()}
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
    return found + _large_and_whole(params, names, rules, mesh, used)


def _entry(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the mesh axes of a rule, or of one entry of a PartitionSpec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _advice(axis: str, rules: Rules) -> str:
    mapped = [name for name, axes in rules.items() if axis in _entry(axes) and name not in ACTIVATIONS]
    names = f"Name dimensions {' or '.join(map(repr, mapped))} in the model, or use" if mapped else "Use"
    return f"{names} mesh.{axis}=1."


def _large_and_whole(
    params: Mapping[str, Shaped],
    names: Mapping[str, Sequence[str | None]],
    rules: Rules,
    mesh: Mesh,
    used: Mapping[str, set[str]],
) -> list[str]:
    """Returns a warning for each large parameter that is replicated over `fsdp`, the largest first."""
    parts = mesh.shape["fsdp"]
    if parts == 1:
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
            fix = f"no dimension is divisible by {parts}. Use a multiple of {parts}, or another mesh.fsdp."
        found.append(f"{path} {shape}, {sizes[path] / 2**20:.1f} MiB, is replicated over mesh axis fsdp={parts}: {fix}")
    return found + ([f"(and {len(large) - MAX_SHOWN} more such parameters)"] if len(large) > MAX_SHOWN else [])
