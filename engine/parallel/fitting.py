"""Meshes for devices other than those for which a mesh was configured."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from engine.base.types import Device
from engine.cluster import group
from engine.config import hardware
from engine.config.schema import DcnMeshSpec, MeshSpec
from engine.parallel.mesh import AXES, axes_text

_ORDER = ("tensor", "expert", "context", "pipeline", "fsdp")  # the first takes devices first


def fitting_meshes(spec: MeshSpec, devices: Sequence[Device]) -> Iterator[tuple[MeshSpec, Sequence[Device]]]:
    """Yields meshes in place of one that may not fit, each with its devices; the one of `spec` first.

    Each axis keeps the largest divisor of its size that divides the devices, since whatever is divisible by the size is
    divisible by that too. `data`, or the axis of -1, takes the rest. Then come meshes of copies only, and in a single
    process those of fewer devices.

    Args:
        spec: config section `mesh`.
        devices: all devices, in the order of their processes.
    """
    yield spec, devices
    axes = _model_axes(spec, devices[0].device_kind)
    fewest = 1 if group.count() == 1 else len(devices)
    for count in range(len(devices), fewest - 1, -1):
        near, copies = _nearest(axes, count), {"data": count}
        for sizes in (near, copies) if near != copies else (copies,):
            yield _mesh(spec, sizes), devices[:count]


def _model_axes(spec: MeshSpec, kind: str) -> dict[str, int]:
    """Returns the sizes of the axes other than `data`, those of the preset included; 1 if nothing sets them."""
    preset, found = spec.preset, hardware.find(kind)
    if preset == "auto":
        given = spec.dcn != DcnMeshSpec() or any(getattr(spec, axis) is not None for axis in AXES)
        preset = "replicated" if given or found is None else found.mesh
    return {axis: getattr(spec, axis) or hardware.mesh_preset(preset).get(axis, 1) for axis in _ORDER}


def _nearest(given: Mapping[str, int], count: int) -> dict[str, int]:
    """Returns the sizes above 1 of the mesh for `count` devices that is nearest to the given axes."""
    free = next((axis for axis in _ORDER if given[axis] == -1), "data")
    sizes, rest = {}, count
    for axis in _ORDER:
        size = math.gcd(given[axis], rest)  # 1 for an axis of -1
        sizes[axis], rest = size, rest // size
    return {axis: size for axis, size in {**sizes, free: rest}.items() if size > 1} or {"data": 1}


def _mesh(spec: MeshSpec, sizes: dict[str, int]) -> MeshSpec:
    """Returns the section with these axes, whatever its preset and its factors between slices."""
    given = {axis: sizes.get(axis, 1) for axis in AXES}
    return dataclasses.replace(spec, preset="auto", dcn=DcnMeshSpec(), **given)


def spec_text(spec: MeshSpec) -> str:
    """Returns the axes that a section sets, such as "data=4 x tensor=2", or its preset."""
    given = {axis: size for axis in AXES if (size := getattr(spec, axis)) is not None}
    return axes_text(given) if given else f"preset {spec.preset}"
