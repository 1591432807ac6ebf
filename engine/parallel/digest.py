"""Computes a digest of each array of a state, on the devices that hold it and equal on any mesh.

A digest is two sums modulo 2^32, over all elements of an array, of mix(bits of the element, row-major index modulo
2^32), with a different `mix` for each sum (finalizers of Wellons, Hash Function Prospector, 2018: lowbias32 and its
runner-up). Integer sums are exact in any order, so a digest depends only on the values and their order, not on the
mesh, the processes or the shape. `mix` is a bijection for each index, so a change of one element is always detected.
Other changes are missed with probability 2^-64; swapped elements a multiple of 2^32 apart are never detected.

On CPUs, NumPy computes the digests of small arrays: the programs of a small state took a fifth of the start of a run.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from engine.base.types import PyTree
from engine.parallel.memory import device_memory
from engine.parallel.rules import axes_of

_LANES = ((0x9E3779B1, 0x7FEB352D, 0x846CA68B), (0x85EBCA77, 0x2C1B3C6D, 0x297A2D39))
"""For each of the two sums: the factor of the index, and the factors of the finalizer; all are odd."""
SMALL = 2**16
"""Most elements of a part that NumPy reads instead of a program, on CPUs. Compiling its program takes 0.1 s."""


class Digests:
    """Compiled digests of states with the same structure, shapes, dtypes and shardings.

    Args:
        abstract_state: pytree of arrays or jax.ShapeDtypeStruct, all on the devices of one mesh, or on one device.

    Attributes:
        paths: paths of the arrays, keys joined by "/", in the order of the tree and of all results below.
        copy_groups: int `[devices, arrays]`: for each device, in the order of `mesh.devices.flat`, the first device
            that holds a copy of the same part of the array.
    """

    def __init__(self, abstract_state: PyTree):
        leaves = jax.tree_util.tree_flatten_with_path(abstract_state)[0]
        self._form = _form(abstract_state)
        self.paths = tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
        arrays = [leaf for _, leaf in leaves]
        shardings = [_named(array.sharding) for array in arrays]
        mesh = max((sharding.mesh for sharding in shardings), key=lambda mesh: mesh.size)
        assert isinstance(mesh, Mesh)
        self.mesh, devices = mesh, list(mesh.devices.flat)
        whole = NamedSharding(mesh, PartitionSpec())
        # An array without an explicit sharding is on one device, while the others are on all devices.
        self._shardings = [s if s.mesh.size == mesh.size else whole for s in shardings]
        # Cached, since many arrays of a large state have the same shape and sharding.
        known: dict[tuple[NamedSharding, tuple[int, ...]], list[int]] = {}
        for s, a in zip(self._shardings, arrays, strict=True):
            if (s, a.shape) not in known:
                known[s, a.shape] = _parts(s, a.shape, devices)
        parts = [known[s, a.shape] for s, a in zip(self._shardings, arrays, strict=True)]
        self.copy_groups = np.array(parts, np.int32).reshape(len(arrays), len(devices)).T
        self._stack_local = jax.jit(_stack_rows, out_shardings=NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
        self._stack_gathered = jax.jit(_stack_rows, out_shardings=whole)

    def matches(self, state: PyTree) -> bool:
        """Returns whether a state has the structure, shapes, dtypes and shardings of the abstract state."""
        return _form(state) == self._form

    def rows(self, state: PyTree, gather: bool = False) -> jax.Array:
        """Dispatches the digest of each device's parts; the state may be donated to a later program.

        Args:
            state: state that `matches`.
            gather: give every process the rows of all devices, by one collective; all processes must then call it.
                Otherwise a process can read only the rows of its own devices.

        Returns:
            uint32 `[devices, arrays, 2]`: the digest of each device's part of each array, with the indices of the whole
            array.
        """
        arrays = jax.tree.leaves(state)
        size = self.mesh.size
        rows = [
            (_row_by_numpy if _is_small(x, sharding) else _row)(
                x if len(x.sharding.device_set) == size else jax.device_put(x, sharding), sharding
            )
            for x, sharding in zip(arrays, self._shardings, strict=True)
        ]
        return (self._stack_gathered if gather else self._stack_local)(rows)

    def compile(self, state: PyTree) -> None:
        """Compiles the programs of `rows`, without `gather`, for a state of jax.ShapeDtypeStruct.

        JAX does not reuse them: they are for its persistent compilation cache.
        """
        rows, by_device = [], NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        for x, sharding in zip(jax.tree.leaves(state), self._shardings, strict=True):
            if _is_small(x, sharding):
                rows.append(jax.ShapeDtypeStruct((self.mesh.size, 2), np.uint32, sharding=by_device))
                continue
            compiled = _row.lower(x, sharding).compile()
            info = compiled.out_info
            rows.append(jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=compiled.output_shardings))
        self._stack_local.lower(rows).compile()

    def partial_sum(self, rows: jax.Array) -> np.ndarray:
        """Returns this process's contribution to the digests, uint32 `[arrays, 2]`; waits for the rows.

        Of several copies of a part only the first counts. The sum over all processes, modulo 2^32, is the digest.
        """
        total = np.zeros((len(self.paths), 2), np.uint32)
        for device, row in _read(rows):
            total += row * (self.copy_groups[device] == device)[:, None].astype(np.uint32)
        return total

    def of(self, state: PyTree) -> dict[str, str]:
        """Returns path -> digest of each whole array, the same in every process; all processes must call it."""
        rows = np.asarray(self.rows(state, gather=True))
        counts = self.copy_groups == np.arange(len(rows))[:, None]
        return self.texts((rows * counts[..., None].astype(np.uint32)).sum(0, dtype=np.uint32))

    def texts(self, digests: np.ndarray) -> dict[str, str]:
        """Returns path -> digest as 16 hexadecimal digits, for digests uint32 `[arrays, 2]`."""
        return {path: f"{a:08x}{b:08x}" for path, (a, b) in zip(self.paths, digests.tolist(), strict=True)}

    def differing(self, rows: np.ndarray) -> dict[str, list[int]]:
        """Compares the copies of each part of each array.

        Args:
            rows: rows of all devices, from `rows(state, gather=True)`.

        Returns:
            path -> indices in `mesh.devices.flat` of the devices whose copy differs from the majority (of all devices
            with a copy, if there is no majority). Empty if all copies agree.
        """
        found: dict[str, list[int]] = {}
        for array, path in enumerate(self.paths):
            differing = [
                device
                for part in np.unique(self.copy_groups[:, array])
                for device in _minority(np.flatnonzero(self.copy_groups[:, array] == part), rows[:, array])
            ]
            if differing:
                found[path] = sorted(differing)
        return found


@functools.partial(jax.jit, static_argnames="sharding")
def _row(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Returns the rows of one array, uint32 `[devices, 2]`; compiled once per shape, dtype and sharding.

    A single program for all arrays of a large state would take half a minute to compile.
    """
    mesh, spec = sharding.mesh, PartitionSpec(*sharding.spec)
    assert isinstance(mesh, Mesh)
    if sharding.memory_kind not in (None, device_memory(mesh)):
        array = jax.device_put(array, NamedSharding(mesh, spec))
    local = functools.partial(_local_digest, spec=spec, shape=array.shape)
    by_device = PartitionSpec(mesh.axis_names)
    return jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=by_device, check_vma=False)(array)


