"""Builds the device mesh from a config and the available devices.

Axes: *pipeline* splits layers into stages, *data* rows, *fsdp* rows and parameters, *expert* rows and the experts of a
layer, *context* sequences, *tensor* dimensions of one layer. A *slice* is a set of devices on one fast network, such as
a TPU slice or a host of GPUs; `mesh.dcn` is the factor of each axis over the slower network between slices.
"""

import dataclasses
import heapq
import math
import os
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from engine.base.errors import ConfigError, ShardingError
from engine.base.host import usable_cores
from engine.base.types import Device
from engine.cluster import group
from engine.config import hardware
from engine.config.schema import DcnMeshSpec, MeshSpec

AXES = hardware.AXES
BATCH_AXES = ("data", "fsdp", "expert")


@dataclasses.dataclass(frozen=True)
class Axes:
    """The resolved sizes of a mesh."""

    within: Mapping[str, int]  # axis -> size within a slice
    between: Mapping[str, int]  # axis -> size between slices
    origin: str  # source of the sizes, for the report

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every axis over all slices."""
        return {axis: self.within[axis] * self.between[axis] for axis in AXES}

    @property
    def slices(self) -> int:
        """Number of slices of the mesh."""
        return math.prod(self.between.values())


def axes_text(sizes: Mapping[str, int | None]) -> str:
    """Returns the axes as "data=2 x fsdp=4", without axes of size 1; "data=1" if all have size 1."""
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "data=1"


def resolve_axes(
    config: MeshSpec, devices: int, *, kind: str = "cpu", slices: int | None = None, join: bool = True
) -> Axes:
    """Returns the size of every axis for a number of devices.

    Args:
        config: axes as integers; -1 takes the remaining devices, and so does `data` if it is None and no axis is -1.
            If no axis is set, preset "auto" is the usual mesh of the hardware.
        devices: number of devices.
        kind: kind of the devices, `device_kind` of JAX.
        slices: number of slices of the devices; None if unknown.
        join: whether the mesh may treat several slices as one.

    Raises:
        ShardingError: the axes do not multiply to the number of devices.
    """
    chosen, between, origin = _chosen(config, devices, kind, slices)
    within = {axis: 1 if size is None and axis != "data" else size for axis, size in chosen.items()}
    if slices and slices > 1 and not join and all(size == 1 for size in between.values()):
        between["data"] = slices
        origin += f"; mesh.dcn.data={slices}, since there are {slices} slices"
    between = _resolve_between(between, devices, slices, join)
    count = math.prod(between.values())
    return Axes(_resolve_within(within, devices // count, count, between, kind), between, origin)


def _chosen(
    config: MeshSpec, devices: int, kind: str, slices: int | None
) -> tuple[dict[str, int | None], dict[str, int], str]:
    """Returns the axes within and between slices, with -1 and None unresolved, and their origin."""
    within = {axis: getattr(config, axis) for axis in AXES}
    between = {axis: getattr(config.dcn, axis) for axis in AXES}
    given = {axis for axis in AXES if within[axis] is not None}
    name, found = config.preset, hardware.find(kind)
    auto = name == "auto"
    if auto:
        if given or config.dcn != DcnMeshSpec():
            return within, between, "the config"
        if found is None:
            return within, between, "the default, copies on all devices"
        name = found.mesh
    preset = dict(hardware.mesh_preset(name))
    share = devices // (slices or 1)
    for axis, size in preset.items():
        axis, outer = axis.removeprefix("dcn."), axis.startswith("dcn.")
        if outer and between[axis] == 1:
            between[axis] = size if slices else 1
        elif not outer and axis not in given:
            within[axis] = math.gcd(size, share) if auto and size > 1 else size
    if "data" not in given and any(size == -1 and axis in given for axis, size in preset.items()):
        within["data"] = None  # the config sets the preset's axis of -1, so data takes the remaining devices
    origin = f"preset {name}" + (f", the usual mesh of {found.name}" if auto and found else "")
    return (
        within,
        between,
        origin + (f"; {', '.join(f'mesh.{axis}' for axis in AXES if axis in given)}" if given else ""),
    )


def _resolve_between(between: Mapping[str, int], devices: int, slices: int | None, join: bool) -> dict[str, int]:
    """Returns the factors between slices as numbers that multiply to a number of slices."""
    text = f"mesh.dcn: {axes_text(between)}"
    free = [axis for axis, size in between.items() if size == -1]
    if len(free) > 1:
        raise ShardingError(
            f"mesh.dcn: {' and '.join(free)} are both -1. Only one axis can take the remaining devices."
        )
    fixed = math.prod(size for size in between.values() if size != -1)
    if free and slices is None:
        raise ShardingError(f"{text}: the slices of these devices are unknown. Set mesh.dcn.{free[0]} to a number.")
    known = slices or fixed
    wrong = known % fixed if free or join else known != fixed
    if wrong:
        near = ", ".join(str(n) for n in range(1, known + 1) if known % n == 0)
        allowed = f"{known}" if not join and not free else f"a divisor of it ({near})"
        raise ShardingError(f"{text} needs {fixed} slices, found {known}. The product of mesh.dcn must be {allowed}.")
    sizes = {axis: known // fixed if size == -1 else size for axis, size in between.items()}
    count = math.prod(sizes.values())
    if devices % count:
        raise ShardingError(f"{text} needs a multiple of {count} devices, found {devices}. Set mesh.dcn.data=1.")
    return sizes


def _resolve_within(
    within: Mapping[str, int | None], devices: int, slices: int, between: Mapping[str, int], kind: str
) -> dict[str, int]:
    """Returns the axes within a slice as numbers that multiply to its devices."""
    sizes = dict(within)
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ShardingError(f"mesh: {' and '.join(free)} are both -1. Only one axis can take the remaining devices.")
    if sizes["data"] is None:
        sizes["data"] = 1 if free else -1
        free = free or ["data"]
    numbers = {axis: int(size or 1) for axis, size in sizes.items()}
    fixed = math.prod(size for size in numbers.values() if size != -1)
    if free and devices % fixed == 0:
        return {axis: devices // fixed if size == -1 else size for axis, size in numbers.items()}
    if free or fixed != devices:
        each = f" in each of {slices} slices (mesh.dcn: {axes_text(between)})" if slices > 1 else ""
        helps = not free and devices % (fixed // numbers["data"]) == 0
        simulated = f" On a CPU, JAX_NUM_CPU_DEVICES={fixed} simulates {fixed} devices."
        raise ShardingError(
            f"mesh: {axes_text(numbers)} needs {'a multiple of ' if free else ''}{fixed} devices, found "
            f"{devices}{each}. Meshes that work here: {'; '.join(_nearest(within, devices))}."
            f"{' Set mesh.data=-1 to take the remaining devices.' if helps else ''}"
            f"{simulated if kind == 'cpu' and devices * slices == 1 else ''}"
        )
    return numbers


def _nearest(asked: Mapping[str, int | None], devices: int) -> list[str]:
    """Returns up to three meshes for these devices, nearest to the requested sizes.

    Only `data` and the requested axes vary, so that the search is fast for a thousand devices.
    """
    numbers = {axis: size for axis, size in asked.items() if size is not None and size > 1}
    axes = [axis for axis in AXES if axis in numbers or axis == "data" or asked[axis] == -1]

    def distance(fit: tuple[int, ...]) -> float:
        return sum(abs(math.log(size / numbers[axis])) for axis, size in zip(axes, fit, strict=True) if axis in numbers)

    fits = heapq.nsmallest(3, _factorizations(devices, len(axes)), key=distance)
    return [axes_text(dict(zip(axes, fit, strict=True))) for fit in fits]


def _factorizations(n: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yields every tuple of `parts` positive integers whose product is n."""
    if parts == 1:
        yield (n,)
        return
    for first in range(1, n + 1):
        if n % first == 0:
            for rest in _factorizations(n // first, parts - 1):
                yield (first, *rest)


def axes_of(config: MeshSpec, devices: Sequence[Device]) -> Axes:
    """Returns the size of every axis for these devices. Raises ShardingError if they do not fit."""
    slices, join = _count_slices(devices)
    return resolve_axes(config, len(devices), kind=devices[0].device_kind, slices=slices, join=join)


def make_mesh(config: MeshSpec, devices: Sequence[Device] | None = None) -> Mesh:
    """Returns the mesh of a config. Axes have type Auto; within each, the factor between slices is outermost.

    Args:
        config: config section `mesh`.
        devices: devices in the order of their processes, or those of a topology; all devices by default.

    Raises:
        ShardingError: the axes do not multiply to the number of devices, or the slices do not fit.
    """
    devices = jax.devices() if devices is None else devices
    axes = axes_of(config, devices)
    grid = _one_slice(axes, devices) if axes.slices == 1 else _several_slices(axes, devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _count_slices(devices: Sequence[Device]) -> tuple[int | None, bool]:
    """Returns the number of slices (None if unknown), and whether a mesh may treat several as one.

    TPU slices are fixed. Hosts of GPUs, and processes on CPUs, may be treated as one slice. JAX gives GPUs that are
    present the number of their host as `slice_index`, and absent ones only the number of their process.
    """
    platform = devices[0].platform
    count = max(_distinct(devices, "slice_index"), 1)
    if platform == "tpu":
        return count, False
    if count == 1:
        count = _distinct(devices, "process_index")
        if platform == "gpu" and count == len(devices):
            return None, True  # one process for each GPU: processes do not show which GPUs share a host
    return (count if count > 1 else None), True


def _distinct(devices: Sequence[Device], attribute: str) -> int:
    return len({getattr(device, attribute) for device in devices if hasattr(device, attribute)})


def _one_slice(axes: Axes, devices: Sequence[Device]) -> np.ndarray:
    """Returns the devices by axis for one slice: by the torus of a TPU, elsewhere in the order of processes."""
    shape = tuple(axes.sizes.values())
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:  # an axis of the mesh is not a product of axes of the torus
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _several_slices(axes: Axes, devices: Sequence[Device]) -> np.ndarray:
    """Returns the devices by axis over slices. If the slices are unknown, consecutive devices form a slice."""
    within, between = tuple(axes.within.values()), tuple(axes.between.values())
    for attribute in ("slice_index", "process_index"):
        if _distinct(devices, attribute) == axes.slices:
            return mesh_utils.create_hybrid_device_mesh(
                within,
                between,
                devices,
                process_is_granule=attribute == "process_index",
                allow_split_physical_axes=True,
            )
    grid = np.asarray(devices).reshape(*between, *within)
    # Brings the outer and inner factor of each axis next to each other, and merges each pair.
    pairs = [i for axis in range(len(AXES)) for i in (axis, len(AXES) + axis)]
    return grid.transpose(pairs).reshape(tuple(axes.sizes.values()))


def one_device(mesh: Mesh) -> Mesh:
    """Returns the mesh of the first device of a mesh, with the same axes."""
    first = mesh.devices.flat[:1].reshape((1,) * len(AXES))
    return Mesh(first, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first dimension over `data`, `fsdp` and `expert`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array of which every device holds a copy."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch_size: int, accumulate: int, name: str = "train.global_batch_size") -> None:
    """Raises ShardingError if a batch does not divide over microbatches and devices."""
    axes = {axis: mesh.shape[axis] for axis in BATCH_AXES}
    shards = math.prod(axes.values())
    parts = shards * accumulate
    if batch_size % parts:
        below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
        allowed = f"{below} or {above}" if below else f"{above}"
        over = f"{shards} shards ({axes_text(axes)})" if shards > 1 else ""
        micro = f"{accumulate} microbatches" if accumulate > 1 else ""
        raise ShardingError(
            f"{name} = {batch_size} is not divisible by {' x '.join(filter(None, (over, micro)))}. "
            f"Use {allowed}, or another mesh."
        )


def cpu_device_count(setting: int | str | None, batch_size: int | str) -> int | None:
    """Returns the number of CPU devices to create; None leaves it to JAX and JAX_NUM_CPU_DEVICES.

    "auto" is the largest number within this process's share of the cores that divides the batch.

    Raises:
        ConfigError: the setting is neither a positive number nor auto nor None.
    """
    if setting is None or "JAX_NUM_CPU_DEVICES" in os.environ:
        return None
    if setting == "auto":
        cores, count = usable_cores(), group.count()
        rows = 0 if isinstance(batch_size, str) else batch_size  # auto follows the number of devices
        return max((n for n in range(1, cores // count + 1) if rows % (n * count) == 0), default=1)
    if not isinstance(setting, int) or setting < 1:
        raise ConfigError(f"mesh.cpu_devices = {setting!r}: allowed are a positive number, auto and None.")
    return setting


def create_cpu_devices(setting: int | str | None, batch_size: int | str) -> int | None:
    """Configures JAX to create the CPU devices of `mesh.cpu_devices`; returns their number, or None if JAX chooses.

    Raises:
        ConfigError: JAX has already started its devices.
    """
    count = cpu_device_count(setting, batch_size)
    if count is None or count == jax.config.jax_num_cpu_devices:
        return count
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise ConfigError(
            f"mesh.cpu_devices = {count}: JAX has already started its devices in this process. Set JAX_NUM_CPU_DEVICES "
            "before that, or leave mesh.cpu_devices at None."
        ) from error
    return count


def fake_devices(
    spec: MeshSpec, batch_size: int | str, count: int | None = None
) -> tuple[MeshSpec, Sequence[Device] | None]:
    """Creates CPU devices in place of accelerators, so that `convoy explain` can show a mesh of any size.

    Call it before JAX starts its devices.

    Args:
        spec: config section `mesh`.
        batch_size: rows of a global batch.
        count: number of devices; None is the product of the axes, unless JAX_NUM_CPU_DEVICES or `mesh.cpu_devices`
            gives enough.

    Returns:
        The mesh section, with `cpu_devices` None if devices were created, and the CPU devices, or None if JAX's default
        devices suffice.
    """
    within, between, _ = _chosen(spec, 1, "cpu", None)
    needed = count or math.prod(size for size in (*within.values(), *between.values()) if size and size > 0)
    made = cpu_device_count(spec.cpu_devices, batch_size) or 0
    if count is None and ("JAX_NUM_CPU_DEVICES" in os.environ or made >= needed):
        return spec, None
    spec = dataclasses.replace(spec, cpu_devices=None)
    jax.config.update("jax_num_cpu_devices", needed)
    here = jax.device_count()
    return spec, None if here == needed or (count is None and here > needed) else jax.devices("cpu")