def _is_small(array: jax.Array | jax.ShapeDtypeStruct, sharding: NamedSharding) -> bool:
    """Returns whether NumPy computes the rows of an array: on CPUs, of few elements, each of whole bytes."""
    mesh, dtype = sharding.mesh, array.dtype
    assert isinstance(mesh, Mesh)
    if mesh.devices.flat[0].platform != "cpu" or math.prod(sharding.shard_shape(array.shape)) > SMALL:
        return False
    return dtype == jnp.bool_ or not jnp.issubdtype(dtype, jnp.integer) or jnp.iinfo(dtype).bits == 8 * dtype.itemsize


def _row_by_numpy(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Returns what `_row` does, without a program; waits for the array."""
    mesh = sharding.mesh
    assert isinstance(mesh, Mesh)
    shards = {shard.device: shard for shard in array.addressable_shards}
    rows = [
        jax.device_put(_digest_by_numpy(np.asarray(shards[device].data), shards[device].index, array.shape), device)
        for device in mesh.devices.flat
        if device in shards
    ]
    by_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_single_device_arrays((mesh.size, 2), by_device, rows)


def _digest_by_numpy(part: np.ndarray, place: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Returns the row of a part, uint32 `[1, 2]`, which has this place in an array of this shape."""
    index = np.zeros(1, np.uint32)
    for along, size, count in zip(place, shape, part.shape, strict=True):
        first = np.uint32(along.indices(size)[0] % 2**32)
        index = (index[:, None] * np.uint32(size % 2**32) + (first + np.arange(count, dtype=np.uint32))).reshape(-1)
    width = min(part.itemsize, 4)
    words = np.ascontiguousarray(part).reshape(-1).view(f"uint{8 * width}").astype(np.uint32)
    count = part.itemsize // width  # words of an element
    place_of_word = (index[:, None] * np.uint32(count) + np.arange(count, dtype=np.uint32)).reshape(-1)
    sums = []
    for factor, first, second in _LANES:
        h = words ^ (place_of_word * np.uint32(factor))
        for shift, by in ((16, first), (15, second)):
            h = (h ^ (h >> np.uint32(shift))) * np.uint32(by)
        sums.append((h ^ (h >> np.uint32(16))).sum(dtype=np.uint32))
    return np.array([sums], np.uint32)


def _local_digest(part: jax.Array, *, spec: PartitionSpec, shape: tuple[int, ...]) -> jax.Array:
    """Returns one device's row for one array, uint32 `[1, 2]`; to be traced under shard_map over the whole mesh.

    It calls `lax` only: with operators of `jax.numpy`, each of which is traced as a function, tracing and lowering the
    programs of a small state took a third of the start of a run.
    """
    index = _filled(part, 0)
    stride = 1
    for d in reversed(range(part.ndim)):
        axes = axes_of(spec[d]) if d < len(spec) else ()
        along = lax.broadcasted_iota(jnp.uint32, part.shape, d)
        if axes:
            first = lax.mul(lax.convert_element_type(lax.axis_index(axes), jnp.uint32), np.uint32(part.shape[d]))
            along = lax.add(along, lax.broadcast(first, part.shape))
        index = lax.add(index, lax.mul(along, _filled(part, stride)))
        stride *= shape[d]
    words = _words(part)  # one word, or two for 64-bit numbers
    sums = []
    for i, word in enumerate(words):
        place = lax.add(lax.mul(index, _filled(part, len(words))), _filled(part, i))
        mixed = [_mix(lax.bitwise_xor(word, lax.mul(place, _filled(part, lane[0]))), *lane[1:]) for lane in _LANES]
        # One pass for both sums, which on CPU is 20 times faster than two passes.
        sums.append(lax.reduce(tuple(mixed), (np.uint32(0), np.uint32(0)), _add_pairs, tuple(range(part.ndim))))
    first, *more = sums
    for pair in more:
        first = _add_pairs(first, pair)
    return lax.concatenate([lax.reshape(x, (1, 1)) for x in first], 1)


def _filled(like: jax.Array, value: int) -> jax.Array:
    """Returns an array of the shape of another one, filled with a number modulo 2^32."""
    return lax.full(like.shape, np.uint32(value % 2**32))


def _add_pairs(x: Sequence[jax.Array], y: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return lax.add(x[0], y[0]), lax.add(x[1], y[1])


def _form(state: PyTree) -> tuple[PyTree, list[tuple]]:
    leaves, tree = jax.tree.flatten(state)
    return tree, [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves]


def _stack_rows(rows: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack(rows, 1)


def _words(x: jax.Array) -> list[jax.Array]:
    """Returns the bits of each element as one or more uint32 arrays."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return [word for part in (x.real, x.imag) for word in _words(part)]
    if x.dtype == jnp.bool_:
        return [x.astype(jnp.uint32)]
    bits = jnp.iinfo(x.dtype).bits if jnp.issubdtype(x.dtype, jnp.integer) else jnp.finfo(x.dtype).bits
    if bits == 64:
        pair = lax.bitcast_convert_type(x, jnp.uint32)
        return [pair[..., 0], pair[..., 1]]
    return [lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)]


def _mix(h: jax.Array, first: int, second: int) -> jax.Array:
    for shift, factor in ((16, first), (15, second)):
        h = lax.bitwise_xor(h, lax.shift_right_logical(h, _filled(h, shift)))
        h = lax.mul(h, _filled(h, factor))
    return lax.bitwise_xor(h, lax.shift_right_logical(h, _filled(h, 16)))


def _named(sharding: Sharding) -> NamedSharding:
    """Returns a sharding as a NamedSharding; for a single device, over a mesh of that device."""
    if isinstance(sharding, SingleDeviceSharding):
        (device,) = sharding.device_set
        return NamedSharding(Mesh(np.array([device]), ("device",)), PartitionSpec(), memory_kind=sharding.memory_kind)
    assert isinstance(sharding, NamedSharding)
    return sharding


def _parts(sharding: NamedSharding, shape: tuple[int, ...], devices: Sequence[object]) -> list[int]:
    """Returns for each device the index of the first device that holds the same part."""
    parts = sharding.devices_indices_map(shape)
    firsts: dict[tuple, int] = {}
    numbers = []
    for position, device in enumerate(devices):
        part = tuple(s.indices(size)[:2] for s, size in zip(parts[device], shape, strict=True))
        numbers.append(firsts.setdefault(part, position))
    return numbers


def _read(rows: jax.Array) -> list[tuple[int, np.ndarray]]:
    """Returns (index of the device, its row) for this process's devices."""
    return [(shard.index[0].indices(len(rows))[0], np.asarray(shard.data)[0]) for shard in rows.addressable_shards]


def _minority(devices: np.ndarray, rows: np.ndarray) -> list[int]:
    """Returns the devices whose digest of a part is not the most frequent one; all devices if there is no majority."""
    values, which, counts = np.unique(rows[devices], axis=0, return_inverse=True, return_counts=True)
    if len(values) == 1:
        return []
    most = np.flatnonzero(counts == counts.max())
    return [int(device) for device, w in zip(devices, which.ravel(), strict=True) if len(most) > 1 or w != most[0]]
